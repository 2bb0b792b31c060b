"""ddt reconstruct with a random tokenizer: its sheet shows what the library draws with the same settings."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio
from typer.testing import CliRunner

from ddt_apps.cli.main import app
from ddt_apps.use import pictures as use_pictures
from ddt_apps.use.sheet import GAP, WORDS, labelled_sheet
from ddt_decoder import DDTDecoder, DecoderConfig, MMDiTConfig
from ddt_tokenizer import DDTTokenizer, EncoderConfig, QuantizerConfig, TokenizerConfig
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_tensor, to_uint8

PICTURES = ["a.png", "b.png", "c.png"]


@pytest.fixture
def codec(tmp_path, monkeypatch):
    """A codec, saved as a run beside three pictures."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    encoder = EncoderConfig(width=32, depth=1, num_heads=2, num_tokens=16)
    quantizer = QuantizerConfig(codebook_size=64, code_width=6)
    tokenizer = DDTTokenizer(TokenizerConfig(image_size=32, encoder=encoder, quantizer=quantizer))
    network = MMDiTConfig(width=32, depth=1, num_heads=2, token_width=6)
    decoder = DDTDecoder(DecoderConfig(image_size=32, codebook_size=64, schedule=(16,), network=network, num_steps=2))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    decoder.set_codebook(tokenizer.embed(torch.arange(64)), tokenizer.fingerprint())
    for name in PICTURES:
        Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()).save(name)
    Codec(tokenizer, decoder).save_pretrained("run")
    return Codec.from_pretrained("run")


@pytest.fixture
def sheet(monkeypatch):
    """Reconstruct the first two pictures: the cells (picture, words) of the sheet's rows, or the error."""
    rows = []
    draw = use_pictures.labelled_sheet
    monkeypatch.setattr(use_pictures, "labelled_sheet", lambda found: rows.append(found) or draw(found))

    def reconstruct(*options):
        arguments = ["reconstruct", *PICTURES[:2], "--tokenizer", "run", "--out", "sheet.png", *map(str, options)]
        result = CliRunner().invoke(app, arguments)
        return result.stderr if result.exit_code else rows.pop()

    return reconstruct


def holds(found, columns):
    pictures = np.stack([[picture for picture, _ in row] for row in found])
    return (pictures == np.stack([to_uint8(column) for column in columns], axis=1)).all()


def pictures():
    return to_tensor([np.array(Image.open(name)) for name in PICTURES])


def test_any_sampler_draws_with_guidance(codec, sheet):
    ids = codec.encode(pictures()[:2])
    for options, settings in (
        ([], {}),
        (["--steps", 3, "--sampler", "ddpm"], {"num_steps": 3, "sampler": "ddpm"}),
        (["--sampler", "heun", "--guidance", 2], {"sampler": "heun", "guidance_scale": 2.0}),
        (["--steps", 3, "--all-ids"], {"num_steps": 3, "all_tokens": True}),
    ):
        parts = [codec.decoder.decode(ids, keep_tokens=n, **settings) for n in (1, 2, 4, 8)]
        whole = codec.decoder.decode(ids, **settings)
        assert holds(sheet(*options), [pictures()[:2], whole, *parts])
        assert torch.equal(whole, codec.decoder.decode(ids)) == (not settings)
    assert "sampler ('hun') must be one of euler, heun, ddpm" in sheet("--sampler", "hun")


def test_a_swap_draws_ids_of_two_pictures_in_one(codec, sheet):
    images = pictures()
    ids, others = codec.encode(images[:2]), codec.encode(images[2:]).expand(2, -1)
    ends = [codec.decode(others), images[2:].expand(2, -1, -1, -1)]
    for options, ranges in (([], [(15, 16), (14, 16), (12, 16), (8, 16)]), (["--swap-range", 2, 9], [(2, 9)])):
        mixed = [codec.decoder.swap(ids, others, *each) for each in ranges]
        assert holds(sheet("--swap", "c.png", *options), [images[:2], codec.decode(ids), *mixed, *ends])
    assert "--swap-range 9 4 must be two of 0 to 16" in sheet("--swap", "c.png", "--swap-range", 9, 4)
    assert "beside --swap" in sheet("--swap-range", 4, 9)


def test_under_each_picture_stands_what_it_is(codec, sheet):
    ids = codec.encode(pictures()[:2])
    rows = sheet("--steps", 3)
    for name, row, original, own in zip(PICTURES, rows, pictures(), ids, strict=False):
        words = [f"{name}"]
        for n, said in ((16, "16 ids"), (1, "1 id"), (2, "2 ids"), (4, "4 ids"), (8, "8 ids")):
            drawn = codec.decode(own[None], keep_tokens=n, num_steps=3)[0]
            near = peak_signal_noise_ratio((drawn + 1) / 2, (original + 1) / 2, data_range=1.0)
            words.append(f"{said}, 3 steps, {near:.1f} dB")
        assert [said for _, said in row] == words
    assert sheet("--all-ids")[0][1][1].startswith("16 ids, 2 steps, all shown, ")
    swapped = [said for _, said in sheet("--swap", "c.png", "--swap-range", 3, 4)[0]]
    assert swapped[0] == "a.png" and swapped[2] == "id 3 of c.png" and swapped[-1] == "c.png"
    assert ", 2 steps, " in swapped[1] and ", 2 steps, " in swapped[-2]  # its decoder's own


@pytest.mark.parametrize("side", [17, 64, 300])
def test_a_sheet_shows_pictures_large_and_smooth(side):
    rng = np.random.default_rng(side)
    rows = [[(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), "x" * 200) for _ in range(3)] for _ in range(2)]
    large = max(256, side)
    found = np.array(labelled_sheet(rows))
    for row, cells in enumerate(rows):
        for column, (picture, _) in enumerate(cells):
            left, top = GAP + column * (large + GAP), GAP + row * (large + WORDS + GAP)
            expected = Image.fromarray(picture).resize((large, large), Image.Resampling.BICUBIC)
            assert (found[top : top + large, left : left + large] == np.array(expected)).all()
            below = found[top + large : top + large + WORDS, left : left + large + GAP]
            assert (below < 128).any() and (below[:, large + 2 : -2] == 255).all()  # words, within the width


def test_the_sheet_is_of_the_kind_that_its_name_says(codec, sheet):
    for ending, kind in ((".jpg", "JPEG"), (".webp", "WEBP"), (".PNG", "PNG")):
        out = f"deep/er/sheet{ending}"
        assert CliRunner().invoke(app, ["reconstruct", "a.png", "--tokenizer", "run", "--out", out]).exit_code == 0
        assert Image.open(out).format == kind


@pytest.mark.parametrize("part", ["tokenizer", "decoder"])
def test_the_folder_of_a_part_stands_for_its_run(codec, part):
    assert Codec.from_pretrained(f"run/{part}").fingerprint == codec.fingerprint
    sheets = []
    for run in ("run", f"run/{part}", f"./run/../run/{part}/"):
        result = CliRunner().invoke(app, ["reconstruct", "a.png", "--tokenizer", run, "--out", "sheet.png"])
        assert result.exit_code == 0
        sheets.append(np.array(Image.open("sheet.png")))
    assert all((each == sheets[0]).all() for each in sheets)
