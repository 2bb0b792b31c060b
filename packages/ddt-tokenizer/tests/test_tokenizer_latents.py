"""Latent spaces of diffusers' autoencoders, with tiny random ones in folders."""

import json
import shutil
import sys

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from ddt_tokenizer import DDTTokenizer, EncoderConfig, TokenizerConfig, VectorConfig
from ddt_tokenizer.latents import LatentConfig, LatentSpace, split_source


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kl")
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 8, 8],
        norm_num_groups=4,
        latent_channels=5,
        shift_factor=0.1,
        scaling_factor=1.7,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder)
    return str(folder)


def build(latents):
    torch.manual_seed(0)
    encoder = EncoderConfig(channels=latents.channels, patch_size=2, width=32, depth=1, num_heads=2, num_tokens=5)
    return DDTTokenizer(
        TokenizerConfig(
            image_size=32, encoder=encoder, quantizer=VectorConfig(codebook_size=64, code_width=6), latents=latents
        )
    ).eval()


def test_a_kl_autoencoder_gives_its_mode_shifted_and_scaled(kl):
    config = LatentConfig.from_vae(kl)
    assert config == LatentConfig(channels=5, downscale=4, shift=0.1, scale=1.7, vae=kl)
    images = torch.rand(2, 3, 32, 24) * 2 - 1
    vae = AutoencoderKL.from_pretrained(kl).eval()
    with torch.no_grad():
        expected = (vae.encode(images).latent_dist.mode() - 0.1) * 1.7
    assert torch.allclose(LatentSpace(config).encode(images), expected, atol=1e-6) and expected.shape == (2, 5, 8, 6)


def test_a_tiny_autoencoder_gives_its_latents(small):
    config = LatentConfig.from_vae(small)
    vae = AutoencoderTiny.from_pretrained(small).eval()
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(images).latents
    assert (config.channels, config.downscale, config.shift, config.scale) == (4, 2, 0.0, 1.0)
    assert torch.allclose(LatentSpace(config).encode(images), expected, atol=1e-6) and expected.shape == (2, 4, 8, 12)


def test_images_go_through_the_vae_and_latents_do_not(kl):
    tokenizer = build(LatentConfig.from_vae(kl))
    images = torch.rand(3, 3, 32, 48) * 2 - 1
    assert tokenizer.latent_space._vae is None  # loaded at first use
    ids = tokenizer.encode(images)
    assert torch.equal(ids, tokenizer.encode_latents(tokenizer.latent_space.encode(images)))
    with pytest.raises(ValueError, match="divisible by 8"):
        tokenizer.encode(torch.zeros(1, 3, 36, 36))
    with pytest.raises(ValueError, match=r"\[B, 5, H, W\]"):
        tokenizer.encode_latents(images)


def test_the_vae_is_no_part_of_the_checkpoint_and_may_move(kl, tmp_path):
    tokenizer = build(LatentConfig.from_vae(kl))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    ids = tokenizer.encode(images)
    tokenizer.save_pretrained(tmp_path / "t")
    assert not any("vae" in name or "latents" in name for name in tokenizer.state_dict())
    (tmp_path / "elsewhere").symlink_to(kl)
    moved = DDTTokenizer.from_pretrained(tmp_path / "t", vae=str(tmp_path / "elsewhere"))
    assert torch.equal(moved.encode(images), ids) and moved.fingerprint() == tokenizer.fingerprint()


def test_what_does_not_go_together_is_named(kl, small, tmp_path):
    with pytest.raises(ValueError, match=r"encoder.channels \(3\) must equal latents.channels \(5\)"):
        TokenizerConfig(image_size=32, latents=LatentConfig.from_vae(kl))
    with pytest.raises(ValueError, match=r"patch_size .* times latents\.downscale"):
        TokenizerConfig(image_size=36, encoder=EncoderConfig(channels=5), latents=LatentConfig(5, 4))
    with pytest.raises(ValueError, match=r"latents\.vae is not set"):
        build(LatentConfig(5, 4)).encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"has channels 4, latents\.channels is 5"):
        build(LatentConfig(5, 4, vae=small)).encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="cannot be loaded"):
        LatentConfig.from_vae(str(tmp_path / "nothing"))


def test_without_diffusers_the_extra_is_named(kl, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs diffusers; install this package with its extra \[vae\]"):
        LatentConfig.from_vae(kl)


def test_hub_ids_may_name_a_subfolder(tmp_path):
    assert split_source("owner/name/vae") == ("owner/name", {"subfolder": "vae"})
    assert split_source("owner/name") == ("owner/name", {})
    assert split_source(str(tmp_path)) == (str(tmp_path), {})


def refusal(folder):
    with pytest.raises((ValueError, OSError)) as error:
        LatentSpace(LatentConfig.from_vae(str(folder))).load()
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_pickled_weights_are_not_read(kl, tmp_path):
    vae = AutoencoderKL.from_pretrained(kl)
    vae.save_pretrained(tmp_path, safe_serialization=False)
    assert [file.suffix for file in tmp_path.glob("diffusion*")] == [".bin"]
    assert "safe_serialization=True" in refusal(tmp_path)
    vae.save_pretrained(tmp_path)
    LatentSpace(LatentConfig.from_vae(str(tmp_path))).load()


def test_a_vae_that_is_not_whole_is_refused(kl, tmp_path):
    """Diffusers itself would begin with random weights where some are missing."""
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(f"{kl}/{name}", tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "diffusion_pytorch_model.safetensors"
    whole, content = json.loads(config.read_text()), weights.read_bytes()
    for change in (
        {"layers_per_block": 2},
        {"block_out_channels": [10**6] * 3},
        {"block_out_channels": [8, 8, "8"]},
        {"block_out_channels": None},
        {"norm_num_groups": 0},
        {"latent_channels": 0},
        {"latent_channels": 10**12},
        {"scaling_factor": float("nan")},
        {"down_block_types": ["os.system"] * 3},
        {"_class_name": "Anything"},
    ):
        config.write_text(json.dumps(whole | change))
        refusal(tmp_path)
    for text in ("", "[]", "{", "[" * 100_000):
        config.write_text(text)
        refusal(tmp_path)
    config.write_text(json.dumps(whole))
    for cut in (0, 5, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:cut])
        assert "damaged" in refusal(tmp_path)
