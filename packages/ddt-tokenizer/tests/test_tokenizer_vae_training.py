"""A small autoencoder: its latents' size, what it learns, and how its folder serves as a latent space."""

import logging

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from ddt_tokenizer import LatentConfig
from ddt_tokenizer.images import psnr
from ddt_tokenizer.latents import LatentSpace
from ddt_tokenizer.optimizer import OptimizerConfig
from ddt_tokenizer.vae_training import VAETraining, build_vae, save_vae, standardise
from ddt_tokenizer.vae_training_config import VAEConfig, VAETrainingConfig

SMALL = VAEConfig(channels=4, downscale=4, width=32, depth=1)


def pictures(count):
    """Two colours each, one above the other."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(count, 3, 2, 1, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(colours, (16, 16))


def train(steps, **settings):
    optimizer = OptimizerConfig(steps=steps, lr=3e-3, optimizer="adamw", warmup_steps=10)
    module = VAETraining(build_vae(SMALL), VAETrainingConfig(optimizer=optimizer, **settings))
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, DataLoader(pictures(8 * steps), batch_size=8))
    return module.vae.eval()


@pytest.mark.parametrize("downscale", [2, 4, 8, 16])
@pytest.mark.parametrize("channels", [3, 8])
def test_latents_have_the_size_that_was_asked_for(downscale, channels):
    vae = build_vae(VAEConfig(channels=channels, downscale=downscale, width=8, depth=1))
    latents = vae.encode(torch.zeros(1, 3, 32, 48)).latents
    assert latents.shape == (1, channels, 32 // downscale, 48 // downscale)
    assert vae.decode(latents).sample.shape == (1, 3, 32, 48)


def test_it_learns_and_its_folder_is_a_latent_space_of_unit_variance(tmp_path, caplog, monkeypatch):
    vae, images = train(250, edges=0.0, noise=0.0), pictures(64)
    with torch.no_grad():
        drawn = vae.decode(vae.encode(images).latents).sample
    mean = images.mean(0, keepdim=True).expand_as(images)
    assert psnr(drawn, images).mean() > psnr(mean, images).mean() + 3
    standardise(vae, images)
    save_vae(vae, tmp_path)
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1  # safetensors' own is private
    config = LatentConfig.from_vae(str(tmp_path))
    assert (config.channels, config.downscale) == (4, 4)
    space = LatentSpace(config)
    caplog.clear()
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    latents = space.encode(images)
    assert not caplog.records
    assert abs(float(latents.mean())) < 1e-3 and abs(float(latents.std()) - 1) < 1e-3
    torch.testing.assert_close(space.decode(latents), drawn, atol=1e-4, rtol=1e-4)


def test_equal_seeds_train_alike():
    one, other = train(3), train(3)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    weights = [build_vae(SMALL, seed).state_dict()["encoder.layers.0.weight"] for seed in (1, 1, 2)]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
