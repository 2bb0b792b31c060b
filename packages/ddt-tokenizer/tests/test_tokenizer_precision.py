"""Precision of inference: what bf16 changes of ids, and where they say so."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ddt_tokenizer.precision
from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.cli import main
from ddt_tokenizer.manifest import Manifest
from ddt_tokenizer.quantizers.binary import BinaryConfig
from ddt_tokenizer.quantizers.scalar import ScalarConfig
from ddt_tokenizer.shards import read_ids

KINDS = {
    "vq": VectorConfig(codebook_size=64, code_width=6),
    "rate": VectorConfig(codebook_size=64, code_width=6, rate=0.02),
    "fsq": ScalarConfig(levels=(5, 4, 3)),
    "lfq": BinaryConfig(code_width=6),
}


@pytest.fixture
def images():
    """Four plain quarters each: unlike one another, as random pixels are not."""
    quarters = torch.rand(60, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return quarters.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def make(images, quantizer="vq"):
    """Return a tokenizer whose codebook is spread over what its encoder says, as training leaves it."""
    torch.manual_seed(0)
    encoder = EncoderConfig(patch_size=4, width=32, depth=2, num_heads=2, num_tokens=5)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=16, encoder=encoder, quantizer=KINDS[quantizer]))
    with torch.no_grad():
        for _ in range(5):
            tokenizer(images)
    return tokenizer.eval()


@pytest.mark.parametrize("quantizer", KINDS)
def test_bf16_writes_nearly_the_same_ids_of_float32_vectors(images, quantizer):
    tokenizer = make(images, quantizer)
    exact, kinds = tokenizer.encode(images), []
    assert len(exact.unique()) > 8
    tokenizer.encoder.blocks[0].out["0"].register_forward_hook(lambda *call: kinds.append(call[2].dtype))
    lookup = tokenizer.quantizer.lookup
    tokenizer.quantizer.lookup = lambda z: kinds.append(z.dtype) or lookup(z)
    tokenizer.precision = "bf16"
    ids = tokenizer.encode(images)
    assert kinds == [torch.bfloat16, torch.float32] and ids.dtype == torch.int64
    assert (ids == exact).float().mean() >= 0.95
    assert all(weight.dtype == torch.float32 for weight in tokenizer.parameters())
    tokenizer.precision = "32"
    assert torch.equal(tokenizer.encode(images), exact)


def test_the_precision_is_part_of_the_identity_and_not_of_the_fingerprint(images, tmp_path):
    tokenizer = make(images)
    before = tokenizer.identity
    assert set(before) == {"fingerprint", "codebook_size", "num_tokens"}  # as it was when there was no precision
    tokenizer.precision = "bf16"
    assert tokenizer.identity == {**before, "precision": "bf16"}
    tokenizer.save_pretrained(tmp_path)
    assert "precision" not in json.loads((tmp_path / "config.json").read_text())
    assert DDTTokenizer.from_pretrained(tmp_path).identity == before
    loaded = DDTTokenizer.from_pretrained(tmp_path, precision="bf16")
    assert loaded.identity == tokenizer.identity and torch.equal(loaded.encode(images), tokenizer.encode(images))


def test_an_unknown_precision_is_named(images, tmp_path):
    tokenizer = make(images)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"precision \('fp8'\) must be 32 or bf16"):
        DDTTokenizer.from_pretrained(tmp_path, precision="fp8")
    tokenizer.precision = "fp8"
    with pytest.raises(ValueError, match=r"precision \('fp8'\) must be 32 or bf16"):
        tokenizer.encode(images)


@pytest.mark.parametrize("has", [True, False])
def test_the_command_says_in_shards_what_it_computed_in_and_where_it_is_slower(
    images, tmp_path, monkeypatch, capsys, has
):
    monkeypatch.setattr(ddt_tokenizer.precision, "multiplies_bf16", lambda device: has)
    make(images).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        picture = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
    for precision, recorded in (("32", {}), ("bf16", {"precision": "bf16"})):
        out = tmp_path / precision
        arguments = [tmp_path / "pictures", "--tokenizer", tmp_path / "tokenizer", "--out", out]
        main(["encode", *map(str, arguments), "--precision", precision])
        said = "slower than 32 here" in capsys.readouterr().err
        assert said == (precision == "bf16" and not has)
        tokenizer = Manifest.read(out).tokenizer
        assert set(tokenizer) == {"fingerprint", "codebook_size", "num_tokens", *recorded}
        assert recorded.items() <= tokenizer.items()
    assert read_ids(tmp_path / "32").shape == read_ids(tmp_path / "bf16").shape == (3, 5)
    main(["health", str(tmp_path / "tokenizer"), str(tmp_path / "bf16")])  # ids of the same tokenizer
