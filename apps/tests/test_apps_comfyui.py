"""Files for other people's tools that are no part of a package: nodes of ComfyUI, and a notebook."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_serve import tiny_pair

from ddt_tokenizer import Codec

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def nodes():
    spec = importlib.util.spec_from_file_location("ddt_nodes", DOCS / "comfyui/ddt_nodes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(nodes, graph):
    """Run a graph as ComfyUI does: {"name": (node, inputs)}, a link being ["name", output]; all outputs by name.

    It makes a node without arguments, asks its class for inputs, and hands them to the method FUNCTION by name.
    """
    done, kinds = {}, {}
    for name, (kind, inputs) in graph.items():
        node = nodes.NODE_CLASS_MAPPINGS[kind]
        wanted = node.INPUT_TYPES()
        known = wanted["required"] | wanted.get("optional", {})
        assert wanted["required"].keys() <= inputs.keys() <= known.keys()
        values = {}
        for key, value in inputs.items():
            type_, *about = known[key]
            if isinstance(value, list):
                assert kinds[value[0]][value[1]] == type_
                value = done[value[0]][value[1]]
            elif type_ in ("INT", "FLOAT"):
                assert about[0]["min"] <= value <= about[0]["max"]
            values[key] = value
        done[name] = getattr(node(), node.FUNCTION)(**values)
        kinds[name] = node.RETURN_TYPES
        assert isinstance(done[name], tuple) and len(done[name]) == len(node.RETURN_TYPES) and node.CATEGORY == "DDT"
    return done


def test_a_graph_of_comfyui_encodes_swaps_and_draws(nodes, monkeypatch):
    image = torch.rand(2, 96, 64, 3)

    class Given:
        CATEGORY, FUNCTION, RETURN_TYPES = "DDT", "give", ("IMAGE",)
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})

        def give(self):
            return (image,)

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Given", Given)
    done = run(
        nodes,
        {
            "codec": ("DDTLoadCodec", {"codec": "ddt-small-64"}),
            "image": ("Given", {}),
            "ids": ("DDTEncode", {"codec": ["codec", 0], "image": ["image", 0]}),
            "whole": ("DDTDecode", {"codec": ["codec", 0], "ids": ["ids", 0]}),
            "coarse": ("DDTDecode", {"codec": ["codec", 0], "ids": ["ids", 0], "keep_tokens": 4, "steps": 2}),
            "swapped": ("DDTSwap", {"ids": ["ids", 0], "others": ["ids", 0], "start": 8, "stop": 4}),
        },
    )
    codec, (ids,) = Codec.from_pretrained("ddt-small-64"), done["ids"]
    pictures = [Image.fromarray((each * 255).round().byte().numpy()) for each in image]
    assert torch.equal(ids, codec.encode(pictures)) and torch.equal(done["swapped"][0], ids)
    for name, settings in (("whole", {}), ("coarse", {"keep_tokens": 4, "num_steps": 2})):
        (drawn,) = done[name]
        assert drawn.shape == (2, 64, 64, 3) and drawn.min() >= 0 and drawn.max() <= 1
        expected = codec.decode(ids, **settings).clamp(-1, 1)
        torch.testing.assert_close(drawn.movedim(-1, 1) * 2 - 1, expected, atol=1e-5, rtol=0)


def test_a_graph_of_comfyui_draws_a_prompt_and_edits_a_picture(nodes, monkeypatch):
    lm, codec = tiny_pair()
    monkeypatch.setattr(nodes, "load_pair", lambda run, tokenizer: (lm, codec))
    common = {"model": ["both", 0], "codec": ["both", 1], "seed": 3, "guidance": 1.0, "temperature": 0.7}
    done = run(
        nodes,
        {
            "both": ("DDTLoadModel", {"run": "runs/sft"}),
            "drawn": ("DDTGenerate", {**common, "prompt": "a red fox"}),
            "edited": ("DDTGenerate", {**common, "prompt": "make the fox blue", "ids": ["drawn", 1]}),
        },
    )
    first = lm.generate("a red fox", codec, output="image", seed=3, guidance_scale=1.0, temperature=0.7)
    settings = {"output": "image", "seed": 3, "guidance_scale": 1.0, "temperature": 0.7}
    second = lm.generate([first.ids[0], "make the fox blue"], codec, **settings)
    assert torch.equal(done["drawn"][1], first.ids) and torch.equal(done["edited"][1], second.ids)
    assert done["edited"][0].shape == (1, 16, 16, 3)


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook, names = json.loads((DOCS / "notebooks/codec.ipynb").read_text()), {}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), "codec.ipynb", "exec"), names)
    found = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]  # dB from ever more ids
    assert found == sorted(found) and len(found) == 4 and found[-1] > 20
