"""The one-step renderer and its trainer."""

import dataclasses
import json
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ddt_decoder import DDTDecoder, DDTRenderer, DecoderConfig, FlowConfig, MMDiTConfig
from ddt_decoder.discriminator import PatchDiscriminator, adversarial_loss, discriminator_loss
from ddt_decoder.perceptual import gradient_difference
from ddt_decoder.renderer_training import RendererTraining, RendererTrainingConfig

NETWORK = MMDiTConfig(patch_size=4, width=32, depth=2, num_heads=2, token_width=6)
QUICK = RendererTrainingConfig(
    second_phase_step=120, lr=4e-3, discriminator_lr=1e-3, warmup_steps=5, discriminator_width=8, discriminator_depth=2
)
FIT = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def build(network=NETWORK, output="x0", fresh=False):
    torch.manual_seed(0)
    flow = FlowConfig(network_output=output)
    decoder = DDTDecoder(DecoderConfig(image_size=16, codebook_size=32, schedule=(8,), network=network, flow=flow))
    for parameter in () if fresh else decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    decoder.set_codebook(torch.randn(32, 6), "abc")
    return decoder.eval()


@pytest.mark.parametrize("output", ["x0", "velocity"])
@pytest.mark.parametrize("network", [NETWORK, dataclasses.replace(NETWORK, table_side=9, token_modulation="position")])
def test_it_starts_as_the_decoders_one_step_from_zero_noise(output, network):
    decoder = build(network, output)
    renderer = DDTRenderer.from_decoder(decoder)
    ids = torch.randint(32, (3, 8))
    zero, t = torch.zeros(3, 3, 16, 16), torch.ones(3)
    with torch.inference_mode():
        wanted = zero - decoder.velocity(zero, t, decoder.embed(ids))
        assert torch.allclose(renderer(ids), wanted, atol=1e-5)
    assert torch.equal(renderer.decode(ids), renderer(ids).clamp(-1, 1))
    assert torch.equal(renderer.decode(ids), renderer.decode(renderer.embed(ids)))


def test_every_weight_of_it_is_used():
    renderer = DDTRenderer.from_decoder(build())
    renderer.render(torch.randint(32, (2, 8))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in renderer.parameters())


@pytest.mark.parametrize("canvas_size", [1, 16])
def test_a_saved_renderer_is_the_same_renderer(tmp_path, canvas_size):
    renderer = DDTRenderer(build().config, canvas_size)
    for parameter in renderer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    renderer.set_codebook(torch.randn(32, 6), "abc")
    renderer.save_pretrained(tmp_path)
    loaded = DDTRenderer.from_pretrained(tmp_path)
    ids = torch.randint(32, (2, 8))
    assert torch.equal(loaded.decode(ids), renderer.decode(ids))
    assert loaded.config == renderer.config and loaded.tokenizer_fingerprint == "abc"
    with pytest.raises(ValueError, match="ddt-decoder"):
        DDTDecoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\[B, 8\]"):
        renderer.decode(torch.zeros(1, 7, dtype=torch.long))


def problem():
    torch.manual_seed(1)
    coarse = torch.rand(8, 3, 4, 4) * 1.6 - 0.8
    images = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    return DataLoader(TensorDataset(torch.randint(32, (8, 8)), images), batch_size=8)


def fit(training, steps, checkpoint=None, **settings):
    trainer = lightning.Trainer(max_steps=steps, max_epochs=-1, **{**FIT, "enable_checkpointing": False, **settings})
    trainer.fit(training, problem(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_it_learns_a_few_images_through_both_phases():
    renderer = DDTRenderer.from_decoder(build(fresh=True))
    training = RendererTraining(renderer, QUICK)
    ids, images = next(iter(problem()))
    start = (renderer.render(ids) - images).square().mean().item()
    before = [parameter.detach().clone() for parameter in training.discriminator.parameters()]
    trainer = fit(training, 120)
    first = (renderer.render(ids) - images).square().mean().item()
    assert trainer.global_step == 120 and first < start / 10
    assert "adversarial" not in trainer.callback_metrics
    unchanged = zip(before, training.discriminator.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in unchanged)

    training = RendererTraining(renderer, dataclasses.replace(QUICK, second_phase_step=0, lr=1e-3))
    before = [parameter.detach().clone() for parameter in training.discriminator.parameters()]
    trainer = fit(training, 40)
    assert trainer.global_step == 40  # steps of the discriminator do not count
    assert {"loss", "mse", "perceptual", "adversarial", "discriminator"} <= set(trainer.callback_metrics)
    changed = zip(before, training.discriminator.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in changed)
    assert (renderer.render(ids) - images).square().mean().item() < start / 4
    assert torch.equal(renderer.codebook, build(fresh=True).codebook)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    config = dataclasses.replace(QUICK, second_phase_step=3)
    whole = RendererTraining(DDTRenderer.from_decoder(build()), config)
    fit(whole, 6)
    half = RendererTraining(DDTRenderer.from_decoder(build()), config)
    fit(half, 4).save_checkpoint(tmp_path / "half.ckpt")
    resumed = RendererTraining(DDTRenderer.from_decoder(build()), config, seed=9)
    fit(resumed, 6, tmp_path / "half.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_losses_are_their_formulas_in_both_phases():
    training = RendererTraining(DDTRenderer.from_decoder(build()), QUICK)
    ids, images = next(iter(problem()))
    mse = (training.renderer.render(ids) - images).square().mean()
    perceptual = gradient_difference(training.renderer.render(ids), images)
    assert torch.allclose(training.losses(ids, images, 119)["loss"], mse + 0.1 * perceptual)
    second = training.eval().losses(ids, images, 120)
    wanted = mse + 0.5 * perceptual + 0.5 * second["adversarial"]
    assert torch.allclose(second["loss"], wanted) and not second["drawn"].requires_grad


def test_the_discriminator_tells_real_from_drawn_after_a_while():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8, depth=2)
    optimizer = torch.optim.AdamW(discriminator.parameters(), 5e-3)
    for _ in range(60):
        real, drawn = torch.rand(8, 3, 16, 16).round() * 2 - 1, torch.rand(8, 3, 16, 16) * 2 - 1
        loss = discriminator_loss(discriminator(real), discriminator(drawn))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert discriminator(real).mean() > 0.3 > -0.3 > discriminator(drawn).mean()
    assert adversarial_loss(discriminator(drawn)) > adversarial_loss(discriminator(real))


def test_blur_costs_more_than_a_shift_of_brightness():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16).round()
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    assert gradient_difference(images, images) == 0
    assert gradient_difference(blurred, images) > 10 * gradient_difference(images + 0.3, images)


def test_scaled_losses_are_refused():
    training = RendererTraining(DDTRenderer.from_decoder(build()), RendererTrainingConfig())
    training._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ValueError, match=r"precision \(16-mixed\) scales the loss; use bf16-mixed or 32-true"):
        training.on_fit_start()


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="first_phase"):
        RendererTrainingConfig(first_phase=(0.1, 0.1))
    with pytest.raises(ValueError, match="warmup_steps"):
        RendererTrainingConfig(warmup_steps=0)


@pytest.mark.parametrize("start", [None, "haar"])
def test_a_prefix_is_drawn_as_a_decoder_would_and_hidden_ids_do_not_count(start):
    decoder = build(dataclasses.replace(NETWORK, start=start))
    renderer = DDTRenderer.from_decoder(decoder, prefixes=True)
    ids = torch.randint(32, (3, 8))
    zero, t = torch.zeros(3, 3, 16, 16), torch.ones(3)
    for count in (0, 1, 3, 8):
        wanted = zero - decoder.velocity(zero, t, decoder.embed(ids), keep_tokens=count)
        torch.testing.assert_close(renderer(ids, count), wanted, atol=1e-4, rtol=1e-4)
        other = ids.clone()
        other[:, : 8 - count] = (other[:, : 8 - count] + 1) % 32
        assert torch.equal(renderer.decode(ids, count), renderer.decode(other, count))
    assert torch.equal(renderer.decode(ids, 8), renderer.decode(ids))
    for count in (-1, 9):
        with pytest.raises(ValueError, match=f"keep_tokens .{count}. must be 0 to 8"):
            renderer.decode(ids, count)


def test_it_says_whether_it_was_taught_prefixes_and_an_older_folder_was_not(tmp_path):
    renderer = DDTRenderer.from_decoder(build(), prefixes=True)
    renderer.save_pretrained(tmp_path)
    assert DDTRenderer.from_pretrained(tmp_path).prefixes
    config = json.loads((tmp_path / "config.json").read_text())
    del config["prefixes"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not DDTRenderer.from_pretrained(tmp_path).prefixes
    (tmp_path / "config.json").write_text(json.dumps(config | {"prefixes": "yes"}))
    with pytest.raises(ValueError, match="prefixes"):
        DDTRenderer.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_prefixes_are_drawn_in_training_and_a_resumed_run_draws_the_same(tmp_path):
    config = dataclasses.replace(QUICK, prefix_share=0.5)

    def module():
        return RendererTraining(DDTRenderer.from_decoder(build(), prefixes=True), config, seed=4)

    drawn, render = [], DDTRenderer.render

    def watched(self, ids, keep_tokens=None):
        drawn.append((len(ids), keep_tokens))
        return render(self, ids, keep_tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DDTRenderer, "render", watched)
        whole = module()
        fit(whole, 6)
    assert [rows for rows, _ in drawn] == [4, 2, 2] * 6
    assert {count for _, count in drawn} <= {None, 1, 2, 4} and len({count for _, count in drawn}) > 2
    fit(module(), 4).save_checkpoint(tmp_path / "half.ckpt")
    resumed = module()
    torch.rand(9)
    fit(resumed, 6, tmp_path / "half.ckpt")
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
