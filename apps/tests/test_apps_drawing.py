"""Many pictures of one command, and JSON for scripts, with random models."""

import json
import random
import string

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.use import drawing
from ddt_apps.use.drawing import read_prompts
from ddt_decoder import DDTDecoder, DecoderConfig
from ddt_llm import MultimodalLM, TinyLlamaConfig, expand_vocabulary, tiny_llama, train_text_tokenizer
from ddt_tokenizer import DDTTokenizer, TokenizerConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import psnr, to_tensor

PROMPTS = ["a red fox", "two bells", "a house"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a random tokenizer and of random language models, and a picture."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    tokenizer, decoder = DDTTokenizer(TokenizerConfig.tiny()).eval(), DDTDecoder(DecoderConfig.tiny())
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    decoder.set_codebook(tokenizer.embed(torch.arange(tokenizer.codebook_size)), tokenizer.fingerprint())
    Codec(tokenizer, decoder).save_pretrained(folder / "tokenizer")
    text = train_text_tokenizer(PROMPTS, 300)
    backbone = tiny_llama(TinyLlamaConfig(width=32, depth=1, num_heads=2), text, seed=0)
    sizes = {"codebook_size": tokenizer.codebook_size, "num_tokens": tokenizer.num_tokens}
    model, text = expand_vocabulary(backbone, text, **sizes)
    for name, template in (("pretrain", "caption"), ("sft", "instruction")):
        MultimodalLM(model, text, template, tokenizer.fingerprint()).save_pretrained(folder / name / "model")
    Image.fromarray(np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / "fox.png")
    return folder


@pytest.fixture
def ddt(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(verb, *arguments, model="pretrain"):
        given = ["--model", str(runs / model)] if model else []
        result = CliRunner().invoke(app, [verb, *map(str, arguments), *given])
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"), int)


def test_each_of_many_pictures_is_drawn_again_by_its_own_seed(ddt, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    many = ["--prompts", "prompts.txt", "-n", 2, "--seed", 5, "--batch-size", 4, "--out", "many.png", "--json"]
    found = ddt("generate", *many)
    assert [each["prompt"] for each in found] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [each["seed"] for each in found] == list(range(5, 11))
    assert [each["out"] for each in found] == [f"many-00{i}.png" for i in range(1, 7)]
    assert len({tuple(each["ids"]) for each in found}) == 6
    for each in (found[0], found[5]):
        (again,) = ddt("generate", each["prompt"], "--seed", each["seed"], "--out", "one.png", "--json")
        assert again == {**each, "out": "one.png"}
        assert np.abs(pixels("one.png") - pixels(each["out"])).max() <= 1
    assert ddt("generate", *many[:-1]) == []  # says nothing where nobody asks


@pytest.mark.parametrize(
    ("prompts", "count", "shape", "words"),
    [
        (1, 5, [3, 2], "seed 0, seed 1, seed 2, seed 3, seed 4"),
        (3, 2, [2, 2, 2], "a red fox, a red fox, two bells, two bells, a house, a house"),
        (3, 1, [2, 1], "a red fox, two bells, a house"),
    ],
)
def test_a_grid_is_one_sheet(ddt, tmp_path, monkeypatch, prompts, count, shape, words):
    sheets, draw = [], drawing.labelled_sheet
    monkeypatch.setattr(drawing, "labelled_sheet", lambda rows: sheets.append(rows) or draw(rows))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:prompts]))
    arguments = ["--prompts", "prompts.txt", "-n", count, "--out", "all.png", "--batch-size", 2]
    found = ddt("generate", *arguments, "--grid", "--json")
    assert {each["out"] for each in found} == {"all.png"} and {file.name for file in tmp_path.iterdir()} == {
        "prompts.txt",
        "all.png",
    }
    assert [len(row) for row in sheets[0]] == shape
    assert ", ".join(said for row in sheets[0] for _, said in row) == words
    ddt("generate", *arguments)
    small = [picture for row in sheets[0] for picture, _ in row]
    large = [pixels(file) for file in sorted(tmp_path.glob("all-*.png"))]
    assert all((a.repeat(8, 0).repeat(8, 1) == b).all() for a, b in zip(small, large, strict=True))


def test_a_sketch_is_kept_in_every_picture(ddt, runs):
    picture = runs / "fox.png"
    ids = Codec.from_pretrained(runs / "tokenizer").encode([picture])[0].tolist()
    found = ddt("generate", "a fox", "-n", 2, "--sketch", picture, "--keep", 3, "--out", "a.png", "--json")
    assert all(each["ids"][-3:] == ids[-3:] for each in found)


def test_any_lines_are_prompts(tmp_path):
    rng, file = random.Random(0), tmp_path / "prompts.txt"
    for _ in range(200):
        lines = ["".join(rng.choices(string.ascii_letters + "  äß🦊", k=rng.randrange(9))) for _ in range(5)]
        file.write_text(
            rng.choice(["\n", "\r\n"]).join([*lines, "end"]), rng.choice(["utf-8", "utf-8-sig"]), newline=""
        )
        assert read_prompts(file) == [line.strip() for line in [*lines, "end"] if line.strip()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to draw: either a PROMPT or --prompts FILE"),
        (["a fox", "--prompts", "empty"], "say what to draw: either a PROMPT or --prompts FILE"),
        (["--prompts", "empty"], "--prompts 'empty' holds no prompt; write one a line"),
        (["--prompts", "binary"], "--prompts 'binary' is no text in UTF-8"),
        (["--prompts", "none"], "none: No such file or directory"),
        (["a fox", "-n", "0"], "--count 0 must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_a_model_is_loaded(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    result = CliRunner().invoke(app, ["generate", *arguments, "--model", "nowhere", "--out", "a.png"])
    assert (result.exit_code, result.stderr) == (2, f"error: {said}\n")


def test_verbs_on_a_picture_tell_scripts_what_they_found(ddt, runs):
    picture, codec = runs / "fox.png", Codec.from_pretrained(runs / "tokenizer")
    (found,) = ddt("reconstruct", picture, "--tokenizer", runs / "tokenizer", "--out", "a.png", "--json", model=None)
    ids = codec.encode([picture])
    near = psnr(codec.decode(ids), to_tensor([pixels(picture).astype(np.uint8)])).item()
    assert found == {"image": str(picture), "ids": ids[0].tolist(), "psnr": pytest.approx(near), "out": "a.png"}
    (found,) = ddt("edit", picture, "make it blue", "--out", "b.png", "--json", model="sft")
    assert len(found.pop("ids")) == codec.num_tokens and pixels(found.pop("out")).shape == (256, 256, 3)
    assert found == {"image": str(picture), "instruction": "make it blue", "seed": 0}
    (found,) = ddt("ask", picture, "what?", "--json", model="sft")
    assert isinstance(found.pop("answer"), str) and found == {"image": str(picture), "question": "what?"}
    (found,) = ddt("caption", picture, "--json")
    assert isinstance(found.pop("caption"), str) and found == {"image": str(picture)}
