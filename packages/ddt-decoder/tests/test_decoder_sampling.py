"""Drawing: only what is seen is computed, sizes, guidance, swaps; losses of every parameterisation."""

import dataclasses

import pytest
import torch

from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig, MMDiTConfig
from ddt_decoder.flow import denoise, draw_visible, noised
from ddt_decoder.schedule import TokenSchedule
from ddt_decoder.seeding import Rows

NETWORK = MMDiTConfig(patch_size=4, width=32, depth=3, num_heads=2, token_width=6)
POSITION = dataclasses.replace(NETWORK, token_modulation="position", qk_norm=False, table_side=12)


def build(network=NETWORK, **flow):
    torch.manual_seed(0)
    flow = FlowConfig(**flow)
    decoder = DDTDecoder(DecoderConfig(image_size=16, codebook_size=32, schedule=(6, 3, 3), network=network, flow=flow))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    decoder.set_codebook(torch.randn(32, 6), "abc")
    return decoder.eval()


def lengths_of_tokens(decoder):
    """Collect the number of tokens of every network call."""
    lengths = []
    decoder.network.token_in.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    return lengths


@pytest.mark.parametrize("network", [NETWORK, POSITION, dataclasses.replace(POSITION, tokens_see_patches=False)])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("keep", [None, 5])
def test_computing_only_seen_tokens_equals_computing_all_behind_a_mask(network, sampler, keep):
    decoder = build(network, network_output="velocity", time_shift=2.0)
    ids = torch.randint(32, (3, 12))
    noise = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(5))] * 3)
    tokens = decoder.embed(ids)

    def masked(x, t):
        v, blind = (decoder.velocity(x, t.expand(3), tokens, count) for count in (keep, 0))
        return blind + 1.5 * (v - blind)

    with torch.inference_mode():
        *_, wanted = denoise(masked, noise, 8, 2.0, sampler)
    ours = decoder.decode(ids, 8, guidance_scale=1.5, keep_tokens=keep, seed=5, sampler=sampler)
    assert torch.allclose(ours, wanted.clamp(-1, 1), atol=1e-4)


def test_a_step_that_sees_k_tokens_computes_k_tokens():
    decoder = build()
    lengths = lengths_of_tokens(decoder)
    decoder.decode(torch.zeros(1, 12, dtype=torch.long), num_steps=4)
    grid = torch.tensor([1.0, 0.75, 0.5, 0.25])
    assert lengths == decoder.schedule.visible_count(grid).tolist() == [12, 10, 8, 5]
    lengths.clear()
    decoder.decode(torch.zeros(1, 12, dtype=torch.long), num_steps=4, keep_tokens=6, guidance_scale=2.0)
    assert lengths == [6, 0, 4, 0, 2, 0, 0, 0]  # those of the six coarsest that are visible, and guidance's none


@pytest.mark.parametrize(
    ("settings", "num_steps", "calls"),
    [({}, None, 25), ({"full_noise_share": 0.1}, None, 1), ({"full_noise_share": 0.1}, 3, 3), ({}, 2, 2)],
)
def test_a_drawing_takes_the_steps_of_its_config(settings, num_steps, calls, tmp_path):
    decoder = build(**settings)
    decoder.config = dataclasses.replace(decoder.config, num_steps=num_steps)
    decoder.save_pretrained(tmp_path)
    decoder = DDTDecoder.from_pretrained(tmp_path)
    ids, lengths = torch.randint(32, (1, 12)), lengths_of_tokens(decoder)
    drawn = decoder.decode(ids)
    assert len(lengths) == calls == decoder.config.usual_steps
    assert torch.equal(drawn, decoder.decode(ids, num_steps=calls))


def test_hidden_tokens_do_not_change_a_bit_of_a_drawing():
    decoder = build()
    ids, others = torch.randint(32, (2, 2, 12)).unbind()
    others[:, 6:] = ids[:, 6:]
    assert torch.equal(decoder.decode(ids, 5, keep_tokens=6), decoder.decode(others, 5, keep_tokens=6))
    assert not torch.equal(decoder.decode(ids, 5), decoder.decode(others, 5))


def test_nothing_visible_is_the_output_without_any_condition():
    decoder = build()
    x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    null = decoder.network(x, t, torch.zeros(2, 0, 6))
    hidden = decoder.network(x, t, torch.randn(2, 12, 6), torch.zeros(2, 12, dtype=torch.bool))
    assert torch.allclose(hidden, null, atol=1e-5)


def test_guidance_acts_in_its_interval_only():
    decoder = build()
    ids = torch.randint(32, (2, 12))
    lengths = lengths_of_tokens(decoder)
    guided = decoder.decode(ids, 4, guidance_scale=3.0, guidance_interval=(0.3, 0.8))
    assert lengths == [12, 10, 0, 8, 0, 5]
    assert not torch.allclose(guided, decoder.decode(ids, 4), atol=1e-3)
    assert not torch.allclose(guided, decoder.decode(ids, 4, guidance_scale=3.0), atol=1e-3)
    with pytest.raises(ValueError, match="guidance_interval"):
        decoder.decode(ids, guidance_interval=(0.8, 0.3))


def test_all_tokens_are_shown_at_every_step_where_asked_for():
    decoder = build()
    ids, lengths = torch.randint(32, (2, 12)), lengths_of_tokens(decoder)
    drawn = decoder.decode(ids, 4, all_tokens=True, guidance_scale=2.0, guidance_interval=(0.6, 1.0))
    assert lengths == [12, 0, 12, 0, 12, 12]
    assert not torch.allclose(drawn, decoder.decode(ids, 4, guidance_scale=2.0, guidance_interval=(0.6, 1.0)))
    lengths.clear()
    kept = decoder.decode(ids, 3, all_tokens=True, keep_tokens=5)
    assert lengths == [5, 5, 5]
    decoder.schedule = TokenSchedule((12,) + (0,) * 99)  # hides nothing from 1 % of noise on
    assert torch.equal(kept, decoder.decode(ids, 3, keep_tokens=5))


def test_drawing_twice_gives_the_same_and_from_vectors_too():
    decoder = build()
    ids = torch.randint(32, (2, 12))
    for sampler in ("euler", "heun", "ddpm"):
        drawn = decoder.decode(ids, 3, sampler=sampler, seed=[3, 4])
        assert torch.equal(drawn, decoder.decode(decoder.embed(ids), 3, sampler=sampler, seed=[3, 4]))


@pytest.mark.parametrize("sampler", ["euler", "ddpm"])
def test_an_image_depends_on_its_own_seed_alone(sampler):
    decoder = build()
    ids = torch.randint(32, (3, 12))
    together = decoder.decode(ids, 4, seed=[7, 8, 9], sampler=sampler)
    alone = decoder.decode(ids[1:2], 4, seed=8, sampler=sampler)
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("network", [NETWORK, POSITION])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (40, 12)])
def test_any_size_of_whole_patches_is_drawn_and_trained(network, size):
    decoder = build(network)
    images = decoder.decode(torch.zeros(2, 12, dtype=torch.long), num_steps=2, size=size)
    assert images.shape == (2, 3, *size) and images.isfinite().all()
    assert decoder.loss(torch.randn(2, 3, *size), torch.randn(2, 12, 6)).isfinite()


def test_sizes_and_latents_that_do_not_fit_are_named():
    decoder = build(POSITION)
    ids, tokens = torch.zeros(1, 12, dtype=torch.long), torch.randn(1, 12, 6)
    with pytest.raises(ValueError, match=r"size \(10, 16\) must be two multiples of 4"):
        decoder.decode(ids, size=(10, 16))
    with pytest.raises(ValueError, match=r"table_side \(12\)"):
        decoder.decode(ids, size=(16, 64))
    with pytest.raises(ValueError, match=r"\(1, 16, 4, 4\); this decoder takes \[B, 3, h, w\]"):
        decoder.loss(torch.randn(1, 16, 4, 4), tokens)
    with pytest.raises(ValueError, match="divisible by patch_size"):
        decoder.velocity(torch.randn(1, 3, 16, 18), torch.ones(1), tokens)
    with pytest.raises(ValueError, match=r"\[B, 12, 6\]"):
        decoder.loss(torch.randn(1, 3, 16, 16), torch.randn(1, 11, 6))


def test_a_swap_takes_a_range_of_tokens_from_the_other_image():
    decoder = build()
    ids, others = torch.randint(32, (2, 2, 12)).unbind()
    mixed = torch.cat([ids[:, :4], others[:, 4:9], ids[:, 9:]], dim=1)
    assert torch.equal(decoder.swap(ids, others, 4, 9, num_steps=3), decoder.decode(mixed, 3))
    assert torch.equal(decoder.swap(ids, others, 0, 12, num_steps=3), decoder.decode(others, 3))
    assert torch.equal(decoder.swap(ids, others, 5, 5, num_steps=3), decoder.decode(ids, 3))
    with pytest.raises(ValueError, match=r"start \(9\)"):
        decoder.swap(ids, others, 9, 4)


@pytest.mark.parametrize("output", ["x0", "velocity"])
@pytest.mark.parametrize("prediction", ["x0", "velocity"])
def test_every_loss_is_its_formula(output, prediction, monkeypatch):
    decoder = build(network_output=output, prediction=prediction, time_shift=2.0, token_dropout=0.0)
    latents, tokens = torch.randn(4, 3, 16, 16), torch.randn(4, 12, 6)
    t = torch.tensor([0.2, 0.5, 0.9, 1.0])
    noise = torch.randn_like(latents)
    monkeypatch.setattr("ddt_decoder.decoder.draw_times", lambda *_: t)
    monkeypatch.setattr(Rows, "noise", lambda *_: noise)
    s = 2 * t / (1 + t)
    x_t = noised(latents, noise, s)
    v = decoder.velocity(x_t, t, tokens)
    velocity_loss = (v - (noise - latents)).square().mean(dim=(1, 2, 3))
    wanted = velocity_loss if prediction == "velocity" else s.square() * velocity_loss  # ddt-spec 2.4
    assert torch.allclose(decoder.loss(latents, tokens), wanted.mean(), rtol=1e-4)


@pytest.mark.parametrize("output", ["x0", "velocity"])
def test_own_estimates_stand_in_for_the_image_below_pure_noise(output, monkeypatch):
    decoder = build(network_output=output, own_estimates=1.0, token_dropout=0.0)
    latents, tokens = torch.randn(3, 3, 16, 16), torch.randn(3, 12, 6)
    t = torch.tensor([0.2, 0.7, 1.0])
    monkeypatch.setattr("ddt_decoder.decoder.draw_times", lambda *_: t)
    times = []
    decoder.network.register_forward_pre_hook(lambda _, arguments: times.append(arguments[:2]))
    torch.manual_seed(5)
    decoder.loss(latents, tokens).backward()
    (_, first), (x_t, second) = times
    assert torch.equal(first, torch.ones(2)) and torch.equal(second, t)
    torch.manual_seed(5)
    draw_visible(rows := Rows.of_batch(3), t, decoder.schedule, decoder.config.flow)
    noise = rows.noise(3, 16, 16)
    estimate = noise - decoder.velocity(noise, torch.ones(3), tokens)
    assert torch.allclose(x_t, noised(estimate, noise, t), atol=1e-5)
    with pytest.raises(ValueError, match=r"own_estimates \(0.5\) needs prediction=x0"):
        FlowConfig(own_estimates=0.5, prediction="velocity")


def test_reweighting_changes_the_encoders_gradient_and_not_the_loss():
    values, gradients = [], []
    for reweight in (False, True):
        decoder = build(reweight_gradients=reweight, token_dropout=0.0)
        tokens = torch.ones(64, 12, 6, requires_grad=True)
        torch.manual_seed(1)
        loss = decoder.loss(torch.ones(64, 3, 16, 16), tokens)
        loss.backward()
        values.append(loss.detach())
        gradients.append(tokens.grad.sum((0, 2)))
    assert torch.equal(*values)
    ratio = gradients[1] / gradients[0]
    assert torch.allclose(ratio, 1 / (1 - decoder.schedule.start_times()).float(), rtol=1e-4)
