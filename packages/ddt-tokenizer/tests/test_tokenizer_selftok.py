"""Selftok checkpoints: outputs of the public code, and an independent slow version of the method.

`selftok.safetensors` was made with the public code on random weights: its state, latents, and what it wrote.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddt_tokenizer import DDTTokenizer

FIXTURE = Path(__file__).parent / "selftok.safetensors"


@pytest.fixture
def public():
    return load_file(FIXTURE)


@pytest.fixture
def state(public):
    return {name: tensor for name, tensor in public.items() if name.startswith("encoder.")}


def save(state, path):
    torch.save(state | {"model.x_embedder.proj.weight": torch.zeros(2)}, path)
    return path


@pytest.fixture
def tokenizer(state, tmp_path):
    return DDTTokenizer.from_selftok(save(state, tmp_path / "tokenizer.pth"), num_heads=4, image_heads=2)


def test_ids_and_tokens_are_those_of_the_public_code(public, tokenizer):
    for i in range(2):  # a square and another shape
        ids = tokenizer.encode_latents(public[f"latents{i}"])
        assert torch.equal(ids, public[f"ids{i}"])
        assert torch.allclose(tokenizer.embed(ids), public[f"tokens{i}"], atol=1e-5)
        assert torch.allclose(tokenizer(public[f"latents{i}"]).tokens, public[f"tokens{i}"], atol=1e-5)


def test_sizes_follow_from_the_tensors(tokenizer):
    encoder, quantizer = tokenizer.config.encoder, tokenizer.config.quantizer
    assert (encoder.depth, encoder.width, encoder.patch_width, encoder.num_tokens, encoder.patch_size) == (
        2,
        16,
        8,
        6,
        2,
    )
    assert (encoder.attention, encoder.query_position, encoder.position_table) == ("one_way", "adaln", 16)
    assert (quantizer.codebook_size, quantizer.code_width, quantizer.replacement) == (32, 8, "position")
    assert (tokenizer.config.image_size, tokenizer.config.latents.channels) == (64, 4)
    assert abs(tokenizer.quantizer.histogram.sum(1) - 1).max() < 1e-5


def test_an_imported_tokenizer_is_saved_and_trained_as_any_other(tokenizer, public, tmp_path):
    tokenizer.save_pretrained(tmp_path / "ours")
    loaded = DDTTokenizer.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.encode_latents(public["latents0"]), public["ids0"])
    quantized = loaded.train()(public["latents0"])
    quantized.loss.backward()
    assert loaded.encoder.queries.grad.any() and loaded.quantizer.codebook.norm(dim=-1).allclose(torch.ones(32))


def test_a_slow_version_from_the_description_agrees(public, state, tokenizer):
    s = {name.removeprefix("encoder."): tensor.double().numpy() for name, tensor in state.items()}
    latents = public["latents1"][0].double().numpy()
    ids, tokens = slow_selftok(s, latents, image_heads=2, query_heads=4, depth=2)
    assert ids == tokenizer.encode_latents(public["latents1"][:1])[0].tolist()
    assert np.abs(tokens - tokenizer.embed(torch.tensor(ids)).numpy()).max() < 1e-5


def slow_selftok(s, latents, image_heads, query_heads, depth):
    """One image, position by position, in float64; s holds the public names."""

    def linear(x, name):
        return np.array([s[f"{name}.weight"] @ row + s[f"{name}.bias"] for row in x])

    def norm(x):
        return np.array([(row - row.mean()) / math.sqrt(row.var() + 1e-6) for row in x])

    def silu(x):
        return x / (1 + np.exp(-x))

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(q, k, v, heads):
        out, size = np.zeros_like(q), q.shape[1] // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for i, query in enumerate(q[:, part]):
                weights = np.array([math.exp(query @ key / math.sqrt(size)) for key in k[:, part]])
                out[i, part] = (weights / weights.sum()) @ v[:, part]
        return out

    # Patches by convolution, plus the middle of the table.
    kernel = s["x_embedder.proj.weight"]
    p, side = kernel.shape[2], round(math.sqrt(s["pos_embed"].shape[1]))
    h, w = latents.shape[1] // p, latents.shape[2] // p
    image = []
    for i in range(h):
        for j in range(w):
            patch = latents[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
            place = ((side - h) // 2 + i) * side + (side - w) // 2 + j
            image.append([(k * patch).sum() for k in kernel] + s["x_embedder.proj.bias"] + s["pos_embed"][0, place])
    x, q = np.array(image), s["query_tokens"][0]

    for b in range(depth):
        block = f"blocks.{b}"
        waves = []
        for k in range(len(q)):
            angles = (1000 + 8 * k) * 10000.0 ** (-np.arange(128) / 128)
            waves.append(np.concatenate([np.cos(angles), np.sin(angles)]))
        place = linear(silu(linear(waves, f"{block}.t_embedder.mlp.0")), f"{block}.t_embedder.mlp.2")
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(
            linear(silu(place), f"{block}.adaLN_modulation.1"), 6, axis=1
        )
        xi, qi = norm(x), norm(q) * (1 + scale1) + shift1
        xq, xk, xv = np.split(linear(xi, f"{block}.attn.qkv"), 3, axis=1)
        qq, qk, qv = np.split(linear(qi, f"{block}.attn.query_linear"), 3, axis=1)
        ik, iv = np.split(linear(xi, f"{block}.attn.to_query_kv"), 2, axis=1)
        x = x + linear(attention(xq, xk, xv, image_heads), f"{block}.attn.proj")
        x = x + linear(gelu(linear(norm(x), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        mixed = attention(qq, np.concatenate([ik, qk]), np.concatenate([iv, qv]), query_heads)
        q = q + gate1 * linear(mixed, f"{block}.attn.query_proj")
        q = q + gate2 * linear(
            gelu(linear(norm(q) * (1 + scale2) + shift2, f"{block}.q_mlp.fc1")), f"{block}.q_mlp.fc2"
        )

    codebook, ids, tokens = s["quantizer._codebook.embed"][0], [], []
    for z in linear(q, "quantizer.project_in"):
        similarities = [code @ z / np.linalg.norm(z) for code in codebook]
        ids.append(int(np.argmax(similarities)))
        tokens.append(norm(codebook[ids[-1]][None])[0] * s["final_layer_norm3.weight"] + s["final_layer_norm3.bias"])
    return ids, np.array(tokens)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s | {"encoder.blocks.0.attn.rope": torch.zeros(1)}, r"unknown: encoder\.blocks\.0\.attn\.rope"),
        (lambda s: {k: v for k, v in s.items() if "blocks.1.attn.query_proj" not in k}, "missing.*blocks.1.out.1"),
        (lambda s: {k: v for k, v in s.items() if "query_tokens" not in k}, "missing.*query_tokens"),
        (lambda s: s | {"vae.weight": torch.zeros(1)}, r"unknown: vae\.weight"),
        (lambda s: {}, "missing"),
        (lambda s: s | {"encoder.pos_embed": s["encoder.pos_embed"] + 1}, "pos_embed is not the sin-cos table"),
        (lambda s: s | {"encoder.final_layer_norm3.bias": torch.zeros(9)}, "another size: quantizer.norm.bias"),
        (lambda s: s | {"encoder.query_tokens": torch.zeros(6, 16)}, "shapes do not go together"),
        (lambda s: {k: v for k, v in s.items() if "q_mlp" not in k}, r"go together .*mlp\.1\.0\.weight"),
    ],
)
def test_other_checkpoints_are_refused_by_name(state, tmp_path, change, named):
    with pytest.raises(ValueError, match=named):
        DDTTokenizer.from_selftok(save(change(state), tmp_path / "t.pth"), num_heads=4, image_heads=2)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        DDTTokenizer.from_selftok(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        DDTTokenizer.from_selftok(tmp_path / "text.pth")
    torch.save({"encoder.code": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        DDTTokenizer.from_selftok(tmp_path / "code.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="it holds a list"):
        DDTTokenizer.from_selftok(tmp_path / "list.pth")


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_file_is_one_line(state, tmp_path, seed):
    """A byte flipped or the end cut off: refused, or read as it was where the byte says nothing."""
    path, rng = save(state, tmp_path / "t.pth"), np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    if seed % 4:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    else:
        del content[rng.integers(len(content)) :]
    path.write_bytes(content)
    try:
        DDTTokenizer.from_selftok(path, num_heads=4, image_heads=2)
    except ValueError as error:
        assert str(path) in str(error) or "sin-cos" in str(error)
        assert "\n" not in str(error)


def test_old_files_that_are_no_zip_are_one_line_too(state, tmp_path):
    """The pickle comes first in them, and the reader believes it."""
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert DDTTokenizer.from_selftok(tmp_path / "old.pth", num_heads=4, image_heads=2).num_tokens == 6
    whole = (tmp_path / "old.pth").read_bytes()
    for place in range(0, 2000, 29):
        (tmp_path / "t.pth").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            DDTTokenizer.from_selftok(tmp_path / "t.pth", num_heads=4, image_heads=2)
        except ValueError as error:
            assert "\n" not in str(error)
