"""The decoder: contracts of visibility, seeds and checkpoints."""

import dataclasses
import json

import pytest
import torch

from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig, MMDiTConfig


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    config = DecoderConfig(
        image_size=16,
        codebook_size=32,
        schedule=(5, 3),
        network=MMDiTConfig(patch_size=4, width=32, depth=2, num_heads=2, token_width=6),
        flow=FlowConfig(time_shift=2.0),
    )
    decoder = DDTDecoder(config)
    for parameter in decoder.parameters():  # zero-initialised layers would hide faults
        torch.nn.init.normal_(parameter, std=0.2)
    decoder.set_codebook(torch.randn(32, 6), "abc")
    return decoder.eval()


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddpm"])
def test_a_bf16_decoder_draws_nearly_the_same(decoder, sampler):
    ids = torch.randint(32, (4, 8))
    drawn = decoder.decode(ids, num_steps=3, sampler=sampler)
    again = decoder.to(torch.bfloat16).decode(ids, num_steps=3, sampler=sampler)
    assert again.dtype == torch.float32 and (again - drawn).abs().mean() < 0.05 < drawn.abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_tokens_do_not_change_a_bit(decoder, dtype):
    decoder = decoder.to(dtype)
    x, t, tokens = torch.randn(6, 3, 16, 16, dtype=dtype), torch.linspace(0, 1, 6), torch.randn(6, 8, 6, dtype=dtype)
    hidden = ~decoder.schedule.visible(t)
    changed = torch.where(hidden[..., None], torch.randn(6, 8, 6, dtype=dtype) * 100, tokens)
    assert hidden.any() and not torch.equal(changed, tokens)
    with torch.inference_mode():
        assert torch.equal(decoder.velocity(x, t, tokens), decoder.velocity(x, t, changed))


def test_visible_tokens_do_change_the_output(decoder):
    x, t, tokens = torch.randn(1, 3, 16, 16), torch.ones(1), torch.randn(1, 8, 6)
    for k in range(8):
        changed = tokens.clone()
        changed[:, k] += 1
        assert not torch.allclose(decoder.velocity(x, t, tokens), decoder.velocity(x, t, changed))


def test_hiding_tokens_equals_removing_them(decoder):
    x, t, tokens = torch.randn(2, 3, 16, 16), torch.rand(2), torch.randn(2, 8, 6)
    visible = torch.arange(8) < 5
    masked = decoder.network(x, t, tokens, visible.expand(2, -1))
    removed = decoder.network(x, t, tokens[:, :5], torch.ones(2, 5, dtype=torch.bool))
    assert torch.allclose(masked, removed, atol=1e-5)


def test_ids_and_their_vectors_draw_the_same(decoder):
    ids = torch.randint(32, (3, 8))
    assert torch.equal(decoder.decode(ids, num_steps=3), decoder.decode(decoder.embed(ids), num_steps=3))


def test_an_image_does_not_depend_on_the_others_of_its_batch(decoder):
    ids = torch.randint(32, (3, 8))
    for seed in (5, [5, 6, 7]):
        together = decoder.decode(ids, num_steps=2, seed=seed)
        for i in range(3):
            own = seed if isinstance(seed, int) else seed[i]
            assert torch.allclose(together[i : i + 1], decoder.decode(ids[i : i + 1], 2, seed=own), atol=1e-5)
    assert not torch.allclose(together, decoder.decode(ids, num_steps=2, seed=6), atol=1e-3)


def test_no_kept_token_equals_the_unconditional_drawing(decoder):
    one, other = torch.randint(32, (2, 2, 8)).unbind()
    assert torch.equal(
        decoder.decode(one, num_steps=2, keep_tokens=0), decoder.decode(other, num_steps=2, keep_tokens=0)
    )


def test_kept_tokens_are_those_of_the_coarse_end(decoder):
    ids = torch.randint(32, (1, 8))
    fine = ids.clone()
    fine[:, :5] = (fine[:, :5] + 1) % 32
    assert torch.equal(decoder.decode(ids, 1, keep_tokens=3), decoder.decode(fine, 1, keep_tokens=3))
    assert not torch.equal(decoder.decode(ids, 1), decoder.decode(fine, 1))


def test_guidance_one_is_no_guidance_and_more_goes_further(decoder):
    ids = torch.randint(32, (2, 8))
    plain, blind = decoder.decode(ids, 1), decoder.decode(ids, 1, keep_tokens=0)
    guided = decoder.decode(ids, 1, guidance_scale=2.0)
    inside = (plain.abs() < 0.9) & (blind.abs() < 0.9) & (guided.abs() < 0.99)
    assert torch.allclose((guided - blind)[inside], 2 * (plain - blind)[inside], atol=1e-4)


def test_preview_ends_with_the_whole_image(decoder):
    ids = torch.randint(32, (1, 8))
    previews = dict(decoder.preview(ids))
    assert list(previews) == list(range(1, 9))
    assert torch.equal(previews[8], decoder.decode(ids, num_steps=1))


def test_x0_loss_is_the_time_weighted_velocity_loss(decoder):
    # |x0_hat - x0|^2 = t^2 |v_hat - v|^2 (ddt-spec 2.4), checked through the public velocity.
    x, noise, tokens = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.randn(4, 8, 6)
    t = torch.tensor([0.2, 0.5, 0.9, 1.0])
    s = 2 * t / (1 + t)
    x_t = s.view(-1, 1, 1, 1) * noise + (1 - s.view(-1, 1, 1, 1)) * x
    v = decoder.velocity(x_t, t, tokens)
    clean = x_t - s.view(-1, 1, 1, 1) * v
    left = (clean - x).square().mean(dim=(1, 2, 3))
    right = s.square() * (v - (noise - x)).square().mean(dim=(1, 2, 3))
    assert torch.allclose(left, right, rtol=1e-4)


def test_a_few_images_can_be_learned(decoder):
    torch.manual_seed(0)
    images, tokens = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randn(4, 8, 6)
    flow = FlowConfig(full_noise_share=1.0, token_dropout=0)
    decoder = DDTDecoder(dataclasses.replace(decoder.config, schedule=(8,), flow=flow))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    first = decoder.loss(images, tokens).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = decoder.loss(images, tokens)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 5
    assert all(p.grad is not None for p in decoder.parameters())


def test_a_saved_decoder_is_the_same_decoder(decoder, tmp_path):
    decoder.save_pretrained(tmp_path / "d")
    loaded = DDTDecoder.from_pretrained(tmp_path / "d")
    ids = torch.randint(32, (2, 8))
    assert torch.equal(loaded.decode(ids, 2), decoder.decode(ids, 2))
    assert loaded.config == decoder.config and loaded.tokenizer_fingerprint == "abc"


def test_bad_input_is_named(decoder, tmp_path):
    with pytest.raises(ValueError, match=r"\[B, 8\]"):
        decoder.decode(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="codebook has 32"):
        decoder.decode(torch.full((1, 8), 32))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        DDTDecoder.from_pretrained(tmp_path)
    decoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ValueError, match="format 1"):
        DDTDecoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="divisible by patch_size"):
        DecoderConfig(image_size=30)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sampler": "hun"}, r"sampler \('hun'\) must be one of euler, heun, ddpm"),
        ({"num_steps": 0}, r"num_steps \(0\)"),
        ({"keep_tokens": 9}, "keep_tokens"),
        ({"seed": [1]}, "seed"),
    ],
)
def test_settings_out_of_range_are_named(decoder, settings, named):
    with pytest.raises(ValueError, match=named):
        decoder.decode(torch.zeros(2, 8, dtype=torch.long), **settings)


def test_a_damaged_checkpoint_is_named(decoder, tmp_path):
    decoder.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="damaged"):
        DDTDecoder.from_pretrained(tmp_path)
