"""Models that come with the package: found by name, small, and of use at once."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddt_tokenizer import DDTTokenizer, LatentConfig
from ddt_tokenizer.cli import main
from ddt_tokenizer.shipped import WEIGHTS, folder_of, shipped

NAME = "ddt-small-64"


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_tokenizer_writes_ids_and_fits_into_a_wheel(name):
    tokenizer = DDTTokenizer.from_pretrained(name)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    ids = tokenizer.encode([picture])
    assert ids.shape == (1, tokenizer.num_tokens) and ids.min() >= 0 and ids.max() < tokenizer.codebook_size
    assert torch.equal(DDTTokenizer.from_pretrained(WEIGHTS / name / "tokenizer").encode([picture]), ids)
    assert LatentConfig.from_vae(f"{name}/vae").channels == tokenizer.config.latents.channels
    assert sum(file.stat().st_size for file in (WEIGHTS / name).rglob("*")) < 25e6
    assert {"README.md", "NOTICE"} <= {file.name for file in (WEIGHTS / name).iterdir()}


def test_a_folder_goes_before_a_name_and_an_unknown_name_tells_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert NAME in shipped() and folder_of(NAME, "tokenizer").is_dir()
    for name in ("ddt-small-65", f"../{NAME}", "weights", "."):
        with pytest.raises(FileNotFoundError, match=rf"config\.json is missing; by name there is: .*{NAME}"):
            DDTTokenizer.from_pretrained(name)
    (tmp_path / NAME).mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        DDTTokenizer.from_pretrained(NAME)


def test_the_command_takes_it_where_none_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 64), "teal").save("photo.jpg")
    main(["encode", "photo.jpg", "--out", "ids.npz"])
    with np.load("ids.npz") as found:
        expected = DDTTokenizer.from_pretrained(NAME).encode(["photo.jpg"])
        np.testing.assert_array_equal(found["ids"], expected)
    main(["info", NAME])
    assert '"space": "ball"' in capsys.readouterr().out


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"install this package with its extra \[vae\]"):
        DDTTokenizer.from_pretrained(NAME).encode(torch.zeros(1, 3, 64, 64))
