"""The network: against diffusers where it has the same part, and what its options promise."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.embeddings import TimestepEmbedding, get_2d_sincos_pos_embed, get_timestep_embedding

from ddt_decoder.attention import JointAttention
from ddt_decoder.mmdit import SD3_SPAN, MMDiT, MMDiTConfig, centre_crop, embedder
from ddt_decoder.patches import from_patches, to_patches
from ddt_decoder.positions import cropped_table, sincos, spread_points

POSITION = {"token_modulation": "position", "qk_norm": False}


def network(num_tokens=6, **changes):
    torch.manual_seed(0)
    shape = {"channels": 4, "patch_size": 2, "width": 32, "depth": 3, "num_heads": 4, "token_width": 5}
    model = MMDiT(MMDiTConfig(**{**shape, **changes}), num_tokens)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_joint_attention_is_that_of_diffusers(qk_norm):
    torch.manual_seed(0)
    ours = JointAttention(32, 4, qk_norm=qk_norm)
    theirs = Attention(
        query_dim=32,
        added_kv_proj_dim=32,
        dim_head=8,
        heads=4,
        out_dim=32,
        bias=True,
        context_pre_only=False,
        qk_norm="rms_norm" if qk_norm else None,
        eps=1e-6,
        processor=JointAttnProcessor2_0(),
    )
    with torch.no_grad():
        for i, (q, k, v, out) in enumerate(
            [
                (theirs.to_q, theirs.to_k, theirs.to_v, theirs.to_out[0]),
                (theirs.add_q_proj, theirs.add_k_proj, theirs.add_v_proj, theirs.to_add_out),
            ]
        ):
            ours.qkv[i].weight.copy_(torch.cat([q.weight, k.weight, v.weight]))
            ours.qkv[i].bias.copy_(torch.cat([q.bias, k.bias, v.bias]))
            ours.out[i].load_state_dict(out.state_dict())
        if qk_norm:
            pairs = [(ours.q_norm[0], theirs.norm_q), (ours.k_norm[0], theirs.norm_k)]
            pairs += [(ours.q_norm[1], theirs.norm_added_q), (ours.k_norm[1], theirs.norm_added_k)]
            for mine, norm in pairs:
                mine.weight.copy_(norm.weight.normal_())
        patches, tokens = torch.randn(2, 9, 32), torch.randn(2, 5, 32)
        for mine, norm in zip(ours(patches, tokens), theirs(patches, encoder_hidden_states=tokens), strict=True):
            assert torch.allclose(mine, norm, atol=1e-5)


def test_time_embedding_is_that_of_diffusers():
    t = torch.rand(50) * 1000
    theirs = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(sincos(t, 256), theirs, atol=1e-5)
    mlp, ours = TimestepEmbedding(256, 32), embedder(32)
    ours[0].load_state_dict(mlp.linear_1.state_dict())
    ours[2].load_state_dict(mlp.linear_2.state_dict())
    assert torch.allclose(ours(theirs), mlp(theirs), atol=1e-5)


def test_position_table_is_filled_as_sd3s_is():
    theirs = get_2d_sincos_pos_embed(16, 192, base_size=64, output_type="pt").float()
    table = cropped_table(192, 192, 192, 16, SD3_SPAN)
    assert torch.allclose(table, theirs, atol=1e-5)
    assert network(table_side=9).patch_table.abs().max() > 0.9


def test_the_middle_of_the_table_is_taken():
    table = torch.arange(36.0).view(36, 1)
    assert centre_crop(table, 2, 4).flatten().tolist() == [13, 14, 15, 16, 19, 20, 21, 22]
    with pytest.raises(ValueError, match=r"table_side \(6\)"):
        centre_crop(table, 2, 7)


def test_cutting_into_patches_is_undone():
    x = torch.randn(2, 4, 6, 10)
    assert torch.equal(from_patches(to_patches(x, 2), (3, 5), 2), x)


OPTIONS = [{}, POSITION, {"tokens_see_patches": False}, {**POSITION, "tokens_see_patches": False, "table_side": 12}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_tokens_do_not_change_a_bit_and_equal_no_tokens(options, dtype):
    model = network(**options).to(dtype)
    x, t, tokens = torch.randn(2, 4, 8, 12, dtype=dtype), torch.rand(2), torch.randn(2, 6, 5, dtype=dtype)
    for count in (0, 1, 4):
        visible = (torch.arange(6) < count).expand(2, -1)
        changed = torch.where(visible[..., None], tokens, 100 * torch.randn_like(tokens))
        with torch.inference_mode():
            masked = model(x, t, tokens, visible)
            assert torch.equal(masked, model(x, t, changed, visible))
            alone = model(x, t, tokens[:, :count])
        tolerance = 1e-5 if dtype == torch.float32 else 0.05 * float(alone.abs().max())
        assert torch.allclose(masked, alone, atol=tolerance)
        assert masked.isfinite().all()


@pytest.mark.parametrize("options", OPTIONS)
def test_tokens_from_the_middle_keep_their_places(options):
    model = network(**options)
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 6, 5)
    visible = ((torch.arange(6) >= 2) & (torch.arange(6) < 5)).expand(2, -1)
    part = model(x, t, tokens[:, 2:5], first=2)
    assert torch.allclose(model(x, t, tokens, visible), part, atol=1e-5)
    assert not torch.allclose(model(x, t, tokens[:, 2:5], first=1), part, atol=1e-3)


def test_tokens_that_do_not_see_patches_and_not_the_time_are_the_same_at_all_times():
    model = network(**POSITION, tokens_see_patches=False, depth=2)
    seen = []
    model.blocks[0].register_forward_hook(lambda block, inputs, outputs: seen.append(outputs[1]))
    tokens = torch.randn(1, 6, 5)
    for t in (0.1, 0.9):
        model(torch.randn(1, 4, 8, 8), torch.tensor([t]), tokens)
    assert torch.equal(*seen)


def test_recomputing_blocks_gives_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        model = network(activation_checkpointing=recompute)
        x = torch.ones(2, 4, 8, 8) * torch.arange(8)
        model(x, torch.tensor([0.3, 0.8]), torch.ones(2, 6, 5)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("open_gates", "value"), [(True, 1.0), (False, 0.0)])
def test_gates_start_open_or_closed(open_gates, value):
    block = MMDiT(MMDiTConfig(width=32, depth=2, num_heads=2, open_gates=open_gates), 4).blocks[0]
    for layer in block.modulation:
        assert (layer.bias.unflatten(0, (6, 32))[[2, 5]] == value).all() and (layer.weight == 0).all()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="token_modulation"):
        MMDiTConfig(token_modulation="index")
    with pytest.raises(ValueError, match="num_heads"):
        MMDiTConfig(width=30)


def test_with_a_start_at_places_a_token_first_changes_the_patches_near_its_place():
    def distance(**settings):
        """How far from its token's place, in patches, the output changes: mean weighted by squared change."""
        torch.manual_seed(0)
        model = MMDiT(MMDiTConfig(patch_size=4, width=64, depth=1, num_heads=2, token_width=5, **settings), 16, (8, 8))
        torch.nn.init.normal_(model.patch_out.weight)
        x, tokens = torch.zeros(1, 3, 32, 32), torch.randn(1, 16, 5)
        rows, columns = torch.meshgrid(*[torch.arange(8) - 3.5] * 2, indexing="ij")
        mean = []
        for k, place in enumerate(spread_points(16, 8, 8)):
            other = tokens.clone()
            other[:, k] += 1
            change = (model(x, torch.ones(1), other) - model(x, torch.ones(1), tokens)).square().sum((0, 1))
            share = change.unfold(0, 4, 4).unfold(1, 4, 4).sum((2, 3))
            away = ((rows - place[0]).square() + (columns - place[1]).square()).sqrt()
            mean.append((away * share).sum() / share.sum())
        return torch.stack(mean).mean()

    with torch.no_grad():
        assert distance(start="grid") < 0.7 * distance()
