"""`ddt tokenize`: stopped, shared among processes and ranks, the bytes are the same; and it can be verified."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.run.origin import digest
from ddt_apps.shards.jobs import how_far
from ddt_apps.shards.make import check_shards
from ddt_apps.shards.tokenize import tokenize_shards, verify_shards
from ddt_apps.train.pictures import open_pictures
from ddt_data import Manifest, SceneConfig, SceneGenerator, ShardDataset, ShardWriter, make_sample
from ddt_data.shards import members
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


# What tasks of an array run as `ddt`: DIE says before which rename one is killed.
DDT = """
import os, signal, sys
renames, replace = iter(range(int(os.environ.get("DIE", 10**6)))), os.replace
def dying(source, target):
    if next(renames, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dying
from ddt_apps.__main__ import main
main()
"""
ARRAY = Path(__file__).parents[2] / "docs" / "cluster" / "array.sh"


def test_an_array_of_jobs_that_are_killed_and_another_number_of_them_end_in_the_same_bytes(here, tmp_path):
    (tmp_path / "ddt.py").write_text(DDT)
    (tmp_path / "ddt").write_text(f'#!/bin/bash\nexec {sys.executable} {tmp_path}/ddt.py "$@"\n')
    (tmp_path / "ddt").chmod(0o755)
    line = ["tokenize", here / "scenes", "--tokenizer", here / "run", "--out", tmp_path / "ids", "--batch-size", 6]
    line = [*map(str, line), "--device", "cpu"]

    def start(task, **more):
        path = f"{tmp_path}:{os.environ['PATH']}"
        told = {**os.environ, "PATH": path, "SLURM_JOB_ID": "31", "SLURM_ARRAY_TASK_ID": str(task), **more}
        return subprocess.Popen(["bash", ARRAY, *line], env=told, stderr=subprocess.PIPE, stdout=subprocess.PIPE)

    def status():
        return CliRunner().invoke(app, [*line, "--status"]).output

    assert status() == "tokenize 0/50 pictures, 50 left, nobody is at it; run the same line without --status\n"
    for process in [start(0, DIE="4"), start(1, DIE="6")]:
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert not (tmp_path / "ids").exists()
    done = int(re.match(r"tokenize (\d+)/50 pictures, (\d+) left, nobody is at it", status())[1])
    assert 8 <= done < 50
    last = start(2)
    said, error = last.communicate()
    assert last.returncode == 0, error
    assert b"holds 50 samples as ids; next: ddt pretrain" in said and b"tokenize 50/50" in error
    assert contents(tmp_path / "ids") == contents(here / "ids")
    assert status() == f"tokenize 50/50 pictures, finished: {tmp_path / 'ids'}\n"
    assert not list(tmp_path.glob(".*"))


def test_who_comes_late_is_content_with_what_others_have_made(here, tmp_path):
    found = tokenize_shards(here / "scenes", here / "run", here / "ids", batch_size=6)
    assert found == Manifest.read(here / "ids")
    with pytest.raises(FileExistsError, match="holds finished shards"):
        tokenize_shards(here / "scenes", save_run(tmp_path / "other", seed=1), here / "ids")


def test_processes_write_the_same_bytes(here, tmp_path):
    tokenize_shards(here / "scenes", here / "run", tmp_path / "ids", batch_size=6, workers=2)
    assert contents(tmp_path / "ids") == contents(here / "ids")


def test_torchrun_starts_ranks(here, tmp_path):
    arguments = ["tokenize", here / "scenes", "--tokenizer", here / "run", "--out", tmp_path / "ids"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "ddt_apps", *arguments]
    started = time.monotonic()
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("holds 50 samples as ids") == 1 and time.monotonic() - started < 120
    assert len(ShardDataset(tmp_path / "ids")) == SCENES


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


def test_what_cannot_be_used_is_rejected_by_name(here, tmp_path, monkeypatch):
    """One picture is none, one is of another size, and one shard has nothing else."""
    encode, torn = members.encode_image, [11, *range(16, 24)]

    def tear(image, kind="png"):
        return b"no picture" if image.shape[0] == 1 else encode(image, kind)

    monkeypatch.setattr(members, "encode_image", tear)
    with ShardWriter(tmp_path / "scenes", image_size=32, samples_per_shard=PER_SHARD, source="scenes") as writer:
        for index, sample in enumerate(ShardDataset(here / "scenes")):
            sizes = {27: (32, 16, 3)} | dict.fromkeys(torn, (1, 1, 3))
            writer.write(sample | ({"image": np.zeros(sizes[index], np.uint8)} if index in sizes else {}))
    for name in ("ids", "again"):
        manifest = tokenize_shards(tmp_path / "scenes", here / "run", tmp_path / name, batch_size=6)
    assert contents(tmp_path / "again") == contents(tmp_path / "ids")
    names = [f"00000{number // PER_SHARD}.tar, sample {number % PER_SHARD}" for number in sorted([*torn, 27])]
    assert [entry["name"] for entry in manifest.skipped] == names
    assert manifest.skipped[0]["why"].startswith("000001.tar: 00000011.png")
    assert manifest.skipped[-1]["why"] == "00000027: its image has 16 x 32 px, not 32 x 32"
    assert manifest.samples == SCENES - len(names) and [shard.name for shard in manifest.shards][2] == "000003.tar"
    kept = [sample["key"] for sample in ShardDataset(tmp_path / "ids")]
    assert kept == [f"{number:08d}" for number in range(SCENES) if number not in (*torn, 27)]
    assert verify_shards(tmp_path / "scenes", here / "run", tmp_path / "ids", batch_size=6) == manifest.samples
    said = how_far("tokenize", str(tmp_path / "scenes"), tmp_path / "ids")
    assert said == f"tokenize 40/50 pictures, 10 rejected, finished: {tmp_path / 'ids'}"


def test_shards_behind_a_url_give_the_same_bytes(here, tmp_path, monkeypatch):
    monkeypatch.setenv("DDT_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(f"{here / 'scenes'}/", "/tokenize/scenes/", recursive=True)
    tokenize_shards("memory://tokenize/scenes", here / "run", tmp_path / "ids", batch_size=6)
    assert contents(tmp_path / "ids") == contents(here / "ids")
    held = {f"{shard.sha256}.tar" for shard in Manifest.read(here / "scenes").shards}
    assert set(os.listdir(tmp_path / "cache" / "shards")) == held
    assert len(open_pictures("memory://tokenize/scenes:0.5, memory://tokenize/scenes:0.5", 32, 3).held_out) == 3
    assert digest("memory://tokenize/scenes") == digest(here / "scenes")
    assert check_shards("memory://tokenize/scenes")
    result = CliRunner().invoke(app, ["tokenize", str(here), "--tokenizer", "x", "--out", "s3://bucket/ids"])
    assert result.exit_code == 2 and "must be a folder of a disk" in result.output


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
