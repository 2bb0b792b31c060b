"""What is drawn for the rows of a batch is theirs, however many ranks share it."""

import pytest
import torch

from ddt_tokenizer import seeding
from ddt_tokenizer.seeding import Rows


def drawn(rows, kind):
    torch.manual_seed(3)
    draw = {"noise": lambda: rows.noise(2, 5), "integers": lambda: rows.integers(0, 1000)}.get(kind)
    return draw() if draw else getattr(rows, kind)()


@pytest.mark.parametrize("kind", ["uniform", "normal", "integers", "noise"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_draw_together_what_one_draws(kind, ranks, monkeypatch):
    whole = drawn(Rows.of_batch(12), kind)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(seeding, "num_ranks", lambda: ranks)
        monkeypatch.setattr(seeding, "rank", lambda rank=rank: rank)
        parts.append(drawn(Rows.of_batch(12 // ranks), kind))
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.flatten().unique()) > 10


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_a_share_is_spread_evenly_and_alike_over_ranks(share, groups, monkeypatch):
    rest, chosen = Rows.of_batch(40).spread(share, groups)
    indices = torch.cat([rest.index, *(rows.index for rows in chosen)])
    assert sorted(indices.tolist()) == list(range(40))  # each row is somewhere, once
    assert sum(map(len, chosen)) == int(40 * share + 0.5)
    assert max(map(len, chosen), default=0) - min(map(len, chosen), default=0) <= 1
    monkeypatch.setattr(seeding, "num_ranks", lambda: 4)
    of_all = [[] for _ in chosen]
    for rank in range(4):
        monkeypatch.setattr(seeding, "rank", lambda rank=rank: rank)
        _, here = Rows.of_batch(10).spread(share, groups)
        assert len(here) == len(chosen) and abs(sum(map(len, here)) - 10 * share) <= 1
        for everywhere, rows in zip(of_all, here, strict=True):
            everywhere += (rows.index + 10 * rank).tolist()
    assert of_all == [rows.index.tolist() for rows in chosen]


def test_rows_take_their_part_of_a_batch_and_draw_for_it_alone():
    rest, (few,) = Rows.of_batch(10).spread(0.3, 1)
    batch = torch.arange(20).view(10, 2)
    assert torch.equal(few.take(batch), batch[few.index]) and len(rest) == 7
    torch.manual_seed(0)
    all_numbers = Rows.of_batch(10).uniform()
    torch.manual_seed(0)
    assert torch.equal(few.uniform(), all_numbers[few.index])
