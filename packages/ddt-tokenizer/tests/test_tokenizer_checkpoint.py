"""Published tokenizers from elsewhere: loaded as they are, or refused in one line before anything is allocated."""

import copy
import json
import os
import random
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddt_tokenizer import BinaryConfig, DDTTokenizer, EncoderConfig, ScalarConfig, TokenizerConfig, VectorConfig

ODD = [None, True, -1, 0, 2.5, 10**6, 10**9, 10**18, 10**40, float("nan"), float("inf"), "8", "", [], [1], {}, {"a": 1}]
QUANTIZERS = [
    VectorConfig(codebook_size=16, code_width=6),
    VectorConfig(codebook_size=16, code_width=6, replacement="position", diversity=1.0),
    ScalarConfig(levels=(5, 4, 3)),
    BinaryConfig(code_width=4),
]


def build(quantizer=QUANTIZERS[0], **encoder):
    torch.manual_seed(0)
    encoder = EncoderConfig(**{"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "num_tokens": 4, **encoder})
    return DDTTokenizer(TokenizerConfig(image_size=16, encoder=encoder, quantizer=quantizer)).eval()


@pytest.fixture(params=range(len(QUANTIZERS)))
def folder(request, tmp_path):
    build(QUANTIZERS[request.param], start="grid").save_pretrained(tmp_path / "t")
    return tmp_path / "t"


def refusal(folder):
    """What loading says, or None if it loads."""
    try:
        DDTTokenizer.from_pretrained(folder)
    except ValueError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return str(error)


def leaves(settings, path=()):
    for name, value in settings.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def test_any_setting_may_be_odd(folder):
    """Each setting of config.json replaced by odd values: refused in one line, or without effect on the ids."""
    whole, images = json.loads((folder / "config.json").read_text()), torch.rand(2, 3, 16, 16)
    ids, rng = DDTTokenizer.from_pretrained(folder).encode_latents(images), random.Random(0)
    for path in leaves(whole):
        for odd in rng.sample(ODD, 6):
            changed = copy.deepcopy(whole)
            owner = changed
            for name in path[:-1]:
                owner = owner[name]
            owner[path[-1]] = odd
            (folder / "config.json").write_text(json.dumps(changed))
            if refusal(folder) is None:
                assert torch.equal(DDTTokenizer.from_pretrained(folder).encode_latents(images), ids), (path, odd)


@pytest.mark.parametrize(
    "text", ["", "[]", "[[1]]", "3", "null", "{", "[" * 100_000, '{"a":' * 100_000, "\udcff", "{}"]
)
def test_a_config_of_another_shape_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "size", [{"width": 10**6}, {"num_tokens": 60_000}, {"depth": 1000}, {"patch_size": 10_000}, {"mlp_ratio": 1e9}]
)
def test_sizes_are_those_of_the_file_before_anything_is_allocated(folder, size, monkeypatch):
    whole = json.loads((folder / "config.json").read_text())
    whole["encoder"] |= size
    whole["image_size"] = 10_000 if "patch_size" in size else 16
    (folder / "config.json").write_text(json.dumps(whole))
    made, original = [], DDTTokenizer.__init__

    def remembered(self, config):
        made.append(torch.get_default_device().type)
        original(self, config)

    monkeypatch.setattr(DDTTokenizer, "__init__", remembered)
    assert "damaged or incomplete" in refusal(folder)
    assert made == ["meta"]


def test_a_damaged_or_foreign_file_of_weights_is_refused(folder):
    file = folder / "model.safetensors"
    whole, rng = file.read_bytes(), random.Random(0)
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    first = min(weights)
    for content in [b"", b"\x00" * 8, b"hello, world", *(whole[: rng.randrange(len(whole))] for _ in range(12))]:
        file.write_bytes(content)
        assert "the weights" in refusal(folder)
    for odd in (
        {name: value for name, value in weights.items() if name != first},
        weights | {"more": torch.zeros(1)},
        weights | {first: weights[first][..., None]},
        weights | {first: torch.zeros(weights[first].shape, dtype=torch.int64)},
        {},
    ):
        save_file(odd, file)
        assert "the weights" in refusal(folder)
    file.unlink()
    assert "the weights" in refusal(folder)


def test_a_folder_of_links_is_a_folder(folder, tmp_path):
    (tmp_path / "linked").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "linked" / name).symlink_to(folder / name)
    assert refusal(tmp_path / "linked") is None


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_are_as_open_as_the_umask_lets_them(tmp_path, umask):
    before = os.umask(umask)
    try:
        build().save_pretrained(tmp_path / "t")
    finally:
        os.umask(before)
    files = sorted((tmp_path / "t").iterdir())
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~umask}


def test_what_a_killed_process_left_goes_with_the_next(tmp_path, monkeypatch):
    build().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / ".partial").mkdir()
    (tmp_path / "t" / ".partial" / ".tmp1234").write_bytes(b"half of it")
    other = build(width=32)
    with monkeypatch.context() as stopped:
        stopped.setattr("ddt_tokenizer.checkpoint.write_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            other.save_pretrained(tmp_path / "t")
    assert DDTTokenizer.from_pretrained(tmp_path / "t").config == build().config  # the old one, whole
    other.save_pretrained(tmp_path / "t")
    assert sorted(file.name for file in (tmp_path / "t").iterdir()) == ["config.json", "model.safetensors"]
    assert DDTTokenizer.from_pretrained(tmp_path / "t").config == other.config
