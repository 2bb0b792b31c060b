"""The schedule k(t): properties, and the published table of Selftok-512."""

import pytest
import torch

from ddt_decoder import TokenSchedule


@pytest.mark.parametrize("segments", [(8,), (480,), (192, 184, 72, 48, 16), (0, 5, 3)])
def test_visible_count_grows_from_one_token_to_all(segments):
    schedule = TokenSchedule(segments)
    counts = schedule.visible_count(torch.linspace(0, 1, 1001))
    assert (counts.diff() >= 0).all()
    assert counts[0] >= 1 and counts[-1] == schedule.num_tokens


def test_selftok_schedule_has_the_published_counts():
    schedule = TokenSchedule((192, 184, 72, 48, 16))
    t = torch.arange(0, 1001, 100, dtype=torch.float64) / 1000
    assert schedule.visible_count(t).tolist() == [1, 97, 193, 285, 377, 413, 449, 473, 497, 505, 512]


def test_visible_tokens_are_a_prefix_of_the_counted_length():
    schedule = TokenSchedule((5, 3))
    t = torch.rand(50)
    visible = schedule.visible(t)
    assert torch.equal(visible.sum(1), schedule.visible_count(t))
    assert (visible.int().diff(dim=1) <= 0).all()


def test_an_empty_schedule_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        TokenSchedule((0,))
