"""Nested prefixes in training, and tokens that start at scales."""

from dataclasses import replace

import pytest
import torch

from ddt_decoder import DDTDecoder, DecoderConfig, FlowConfig, MMDiTConfig
from ddt_decoder.flow import draw_prefixes, prefix_choices, visible_share
from ddt_decoder.mmdit import MMDiT
from ddt_decoder.scales import haar_tables
from ddt_decoder.seeding import Rows

NETWORK = MMDiTConfig(patch_size=8, width=32, depth=2, num_heads=2, token_width=6)


def build(start=None, **flow):
    torch.manual_seed(0)
    network = replace(NETWORK, start=start)
    return DDTDecoder(
        DecoderConfig(image_size=32, codebook_size=16, schedule=(16,), network=network, flow=FlowConfig(**flow))
    )


def test_hidden_tokens_of_a_start_at_scales_change_nothing():
    network = build("haar").network
    torch.nn.init.normal_(network.patch_out.weight)
    x, t, tokens = torch.randn(2, 3, 32, 32), torch.rand(2), torch.randn(2, 16, 6)
    for first in (0, 5, 15, 16):
        visible = (torch.arange(16) >= first).expand(2, -1)
        other = tokens.clone()
        other[:, :first] = torch.randn(2, first, 6)
        masked = network(x, t, tokens, visible)
        assert torch.equal(masked, network(x, t, other, visible))
        torch.testing.assert_close(masked, network(x, t, tokens[:, first:], first=first), atol=1e-5, rtol=1e-5)


def test_tokens_begin_spread_over_the_patches_of_their_table():
    torch.manual_seed(0)
    network = MMDiT(replace(NETWORK, start="haar"), 16, (4, 4))
    tables, _ = haar_tables(16, 4, 4)
    scales = network.scales.detach()
    for scale, table in zip(scales, tables, strict=True):
        ratio = (scale * table).sum()
        torch.testing.assert_close(scale, ratio * table)
        assert 0 < ratio <= 3
    assert scales.flatten(1).norm(dim=1)[-1] > scales.flatten(1).norm(dim=1)[0]
    assert network(torch.zeros(1, 3, 16, 48), torch.ones(1), torch.zeros(1, 16, 6)).shape == (1, 3, 16, 48)
    with pytest.raises(ValueError, match=r"start=haar needs the grid"):
        MMDiT(replace(NETWORK, start="haar"), 16)


@pytest.mark.parametrize(("tokens", "powers"), [(1, [1]), (3, [1, 2]), (16, [1, 2, 4, 8]), (17, [1, 2, 4, 8, 16])])
def test_prefixes_are_the_powers_of_two_below_all(tokens, powers):
    assert prefix_choices(tokens, FlowConfig()) == powers
    config = FlowConfig(prefix_counts="uniform", prefix_groups=2000)
    drawn = draw_prefixes(tokens, config)
    assert set(drawn) == set(range(1, tokens + 1)) and len(drawn) == 2000


def test_a_group_computes_its_tokens_alone_and_the_loss_is_their_mean(monkeypatch):
    decoder = build(prefix_share=0.5, prefix_groups=2, full_noise_share=1.0, token_dropout=0.0)
    torch.nn.init.normal_(decoder.network.patch_out.weight, std=0.1)
    latents, tokens = torch.randn(8, 3, 32, 32), torch.randn(8, 16, 6)
    called, forward = [], decoder.network.forward

    def seen(x, t, tokens, visible=None, first=0):
        out = forward(x, t, tokens, visible, first)
        called.append((len(x), tokens.shape[1], first, out.detach()))
        return out

    monkeypatch.setattr(decoder.network, "forward", seen)
    torch.manual_seed(1)
    loss = decoder.loss(latents, tokens)
    *groups, rest = called
    assert rest[:3] == (4, 16, 0)
    assert [group[0] for group in groups] == [2, 2]
    assert all(group[1] in (1, 2, 4, 8) and group[2] == 16 - group[1] for group in groups)
    others, chosen = Rows.of_batch(8).spread(0.5, groups=2)
    drawn = torch.cat([groups[0][3], groups[1][3], rest[3]])
    wanted = torch.cat([rows.take(latents) for rows in (*chosen, others)])
    torch.testing.assert_close(loss, (drawn - wanted).square().mean())


def test_without_prefixes_training_is_what_it_was(monkeypatch):
    decoder = build(coarse_share=0.3)
    torch.nn.init.normal_(decoder.network.patch_out.weight, std=0.1)
    latents, tokens = torch.randn(4, 3, 32, 32), torch.randn(4, 16, 6)
    monkeypatch.setattr("ddt_decoder.decoder.draw_prefixes", None)
    torch.manual_seed(1)
    whole = decoder.loss(latents, tokens)
    torch.manual_seed(1)
    assert torch.equal(whole, decoder._flow_errors(Rows.of_batch(4), latents, tokens, decoder.config.flow).mean())


def test_how_often_a_token_is_seen_counts_prefixes():
    config = FlowConfig(prefix_share=0.4, full_noise_share=0.5, token_dropout=0.0, prefix_groups=1)
    decoder = build(**vars(config))
    share = visible_share(decoder.schedule, config)
    counts = torch.zeros(16)
    for n in (1, 2, 4, 8):
        counts[16 - n :] += 0.25
    plain = visible_share(decoder.schedule, replace(config, prefix_share=0.0))
    torch.testing.assert_close(share, 0.4 * counts + 0.6 * plain)


def test_errors_may_count_more_where_there_is_less_noise():
    decoder = build()
    torch.nn.init.normal_(decoder.network.patch_out.weight, std=0.1)
    latents, tokens = torch.randn(4, 3, 32, 32), torch.randn(4, 16, 6)
    flat, weighted = decoder, build(time_power=1.0)
    weighted.load_state_dict(flat.state_dict())
    torch.manual_seed(1)
    errors = flat._flow_errors(Rows.of_batch(4), latents, tokens, flat.config.flow)
    torch.manual_seed(1)
    ratio = weighted._flow_errors(Rows.of_batch(4), latents, tokens, weighted.config.flow) / errors
    torch.manual_seed(1)
    torch.testing.assert_close(ratio, 1 / torch.rand(4).clamp(min=0.1))


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"prefix_share \(0.5\) needs prediction=x0"):
        FlowConfig(prefix_share=0.5, prediction="velocity", network_output="velocity")
    with pytest.raises(ValueError, match=r"time_power \(1.0\) needs prediction=x0"):
        FlowConfig(time_power=1.0, prediction="velocity", network_output="velocity")


@pytest.mark.parametrize(
    "nested", [{"prefix_share": 0.5}, {"coarse_share": 0.7}, {"prefix_share": 0.5, "coarse_share": 1.0}]
)
@pytest.mark.parametrize("reweight", [False, True])
def test_until_nesting_begins_loss_and_gradients_are_those_without(nested, reweight):
    decoder = build("haar", reweight_gradients=reweight, **nested)
    plain = build("haar", reweight_gradients=reweight)
    torch.nn.init.normal_(decoder.network.patch_out.weight)
    plain.load_state_dict(decoder.state_dict())
    latents, tokens = torch.randn(8, 3, 32, 32), torch.randn(8, 16, 6)

    def loss(of, **how):
        torch.manual_seed(3)
        seen = tokens.clone().requires_grad_()
        value = of.loss(latents, seen, **how)
        return value.detach(), *torch.autograd.grad(value, seen)

    assert all(torch.equal(*pair) for pair in zip(loss(decoder, nested=False), loss(plain), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(loss(decoder), loss(plain), strict=True))
