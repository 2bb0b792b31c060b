"""Selftok checkpoints: outputs of the public code, on weights that anyone can make again, are reproduced.

`fixtures/selftok.safetensors` holds inputs and outputs of the public code (commit 4695474) at a toy size, and the names
and shapes of its weights. The weights are sines of their index, so they need not be kept.
"""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddt_decoder import DDTDecoder, DDTRenderer
from ddt_decoder.flow import denoise
from ddt_decoder.positions import exact_sincos

FIXTURE = Path(__file__).parent / "fixtures" / "selftok.safetensors"
SCHEDULE = (10, 7, 4, 2, 1)


def waves(shapes):
    """Weights by name: sines of the index, scaled by the fan-in; `position` is that of the name among all."""
    state = {}
    for name, (position, *shape) in shapes.items():
        values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * (1.0 + 0.37 * position)
        scale = 1.4 / shape[-1] ** 0.5 if len(shape) > 1 else 0.3
        state[name] = ((values + 0.11 * position).sin() * scale).float().view(shape)
        if name == "model.context_pos_embed":
            state[name] = exact_sincos(torch.arange(shape[1]) * 8 + 1000, shape[2])[None]
    return state


@pytest.fixture(scope="module")
def public():
    with safe_open(FIXTURE, "pt") as file:
        outputs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return outputs, {kind: waves(json.loads(text)) for kind, text in file.metadata().items()}


@pytest.fixture
def path(public, tmp_path):
    torch.save(public[1]["decoder"], tmp_path / "tokenizer.pth")
    return tmp_path / "tokenizer.pth"


@pytest.fixture
def decoder(path):
    return DDTDecoder.from_selftok(path, schedule=SCHEDULE, image_size=128)


def test_ids_become_the_vectors_of_the_public_code(public, decoder):
    outputs, _ = public
    assert torch.allclose(decoder.embed(outputs["ids"]), outputs["tokens"], atol=1e-5)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_velocities_are_those_of_the_public_code(public, decoder, t):
    outputs, _ = public
    with torch.inference_mode():
        ours = decoder.velocity(outputs["x"], torch.full((2,), t), outputs["tokens"])
    assert torch.allclose(ours, outputs[f"velocity.{t}"], atol=1e-4)
    assert ours.abs().mean() > 0.1


def test_a_sample_of_ten_steps_is_that_of_the_public_code(public, decoder):
    outputs, _ = public

    def velocity(x, t):
        return decoder.velocity(x, t.expand(2), outputs["tokens"])

    with torch.inference_mode():
        *_, sample = denoise(velocity, outputs["noise"], 10)
    assert torch.allclose(sample, outputs["sample"], atol=1e-3)


def test_the_renderer_is_that_of_the_public_code(public, tmp_path):
    outputs, weights = public
    torch.save(weights["renderer"], tmp_path / "renderer.pth")
    renderer = DDTRenderer.from_selftok(tmp_path / "renderer.pth", schedule=SCHEDULE)
    assert renderer.config.image_size == 128
    with torch.inference_mode():
        assert torch.allclose(renderer(outputs["ids"]), outputs["rendered"], atol=1e-4)
    with pytest.raises(ValueError, match=r"DDTRenderer\.from_selftok"):
        DDTDecoder.from_selftok(tmp_path / "renderer.pth", schedule=SCHEDULE)


def test_an_imported_decoder_saves_and_loads(decoder, public, tmp_path):
    outputs, _ = public
    decoder.save_pretrained(tmp_path / "d")
    loaded = DDTDecoder.from_pretrained(tmp_path / "d")
    assert loaded.config == decoder.config
    with torch.inference_mode():
        arguments = outputs["x"], torch.ones(2), outputs["tokens"]
        assert torch.equal(loaded.velocity(*arguments), decoder.velocity(*arguments))


def test_missing_and_unknown_keys_are_named(public, path, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        DDTDecoder.from_selftok(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="24 tokens"):
        DDTDecoder.from_selftok(path)
    state = dict(public[1]["decoder"])
    torch.save({**state, "model.extra.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"no place for: extra\.weight"):
        DDTDecoder.from_selftok(path, schedule=SCHEDULE)
    del state["model.joint_blocks.1.x_block.mlp.fc2.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lacks 'joint_blocks\.1\.x_block\.mlp\.fc2\.bias'"):
        DDTDecoder.from_selftok(path, schedule=SCHEDULE)
    state = dict(public[1]["decoder"])
    state["model.context_pos_embed"] = torch.zeros_like(state["model.context_pos_embed"])
    torch.save(state, path)
    with pytest.raises(ValueError, match="1000"):
        DDTDecoder.from_selftok(path, schedule=SCHEDULE)


@pytest.mark.parametrize("kind", [DDTDecoder, DDTRenderer])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "letters", "a zip", "a pickle in a zip", "old and cut"])
def test_a_damaged_file_is_named_in_one_line(kind, damage, path):
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "old and cut":
            torch.save({"model.a": torch.zeros(999)}, path, _use_new_zipfile_serialization=False)
            path.write_bytes(path.read_bytes()[:-900])
        case "empty" | "text" | "letters":
            path.write_bytes({"empty": b"", "text": b"404: not found\n", "letters": "\u00e9 }q(X\n".encode()}[damage])
        case _:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("readme.txt" if damage == "a zip" else "archive/data.pkl", "no pickle")
    with pytest.raises(
        ValueError, match=r"tokenizer\.pth' cannot be read as a checkpoint \(.+\); fetch it again"
    ) as caught:
        kind.from_selftok(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_named(public, path):
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ValueError, match="is not a Selftok checkpoint: it holds a list"):
        DDTDecoder.from_selftok(path)
    torch.save({**public[1]["decoder"], "model.joint_blocks.0.x_block.attn.proj.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"holds weights of other shapes \(.*attention\.out\.0\.bias") as caught:
        DDTDecoder.from_selftok(path, schedule=SCHEDULE, image_size=128)
    assert "\n" not in str(caught.value)
