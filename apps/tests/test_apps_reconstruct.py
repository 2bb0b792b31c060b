"""ddt reconstruct with a random tokenizer: its sheet holds what the library draws with the same settings."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ddt_apps.cli.main import app
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


def sheet(*options):
    """Reconstruct the first two pictures: the sheet as [rows, columns, 32, 32, 3], or the error."""
    arguments = ["reconstruct", *PICTURES[:2], "--tokenizer", "run", "--out", "sheet.png", *map(str, options)]
    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        return result.stderr
    drawn = np.array(Image.open("sheet.png"))[::4, ::4]  # two rows of 32 px are enlarged to 256
    return torch.from_numpy(drawn.copy()).unflatten(0, (2, 32)).unflatten(2, (-1, 32)).transpose(1, 2)


def holds(found, columns):
    return torch.equal(found, torch.from_numpy(np.stack([to_uint8(column) for column in columns], axis=1)))


def pictures():
    return to_tensor([np.array(Image.open(name)) for name in PICTURES])


def test_any_sampler_draws_with_guidance(codec):
    ids = codec.encode(pictures()[:2])
    for options, settings in (
        ([], {}),
        (["--steps", 3, "--sampler", "ddpm"], {"num_steps": 3, "sampler": "ddpm"}),
        (["--sampler", "heun", "--guidance", 2], {"sampler": "heun", "guidance_scale": 2.0}),
    ):
        parts = [codec.decoder.decode(ids, keep_tokens=n, **settings) for n in (1, 2, 4, 8)]
        whole = codec.decoder.decode(ids, **settings)
        assert holds(sheet(*options), [pictures()[:2], whole, *parts])
        assert torch.equal(whole, codec.decoder.decode(ids)) == (not settings)
    assert "sampler ('hun') must be one of euler, heun, ddpm" in sheet("--sampler", "hun")


def test_a_swap_draws_ids_of_two_pictures_in_one(codec):
    images = pictures()
    ids, others = codec.encode(images[:2]), codec.encode(images[2:]).expand(2, -1)
    ends = [codec.decode(others), images[2:].expand(2, -1, -1, -1)]
    for options, ranges in (([], [(15, 16), (14, 16), (12, 16), (8, 16)]), (["--swap-range", 2, 9], [(2, 9)])):
        mixed = [codec.decoder.swap(ids, others, *each) for each in ranges]
        assert holds(sheet("--swap", "c.png", *options), [images[:2], codec.decode(ids), *mixed, *ends])
    assert "--swap-range 9 4 must be two of 0 to 16" in sheet("--swap", "c.png", "--swap-range", 9, 4)
    assert "beside --swap" in sheet("--swap-range", 4, 9)
