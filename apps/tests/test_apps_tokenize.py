"""`ddt tokenize`: stopped, shared among processes and ranks, the bytes are the same; and it can be verified."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.shards.tokenize import tokenize_shards, verify_shards
from ddt_data import Manifest, SceneConfig, SceneGenerator, ShardDataset, ShardWriter, make_sample
from ddt_data.shards.manifest import checksum
from ddt_decoder import DDTDecoder, DecoderConfig, LatentConfig, MMDiTConfig
from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer import LatentConfig as TokenizerLatents
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor
from ddt_tokenizer.shards import read_ids

SCENES, PER_SHARD = 50, 8


def save_run(folder, seed=0, latents=None):
    """Write what `ddt train-tokenizer` exports, untrained."""
    torch.manual_seed(seed)
    channels = 3 if latents is None else latents["channels"]
    patch_size = 8 if latents is None else 2
    encoder = EncoderConfig(patch_size=patch_size, channels=channels, width=32, depth=1, num_heads=2, num_tokens=4)
    config = TokenizerConfig(
        image_size=32,
        encoder=encoder,
        quantizer=VectorConfig(codebook_size=64, code_width=6),
        latents=TokenizerLatents(**(latents or {})),
    )
    tokenizer = DDTTokenizer(config).eval()
    network = MMDiTConfig(patch_size=patch_size, channels=channels, width=32, depth=1, num_heads=2, token_width=6)
    space = LatentConfig(**(latents or {}))
    config = DecoderConfig(image_size=32, codebook_size=64, schedule=(4,), network=network, latents=space)
    decoder = DDTDecoder(config)
    decoder.set_codebook(tokenizer.embed(torch.arange(64)), tokenizer.fingerprint())
    tokenizer.save_pretrained(folder / "tokenizer")
    decoder.save_pretrained(folder / "decoder")
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Scenes in seven shards, a tokenizer, and their ids as an uninterrupted run writes them."""
    folder = tmp_path_factory.mktemp("tokenize")
    generator = SceneGenerator(SceneConfig.tiny(), seed=0)
    with ShardWriter(folder / "scenes", image_size=32, samples_per_shard=PER_SHARD, source="scenes") as writer:
        for index in range(SCENES):
            writer.write(make_sample(generator, index))
    save_run(folder / "run")
    tokenize_shards(folder / "scenes", folder / "run", folder / "ids", batch_size=6)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_tokenizer_that_is_made_anew_at_its_place_writes_its_own_ids(here, tmp_path):
    """In one process, as a notebook or the demo is."""
    for seed in (1, 2):
        run = save_run(tmp_path / "run", seed)
        manifest = tokenize_shards(here / "scenes", run, tmp_path / f"ids-{seed}", batch_size=6)
        assert manifest.tokenizer == Codec.from_pretrained(run).identity
    assert contents(tmp_path / "ids-1").keys() == contents(tmp_path / "ids-2").keys()
    assert contents(tmp_path / "ids-1") != contents(tmp_path / "ids-2")


def test_ids_words_and_keys_are_those_of_the_pictures(here):
    codec = Codec.from_pretrained(here / "run")
    pictures, ids = ShardDataset(here / "scenes"), ShardDataset(here / "ids", tokenizer=codec.fingerprint)
    assert len(ids) == SCENES and len(ids.shards) == len(pictures.shards) and "scenes" in ids.manifest.source
    for picture, row in zip(pictures, ids, strict=True):
        assert [row[field] for field in ("key", "text", "meta")] == [
            picture[field] for field in ("key", "text", "meta")
        ]
        for field, wanted in (("image", "ids"), ("target", "target_ids")):
            assert np.array_equal(row[wanted], codec.encode(to_tensor([picture[field]]))[0])
    assert np.array_equal(read_ids(here / "ids"), [row["ids"] for row in ids])  # as `ddt-tokenizer health` reads them


COMMAND = """
import os, signal, sys
from pathlib import Path
from ddt_data.shards import building
done, replace = [], os.replace
def kill_after(source, target):
    replace(source, target)
    done.append(target)
    if len(done) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = kill_after
from ddt_apps.shards.tokenize import tokenize_shards
tokenize_shards(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), batch_size=6)
"""


def test_a_run_killed_twice_ends_in_the_same_bytes(here, tmp_path):
    for renames in (3, 4):  # a shard is two renames, its tar and its note: killed between the two, and after
        command = [sys.executable, "-c", COMMAND, here / "scenes", here / "run", tmp_path / "ids", renames]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert not (tmp_path / "ids").exists()
    tokenize_shards(here / "scenes", here / "run", tmp_path / "ids", batch_size=6)
    assert contents(tmp_path / "ids") == contents(here / "ids")


def test_processes_write_the_same_bytes(here, tmp_path):
    tokenize_shards(here / "scenes", here / "run", tmp_path / "ids", batch_size=6, workers=2)
    assert contents(tmp_path / "ids") == contents(here / "ids")


def test_ranks_write_the_same_bytes(here, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, finished in ((1, False), (0, False), (2, True)):
        monkeypatch.setenv("RANK", str(rank))
        made = tokenize_shards(here / "scenes", here / "run", tmp_path / "ids", batch_size=6)
        assert (made is not None) == finished == (tmp_path / "ids").exists()
    assert contents(tmp_path / "ids") == contents(here / "ids")


def test_torchrun_starts_ranks(here, tmp_path):
    arguments = ["tokenize", here / "scenes", "--tokenizer", here / "run", "--out", tmp_path / "ids"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "ddt_apps", *arguments]
    started = time.monotonic()
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 0, result.stderr
    assert len(ShardDataset(tmp_path / "ids")) == SCENES and time.monotonic() - started < 120


def test_verification_finds_what_differs(here, tmp_path):
    assert verify_shards(here / "scenes", here / "run", here / "ids", batch_size=6) == SCENES
    save_run(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="does not hold the 50 samples"):
        verify_shards(here / "scenes", tmp_path / "other", here / "ids")
    for name, data in contents(here / "ids").items():
        (tmp_path / "ids").mkdir(exist_ok=True)
        (tmp_path / "ids" / name).write_bytes(data)
    tar = tmp_path / "ids" / "000002.tar"
    data = tar.read_bytes()
    ids = ShardDataset(here / "ids")[2 * PER_SHARD + 3]["ids"].astype(np.uint8).tobytes()
    at = data.index(ids)
    tar.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    text = (tmp_path / "ids" / "manifest.json").read_text()
    old = Manifest.read(here / "ids").shards[2].sha256
    (tmp_path / "ids" / "manifest.json").write_text(text.replace(old, checksum(tar)))
    ShardDataset(tmp_path / "ids").check()  # its checksum is right, its content is not
    with pytest.raises(ValueError, match=r"000002.tar: 1 of 8 samples differ, first 00000019"):
        verify_shards(here / "scenes", here / "run", tmp_path / "ids", batch_size=6)


def test_a_changed_picture_shard_is_refused(here, tmp_path):
    for name, data in contents(here / "scenes").items():
        (tmp_path / "scenes").mkdir(exist_ok=True)
        (tmp_path / "scenes" / name).write_bytes(data[:600] + b"x" + data[601:] if name == "000001.tar" else data)
    with pytest.raises(ValueError, match=r"000001.tar is damaged"):
        tokenize_shards(tmp_path / "scenes", here / "run", tmp_path / "ids")
    assert not (tmp_path / "ids").exists()


@pytest.fixture(scope="module")
def vae(here):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(here / "vae")
    return {"channels": 4, "downscale": 4, "vae": str(here / "vae")}


def test_latents_are_kept_and_used_by_the_next_tokenizer(here, vae, tmp_path, monkeypatch):
    first, second = save_run(tmp_path / "first", 0, vae), save_run(tmp_path / "second", 1, vae)
    tokenize_shards(here / "scenes", first, tmp_path / "kept", latents=True)
    sample = ShardDataset(tmp_path / "kept")[7]
    assert sample["latents"].shape == sample["target_latents"].shape == (4, 8, 8)
    tokenize_shards(here / "scenes", second, tmp_path / "from-pictures", latents=True)
    monkeypatch.setattr(DDTTokenizer, "encode", None)
    (here / "vae").rename(here / "no-vae")  # not needed any more
    try:
        tokenize_shards(tmp_path / "kept", second, tmp_path / "from-latents")
    finally:
        (here / "no-vae").rename(here / "vae")
    for a, b in zip(ShardDataset(tmp_path / "from-latents"), ShardDataset(tmp_path / "from-pictures"), strict=True):
        assert a.keys() == b.keys() and all(np.array_equal(a[field], b[field]) for field in a)
    with pytest.raises(ValueError, match=r"latents in .* are of"):
        tokenize_shards(tmp_path / "kept", here / "run", tmp_path / "x")
    with pytest.raises(ValueError, match="leave --latents out"):
        tokenize_shards(here / "scenes", here / "run", tmp_path / "x", latents=True)


def test_the_command_makes_and_verifies(here, tmp_path):
    arguments = ["tokenize", str(here / "scenes"), "--tokenizer", str(here / "run"), "--out", str(tmp_path / "ids")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    result = CliRunner().invoke(app, [*arguments, "--verify"])
    assert result.exit_code == 0 and "50 samples are the same" in result.output
