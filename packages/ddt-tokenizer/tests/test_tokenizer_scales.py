"""The start at scales: an orthonormal basis for any grid, coarse to fine, in the encoder and after a change of size."""

import json
from dataclasses import replace

import pytest
import torch

from ddt_tokenizer import EncoderConfig, TokenizerConfig
from ddt_tokenizer.encoder import Encoder
from ddt_tokenizer.scales import haar_tables, on_grid
from ddt_tokenizer.tokenizer import DDTTokenizer

SMALL = EncoderConfig(width=32, num_heads=2, depth=1, final_norm=False, start="haar")
GRIDS = [(8, 8), (4, 6), (5, 7), (1, 9), (7, 1), (16, 16), (1, 1)]


def extent(table):
    """Rows and columns that a table reaches over, as an area."""
    rows, columns = table.abs().sum(1) > 0, table.abs().sum(0) > 0
    return int(rows.sum() * columns.sum())


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_the_tables_are_an_orthonormal_basis_from_fine_to_coarse(height, width):
    tables, deviations = haar_tables(height * width, height, width)
    rows = tables.flatten(1).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(height * width, dtype=torch.float64), atol=1e-6, rtol=0)
    assert tables[-1].std(unbiased=False) < 1e-6  # the coarsest is the mean of all patches
    if height == width:
        areas = [extent(table) for table in tables]
        assert areas == sorted(areas)
    assert deviations.tolist() == sorted(deviations.tolist())


def test_prefixes_of_a_square_grid_are_its_coarser_pictures():
    """1, 4, 16 coarsest tables span what is constant over halves, quarters ... of the grid."""
    tables = haar_tables(64, 8, 8)[0].flatten(1)
    picture = torch.rand(8, 8)
    for count, side in ((1, 1), (4, 2), (16, 4), (64, 8)):
        rows = tables[64 - count :]
        coarse = (rows.T @ (rows @ picture.flatten())).view(8, 8)
        blocks = torch.nn.functional.adaptive_avg_pool2d(picture[None], side)[0]
        assert torch.allclose(coarse, blocks.repeat_interleave(8 // side, 0).repeat_interleave(8 // side, 1), atol=1e-5)


def test_fewer_tokens_leave_out_the_finest_and_more_come_twice():
    whole, _ = haar_tables(64, 8, 8)
    assert torch.equal(haar_tables(20, 8, 8)[0], whole[44:])
    double, _ = haar_tables(128, 8, 8)
    assert torch.equal(double[1::2], whole) and torch.equal(double[::2], whole)
    assert len(haar_tables(100, 8, 8)[0]) == 100 and torch.equal(haar_tables(100, 8, 8)[0][-1], whole[-1])


def test_a_query_begins_as_what_its_table_gathers():
    torch.manual_seed(0)
    encoder = Encoder(replace(SMALL, num_tokens=16), (4, 4))
    encoder.blocks = encoder.blocks[:0]
    image = torch.randn(3, 3, 32, 32)
    plain = encoder(torch.zeros_like(image))
    tables, deviations = haar_tables(16, 4, 4)
    patches = image.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3)  # [B, h, w, C p p]
    gathered = torch.einsum("khw,bhwd->bkd", tables / deviations[:, None, None], patches @ encoder.patch_in.weight.T)
    torch.testing.assert_close(encoder(image) - plain, gathered, atol=1e-4, rtol=1e-4)


def test_another_size_stretches_the_tables():
    """A picture of constant stretches gives the same vectors at twice the patches, before anything is trained."""
    tables = haar_tables(16, 4, 4)[0]
    assert torch.equal(on_grid(tables, 4, 4), tables.flatten(1))
    assert on_grid(tables, 6, 10).shape == (16, 60)
    torch.manual_seed(0)
    encoder = Encoder(replace(SMALL, num_tokens=4), (2, 2))
    encoder.blocks = encoder.blocks[:0]
    flat = torch.full((1, 3, 16, 16), 0.7)
    torch.testing.assert_close(encoder(flat.repeat(1, 1, 2, 3)), encoder(flat), atol=1e-5, rtol=1e-5)


def test_a_start_is_part_of_the_fingerprint_and_of_the_folder(tmp_path):
    def build(**settings):
        torch.manual_seed(0)
        encoder = EncoderConfig(width=32, num_heads=2, num_tokens=16, depth=1, **settings)
        return DDTTokenizer(TokenizerConfig(image_size=32, encoder=encoder))

    haar, grid, anywhere = build(start="haar"), build(start="grid"), build()
    assert len({each.fingerprint() for each in (haar, grid, anywhere)}) == 3
    assert grid.config.identity()["encoder"]["start_grid"] == 4 and "start" not in anywhere.config.identity()["encoder"]
    haar.save_pretrained(tmp_path)
    again = DDTTokenizer.from_pretrained(tmp_path)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.encode(image), haar.eval().encode(image))


def test_a_folder_of_an_earlier_version_keeps_its_start(tmp_path):
    torch.manual_seed(0)
    config = TokenizerConfig(image_size=32, encoder=EncoderConfig(width=32, num_heads=2, num_tokens=16, start="grid"))
    tokenizer = DDTTokenizer(config)
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["encoder"]["start_grid"] = 4
    del written["encoder"]["start"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    again = DDTTokenizer.from_pretrained(tmp_path)
    assert again.config == config and again.fingerprint() == tokenizer.fingerprint()
