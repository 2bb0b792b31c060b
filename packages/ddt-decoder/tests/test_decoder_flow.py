"""The flow: identities of rectified flow, and the samplers on a field whose solution is known."""

import pytest
import torch

from ddt_decoder.flow import (
    FlowConfig,
    coarsest,
    denoise,
    draw_times,
    draw_visible,
    noised,
    scale_gradient,
    shift_time,
)
from ddt_decoder.schedule import TokenSchedule
from ddt_decoder.seeding import Rows


def test_noised_runs_from_image_to_noise():
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(noised(x, noise, torch.zeros(2)), x)
    assert torch.equal(noised(x, noise, torch.ones(2)), noise)


def test_shift_keeps_the_ends_and_favours_noise():
    t = torch.linspace(0, 1, 11)
    shifted = shift_time(t, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert (shifted[1:-1] > t[1:-1]).all()
    assert torch.allclose(shift_time(t, 1.0), t)


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddpm"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_samplers_find_the_image_when_the_field_points_to_it(sampler, num_steps):
    image, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)

    def velocity(x, t):
        s = shift_time(t, 2.0).float()
        return (x - image) / s

    *_, found = denoise(velocity, noise, num_steps, 2.0, sampler, lambda: torch.randn_like(image))
    assert torch.allclose(found, image, atol=1e-5)


def test_heun_is_more_exact_than_euler_on_a_curved_field():
    noise = torch.randn(64, 1, 1, 1)

    def velocity(x, t):  # dx/dt = x, so x(0) = x(1) / e
        return x

    truth = noise / torch.e
    errors = {}
    for sampler in ("euler", "heun"):
        *_, found = denoise(velocity, noise, 10, 1.0, sampler)
        errors[sampler] = (found - truth).abs().mean()
    assert errors["heun"] < errors["euler"] / 3


def test_training_draws_follow_their_shares():
    torch.manual_seed(0)
    flow = FlowConfig(full_noise_share=0.5, coarse_share=0.25, token_dropout=0.1)
    t = draw_times(rows := Rows.of_batch(20_000), flow)
    assert abs((t == 1).float().mean() - 0.5) < 0.02
    schedule = TokenSchedule((8,))
    visible = draw_visible(rows, torch.ones(20_000), schedule, flow)
    assert abs((~visible.any(1)).float().mean() - 0.1) < 0.01
    whole = visible.all(1).float().mean()  # kept whole, or "coarse" with all 8 drawn
    assert abs(whole - 0.9 * (0.75 + 0.25 / 8)) < 0.02
    assert (visible.int().diff(dim=1) >= 0).all()  # at t=1 what is left is always the coarse end


def test_coarsest_marks_the_highest_indices():
    assert coarsest(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [False, True, True]]


def test_logit_normal_times_have_the_asked_distribution():
    torch.manual_seed(0)
    t = draw_times(Rows.of_batch(50_000), FlowConfig(logit_normal=(0.5, 0.8)))
    assert abs(t.logit().mean() - 0.5) < 0.02 and abs(t.logit().std() - 0.8) < 0.02


def test_gradients_are_scaled_and_values_are_not():
    tokens, factor = torch.randn(2, 3, 4, requires_grad=True), torch.tensor([1.0, 2.5, 80.0])
    scaled = scale_gradient(tokens, factor)
    assert torch.equal(scaled, tokens)
    scaled.sum().backward()
    assert torch.equal(tokens.grad, factor[:, None].expand(2, 3, 4))


def test_bad_settings_are_named():
    for settings in ({"prediction": "eps"}, {"network_output": "eps"}, {"coarse_share": 2.0}, {"time_shift": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            FlowConfig(**settings)
    with pytest.raises(ValueError, match="logit_normal"):
        FlowConfig(logit_normal=(0.0, 0.0))
