"""The encoder's blocks and positions against diffusers and their own promises."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding

from ddt_tokenizer import Encoder, EncoderConfig, TokenizerConfig
from ddt_tokenizer.attention import IMAGE, QUERIES, EncoderBlock, inside
from ddt_tokenizer.positions import centred_grid, cropped_table, sincos, spread_points, token_positions

FORMS = {
    "joint": {},
    "joint, sin-cos": {"query_position": "sincos", "position_table": 8},
    "joint, adaLN": {"query_position": "adaln", "affine_norms": False},
    "one-way": {"attention": "one_way", "image_width": 16, "image_heads": 4},
    "selftok": {
        **{"attention": "one_way", "image_width": 16, "image_heads": 4, "query_position": "adaln"},
        **{"position_table": 8, "qk_norm": False, "affine_norms": False, "final_norm": False},
    },
    "causal": {"causal": True},
    "one-way, causal": {"attention": "one_way", "image_width": 16, "image_heads": 4, "causal": True},
    "spatial": {"mode": "spatial", "num_tokens": 16},
}


def build(form):
    torch.manual_seed(0)
    settings = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 2, "num_tokens": 5}
    return Encoder(EncoderConfig(**settings | FORMS[form]))


def open_gates(encoder):
    for name, p in encoder.named_parameters():
        if "modulation.out" in name:
            torch.nn.init.normal_(p, std=0.3)
    return encoder


@pytest.mark.parametrize("qk_norm", [True, False])
def test_joint_attention_equals_diffusers(qk_norm):
    torch.manual_seed(0)
    block = EncoderBlock({IMAGE: 32, QUERIES: 32}, {IMAGE: 4, QUERIES: 4}, qk_norm=qk_norm)
    norm = "rms_norm" if qk_norm else None
    theirs = Attention(
        query_dim=32,
        added_kv_proj_dim=32,
        dim_head=8,
        heads=4,
        out_dim=32,
        context_pre_only=False,
        bias=True,
        qk_norm=norm,
        eps=1e-6,
        processor=JointAttnProcessor2_0(),
    )
    state = {}
    for stream, names in ((IMAGE, ("to_q", "to_k", "to_v")), (QUERIES, ("add_q_proj", "add_k_proj", "add_v_proj"))):
        layer = block.qkv[stream]
        for name, weight, bias in zip(names, layer.weight.chunk(3), layer.bias.chunk(3), strict=True):
            state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    for stream, name in ((IMAGE, "to_out.0"), (QUERIES, "to_add_out")):
        state |= {f"{name}.weight": block.out[stream].weight, f"{name}.bias": block.out[stream].bias}
    if qk_norm:
        for ours, stream, name in (
            ("q", IMAGE, "norm_q"),
            ("k", IMAGE, "norm_k"),
            ("q", QUERIES, "norm_added_q"),
            ("k", QUERIES, "norm_added_k"),
        ):
            layer = getattr(block, f"{ours}_norm")[stream]
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            state[f"{name}.weight"] = layer.weight
    theirs.load_state_dict(state)
    image, queries = torch.randn(2, 9, 32), torch.randn(2, 5, 32)
    ours = [block.out[name](x) for name, x in block.mix_jointly({IMAGE: image, QUERIES: queries}).items()]
    for a, b in zip(ours, theirs(image, encoder_hidden_states=queries), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_token_positions_are_embedded_as_timesteps_of_diffusers():
    places = token_positions(512, torch.device("cpu"))
    theirs = get_timestep_embedding(places, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert places[-1] == 1000 + 8 * 511 and torch.allclose(sincos(places, 256), theirs, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (5, 8), (7, 2), (64, 64)])
def test_the_cropped_table_is_the_middle_of_that_of_diffusers(size):
    h, w = size
    whole = torch.as_tensor(get_2d_sincos_pos_embed(32, 64, base_size=64, output_type="pt")).view(64, 64, 32)
    top, left = (64 - h) // 2, (64 - w) // 2
    crop = whole[top : top + h, left : left + w].flatten(0, 1).float()
    assert torch.allclose(cropped_table(h, w, 64, 32), crop, atol=1e-5)


def test_the_centred_grid_of_a_part_is_a_part_of_the_centred_grid():
    cpu = torch.device("cpu")
    whole = centred_grid(8, 6, 32, cpu).view(8, 6, 32)
    assert torch.allclose(centred_grid(4, 2, 32, cpu).view(4, 2, 32), whole[2:6, 2:4], atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_of_any_form_is_trained(form):
    encoder = open_gates(build(form))
    encoder(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("form", [form for form in FORMS if form != "spatial"])
def test_other_sizes_and_shapes_encode(form):
    encoder = build(form)
    for height, width in ((16, 16), (8, 24), (28, 4), (32, 32)):
        assert encoder(torch.randn(2, 3, height, width)).shape == (2, 5, 32)


def test_spatial_ids_are_those_of_patches():
    encoder = build("spatial")
    images = torch.randn(1, 3, 16, 16)
    assert encoder(images).shape == (1, 16, 32)
    with pytest.raises(ValueError, match=r"num_tokens \(16\)"):
        encoder(torch.randn(1, 3, 16, 20))
    # Of a single block without attention, a vector depends on its own patch only.
    torch.nn.init.zeros_(encoder.blocks[0].out[IMAGE].weight)
    encoder.blocks = encoder.blocks[:1]
    changed = images.clone()
    changed[:, :, 4:8, 8:12] += 1  # row 1, column 2
    different = (encoder(images) - encoder(changed)).abs().amax(-1)[0] > 1e-6
    assert different.nonzero().flatten().tolist() == [6]


def test_one_way_images_take_no_notice_of_queries():
    torch.manual_seed(0)
    block = EncoderBlock({IMAGE: 16, QUERIES: 32}, {IMAGE: 4, QUERIES: 2}, one_way=True)
    image, queries = torch.randn(2, 9, 16), torch.randn(2, 5, 32)
    other = torch.randn(2, 5, 32)
    seen = block({IMAGE: image, QUERIES: queries})
    assert torch.equal(seen[IMAGE], block({IMAGE: image, QUERIES: other})[IMAGE])
    moved = block({IMAGE: image + 1e-2 * torch.randn(2, 9, 16), QUERIES: queries})
    assert not torch.allclose(seen[QUERIES], moved[QUERIES])


def test_token_aware_adaln_starts_with_closed_gates():
    encoder = build("selftok")
    assert torch.equal(encoder(torch.randn(1, 3, 16, 16))[0], encoder.queries)


def test_bad_settings_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"image_width \(16\)"):
        EncoderConfig(width=32, num_heads=2, image_width=16)
    with pytest.raises(ValueError, match="mode=spatial has no queries"):
        EncoderConfig(mode="spatial", query_position="adaln")
    with pytest.raises(ValueError, match=r"width \(30\)"):
        EncoderConfig(width=30)
    with pytest.raises(ValueError, match=r"position_table \(8\)"):
        build("selftok")(torch.zeros(1, 3, 16, 36))
    with pytest.raises(ValueError, match=r"patch_size \(4\)"):
        build("joint")(torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        build("joint")(torch.zeros(1, 4, 16, 16))


def test_queries_that_start_at_places_first_read_the_patches_near_their_place():
    def distance(**settings):
        """How far from its place, in patches, what moves a query lies: mean weighted by squared gradients."""
        torch.manual_seed(0)
        encoder = Encoder(
            EncoderConfig(patch_size=4, width=64, depth=1, num_heads=2, num_tokens=16, **settings), (8, 8)
        )
        pictures = torch.randn(4, 3, 32, 32, requires_grad=True)
        vectors = encoder(pictures)
        rows, columns = torch.meshgrid(*[torch.arange(8) - 3.5] * 2, indexing="ij")
        mean = []
        for k, place in enumerate(spread_points(16, 8, 8)):
            (gradient,) = torch.autograd.grad(vectors[:, k].square().sum(), pictures, retain_graph=True)
            share = gradient.square().sum((0, 1)).unfold(0, 4, 4).unfold(1, 4, 4).sum((2, 3))
            away = ((rows - place[0]).square() + (columns - place[1]).square()).sqrt()
            mean.append((away * share).sum() / share.sum())
        return torch.stack(mean).mean()

    assert distance(start="grid") < 0.6 * distance()


def test_a_start_fits_the_rest():
    with pytest.raises(ValueError, match=r"start \(haar\) needs attention=joint"):
        EncoderConfig(**FORMS["one-way"], start="haar")
    with pytest.raises(ValueError, match=r"mode=spatial has no queries to start at scales"):
        EncoderConfig(**FORMS["spatial"], start="haar")
    with pytest.raises(ValueError, match=r"start=haar needs the grid of patches"):
        Encoder(EncoderConfig(start="haar"))
    with pytest.raises(ValueError, match=r"num_tokens \(16\) must be the number of patches"):
        TokenizerConfig(image_size=48, encoder=EncoderConfig(**FORMS["spatial"], start="grid"))


def test_a_grid_of_patches_is_refused_in_the_same_words_by_config_and_encoder():
    for settings, size, other, named in (
        ({"position_table": 4}, 16, 24, r"has 6 x 6 patches, more a side than position_table \(4\)"),
        ({"mode": "spatial", "num_tokens": 16}, 16, 24, r"has 6 x 6 patches, .*made for: num_tokens \(16\)"),
    ):
        encoder = EncoderConfig(patch_size=4, width=32, num_heads=2, **settings)
        assert TokenizerConfig(image_size=size, encoder=encoder).encoder == encoder
        with pytest.raises(ValueError, match=named):
            TokenizerConfig(image_size=other, encoder=encoder)
        with pytest.raises(ValueError, match=named):
            Encoder(encoder)(torch.zeros(1, 3, other, other))
    with pytest.raises(ValueError, match=r"has 8 x 2 patches, .*made for: 4 x 4"):  # as many, but no square
        spatial = EncoderConfig(patch_size=4, mode="spatial", num_tokens=16, start="grid")
        Encoder(spatial, (4, 4))(torch.zeros(1, 3, 32, 8))


@pytest.mark.parametrize(
    ("form", "start"),
    [
        *((form, None) for form in ("joint", "one-way", "causal", "one-way, causal")),
        ("joint", "haar"),
        ("causal", "haar"),
    ],
)
def test_a_causal_query_depends_on_coarser_ones_alone(form, start):
    torch.manual_seed(0)
    settings = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 2, "num_tokens": 5, "start": start}
    encoder = Encoder(EncoderConfig(**settings | FORMS[form]), grid=(4, 4))
    image = torch.randn(1, 3, 16, 16)
    before = encoder(image)
    with torch.no_grad():
        encoder.queries[2] += 1
    changed = [not torch.equal(*pair) for pair in zip(before[0], encoder(image)[0], strict=True)]
    assert changed == ([True, True, True, False, False] if "causal" in form else [True] * 5)


def test_spatial_ids_have_no_causal_queries():
    with pytest.raises(ValueError, match="causal=false"):
        EncoderConfig(mode="spatial", causal=True)


@pytest.mark.parametrize(("grid", "count"), [((4, 4), 16), ((2, 6), 8), ((5, 3), 20)])
def test_a_local_query_knows_of_nothing_outside_its_table(grid, count):
    torch.manual_seed(0)
    config = EncoderConfig(patch_size=2, width=16, depth=3, num_heads=2, num_tokens=count, start="haar", local=True)
    encoder, (covered, _) = Encoder(config, grid), inside(count, *grid)
    with torch.no_grad():  # as after training
        encoder.scales.add_(torch.randn_like(encoder.scales))
    latents = torch.randn(1, 3, 2 * grid[0], 2 * grid[1], requires_grad=True)
    vectors = encoder(latents)
    for query, vector in enumerate(vectors[0]):
        (slope,) = torch.autograd.grad((vector * torch.randn(16)).sum(), latents, retain_graph=True)
        seen = slope[0].abs().sum(0).unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).sum((1, 3)) > 0
        assert torch.equal(seen.flatten(), covered[query])


def test_a_local_query_has_a_table_and_nothing_coarser_to_see():
    encoder = EncoderConfig(start="haar", local=True)
    for settings in ({"start": None}, {"start": "grid"}, {"causal": True}):
        with pytest.raises(ValueError, match=r"encoder.local \(True\) needs start=haar, not .*, and causal=false"):
            TokenizerConfig(image_size=64, encoder=replace(encoder, **settings))
