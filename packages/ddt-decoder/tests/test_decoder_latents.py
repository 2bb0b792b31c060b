"""Latent spaces, against diffusers' autoencoders at random toy weights."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

from ddt_decoder import DDTDecoder, DDTRenderer, DecoderConfig, LatentConfig, MMDiTConfig
from ddt_decoder.latents import LatentSpace

BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
KL = {**BLOCKS, "block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 5, "sample_size": 16}


def config(latents):
    network = MMDiTConfig(channels=latents.channels, patch_size=2, width=32, depth=1, num_heads=2)
    return DecoderConfig(image_size=16, codebook_size=8, schedule=(4,), network=network, latents=latents)


@pytest.fixture(params=["kl", "kl_without_shift", "tiny"])
def vae(request, tmp_path):
    torch.manual_seed(0)
    if request.param == "tiny":
        channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        model = AutoencoderTiny(
            **channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=5, scaling_factor=1.0
        )
    else:
        model = AutoencoderKL(**KL, scaling_factor=0.7, shift_factor=0.1 if request.param == "kl" else None)
    model.save_pretrained(tmp_path / "vae")
    return model.eval(), str(tmp_path / "vae")


def test_the_config_is_read_from_the_autoencoder(vae):
    model, folder = vae
    config = LatentConfig.from_vae(folder)
    assert (config.channels, config.downscale, config.vae) == (5, 2, folder)
    assert config.scale == model.config.scaling_factor
    assert config.shift == (model.config.shift_factor or 0.0)


def test_latents_decode_as_diffusers_does(vae):
    model, folder = vae
    config = LatentConfig.from_vae(folder)
    latents = torch.randn(2, 5, 4, 6)
    with torch.inference_mode():
        wanted = model.decode(latents / model.config.scaling_factor + (model.config.shift_factor or 0.0)).sample
        assert torch.allclose(LatentSpace(config).decode(latents), wanted, atol=1e-6)
    assert wanted.shape == (2, 3, 8, 12)


def test_a_decoder_draws_through_a_frozen_autoencoder_that_it_does_not_keep(vae, tmp_path):
    _, folder = vae
    decoder = DDTDecoder(config(LatentConfig.from_vae(folder)))
    names = set(decoder.state_dict())
    images = decoder.decode(torch.zeros(2, 4, dtype=torch.long), num_steps=2)
    assert images.shape == (2, 3, 16, 16) and images.abs().max() <= 1
    assert set(decoder.state_dict()) == names and not any("vae" in name for name in names)
    decoder.save_pretrained(tmp_path / "decoder")
    loaded = DDTDecoder.from_pretrained(tmp_path / "decoder")
    assert torch.equal(loaded.decode(torch.zeros(2, 4, dtype=torch.long), num_steps=2), images)
    # After its first use, inside inference mode, gradients still pass to the latents and to nothing else.
    latents = torch.randn(1, 5, 4, 4, requires_grad=True)
    decoder.latent_space.decode(latents).sum().backward()
    assert latents.grad.abs().sum() > 0


def test_the_autoencoder_may_move(vae, tmp_path):
    _, folder = vae
    decoder = DDTDecoder(config(LatentConfig.from_vae(folder)))
    renderer = DDTRenderer.from_decoder(decoder)
    decoder.save_pretrained(tmp_path / "decoder")
    renderer.save_pretrained(tmp_path / "renderer")
    Path(folder).rename(tmp_path / "elsewhere")
    ids = torch.randint(8, (2, 4))
    for kind, name in ((DDTDecoder, "decoder"), (DDTRenderer, "renderer")):
        with pytest.raises(ValueError, match="cannot be loaded"):
            kind.from_pretrained(tmp_path / name).decode(ids)
        assert kind.from_pretrained(tmp_path / name, vae=str(tmp_path / "elsewhere")).decode(ids).shape == (
            2,
            3,
            16,
            16,
        )


def test_an_autoencoder_of_another_latent_space_is_refused_by_name(vae):
    _, folder = vae
    decoder = DDTDecoder(config(LatentConfig(5, 4, vae=folder)))
    with pytest.raises(ValueError, match=r"has downscale 2, latents\.downscale is 4"):
        decoder.decode(torch.zeros(1, 4, dtype=torch.long))


def test_latents_without_an_autoencoder_are_refused_before_the_work():
    decoder = DDTDecoder(config(LatentConfig.sd3()))
    with pytest.raises(ValueError, match=r"latents\.vae"):
        decoder.decode(torch.zeros(1, 4, dtype=torch.long), num_steps=10**9)


def test_another_kind_of_autoencoder_is_refused(tmp_path):
    VQModel(**BLOCKS, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="VQModel"):
        LatentConfig.from_vae(str(tmp_path))


def test_channels_that_differ_are_refused_by_name():
    with pytest.raises(ValueError, match=r"network\.channels \(3\) must equal latents\.channels \(16\)"):
        DecoderConfig(latents=LatentConfig.sd3())
    with pytest.raises(ValueError, match=r"latents\.downscale \(8\)"):
        network = MMDiTConfig(channels=16, patch_size=2)
        DecoderConfig(image_size=72, network=network, latents=LatentConfig.sd3())
