"""Presets and what survives time: sizes of the papers, checkpoints of the first format, fingerprints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddt_tokenizer import DDTTokenizer, EncoderConfig, LatentConfig, TokenizerConfig, VectorConfig

FIRST = Path(__file__).parent / "format1"  # written by version 0.1.0


def weights(config):
    with torch.device("meta"):
        return {name: p.numel() for name, p in DDTTokenizer(config).named_parameters()}


def selftok_parameters(num_tokens, width=512, image=64, depth=16):
    """The sum of the layer list of the method's description."""
    linear = lambda m, n: m * n + n  # noqa: E731
    whole = {
        "image qkv": linear(image, 3 * image),
        "image to query k, v": linear(image, 2 * width),
        "image out": linear(image, image),
        "image MLP": linear(image, 4 * image) + linear(4 * image, image),
        "query qkv": linear(width, 3 * width),
        "query out": linear(width, width),
        "query MLP": linear(width, 4 * width) + linear(4 * width, width),
        "adaLN": linear(width, 6 * width),
        "position embedder": linear(256, width) + linear(width, width),
    }
    unread = whole["image qkv"] + whole["image out"] + whole["image MLP"]  # of the last block
    return depth * sum(whole.values()) - unread + num_tokens * width + linear(16 * 2 * 2, image)


@pytest.mark.parametrize("name", ["selftok_512", "selftok_1024"])
def test_selftok_has_the_size_of_its_layer_list(name):
    config = getattr(TokenizerConfig, name)()
    found = weights(config)
    encoder = sum(size for key, size in found.items() if key.startswith("encoder."))
    assert encoder == selftok_parameters(config.encoder.num_tokens)
    assert 83e6 < encoder < 85e6
    assert sum(found.values()) - encoder == 512 * 16 + 16 + 2 * 16  # projection and norm


def test_ddt_480_has_the_size_of_its_layer_list():
    found = weights(TokenizerConfig.ddt_480())
    encoder = sum(size for key, size in found.items() if key.startswith("encoder."))
    stream = 256 * 768 + 768 + 256 * 256 + 256 + 2 * 256 * 1024 + 1024 + 256  # qkv, out, MLP
    last = stream + 256 * 768 + 768
    assert encoder == 23 * 2 * stream + last + 480 * 256 + 64 * 256 + 256
    assert TokenizerConfig.ddt_480().quantizer.codebook_size == 65_536


@pytest.mark.parametrize(
    ("config", "num_tokens", "patch", "scales"),
    [(TokenizerConfig.tiny(), 16, 8 * 8 * 3, 0), (TokenizerConfig.small(), 64, 2 * 2 * 8, 64 * 8 * 8)],
)
def test_small_presets_have_the_size_of_their_layer_list(config, num_tokens, patch, scales):
    found = weights(config)
    encoder = sum(size for key, size in found.items() if key.startswith("encoder."))
    attention = 128 * 384 + 384 + 2 * 32 + 2 * 128  # qkv, their norms, the norm before
    rest = 128 * 128 + 128 + 2 * 128 + 2 * 128 * 512 + 512 + 128  # out, the norm before the MLP, MLP
    ends = num_tokens * 128 + scales + patch * 128 + 128 + 2 * 128
    assert encoder == 3 * 2 * attention + 5 * rest + ends  # nobody reads the image after the last block


def test_small_presets_are_those_of_the_recipes():
    tiny, small = TokenizerConfig.tiny(), TokenizerConfig.small()
    assert tiny == TokenizerConfig(
        image_size=32, encoder=EncoderConfig(num_tokens=16), quantizer=VectorConfig(codebook_size=512, code_width=16)
    )
    assert (small.image_size, small.encoder.num_tokens, small.encoder.width // small.encoder.num_heads) == (64, 64, 32)
    assert DDTTokenizer(tiny).eval().encode(torch.zeros(1, 3, 32, 32)).shape == (1, 16)


def test_checkpoints_of_the_first_version_load_and_write_the_same_ids():
    tokenizer = DDTTokenizer.from_pretrained(FIRST)  # the fingerprint is checked
    expected = load_file(FIRST / "expected.safetensors")
    ids = tokenizer.encode(expected["images"])
    assert torch.equal(ids, expected["ids"]) and torch.allclose(tokenizer.embed(ids), expected["tokens"], atol=1e-6)


def test_the_fingerprint_knows_new_settings_and_not_where_the_vae_lies():
    config = TokenizerConfig(
        image_size=32, encoder=EncoderConfig(channels=4, patch_size=2), latents=LatentConfig(4, 4, vae="here")
    )
    others = [
        replace(config, latents=replace(config.latents, scale=2.0)),
        replace(config, encoder=replace(config.encoder, query_position="sincos")),
    ]
    assert all(other.identity() != config.identity() for other in others)
    assert replace(config, latents=replace(config.latents, vae="there")).identity() == config.identity()
    assert TokenizerConfig().identity().keys() == {"image_size", "encoder", "quantizer"}  # as at first


def test_the_fingerprint_knows_the_counts_where_ids_depend_on_them(tmp_path):
    for rate, changes in ((0.0, False), (0.01, True)):
        tokenizer = DDTTokenizer(TokenizerConfig(quantizer=VectorConfig(rate=rate)))
        before = tokenizer.fingerprint()
        tokenizer.quantizer.counts.copy_(torch.rand(512).pow(9) * 100)
        assert (tokenizer.fingerprint() != before) == changes
        tokenizer.save_pretrained(tmp_path / str(rate))
        loaded, images = DDTTokenizer.from_pretrained(tmp_path / str(rate)), torch.rand(2, 3, 64, 64)
        assert torch.equal(loaded.encode(images), tokenizer.encode(images))
        assert loaded.fingerprint() == tokenizer.fingerprint()


def test_contradictions_are_named():
    with pytest.raises(ValueError, match=r"rate \(-0.1\) must be at least 0"):
        VectorConfig(rate=-0.1)
    with pytest.raises(ValueError, match=r"num_tokens \(64\) must be the number of patches \(16\)"):
        TokenizerConfig(image_size=32, encoder=EncoderConfig(mode="spatial"))
    with pytest.raises(ValueError, match="position_table"):
        TokenizerConfig(image_size=64, encoder=EncoderConfig(position_table=4))
