"""The schedule k(t): properties, and the published table of Selftok-512."""

import pytest
import torch

from ddt_decoder import FlowConfig, LogitNormalSchedule, TokenSchedule
from ddt_decoder.flow import draw_times, draw_visible, visible_share
from ddt_decoder.seeding import Rows

SELFTOK = (192, 184, 72, 48, 16)
SCHEDULES = [TokenSchedule(segments) for segments in ((8,), (480,), SELFTOK, (0, 5, 3))]
SCHEDULES += [LogitNormalSchedule(16, 0.0, 1.0), LogitNormalSchedule(30, -0.5, 1.5)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_visible_count_grows_from_one_token_to_all(schedule):
    counts = schedule.visible_count(torch.linspace(0, 1, 1001))
    assert (counts.diff() >= 0).all()
    assert counts[0] >= 1 and counts[-1] == schedule.num_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selftok_schedule_has_the_published_counts(dtype):
    schedule = TokenSchedule(SELFTOK)
    t = torch.arange(0, 1001, 100, dtype=dtype) / 1000
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


def test_each_segment_reveals_its_number_of_tokens():
    counts = TokenSchedule(SELFTOK).visible_count(torch.arange(6, dtype=torch.float64) / 5)
    assert counts.diff().tolist() == [192, 184, 72, 48, 15] and SELFTOK[-1] == 16  # the first token is always there


def test_logit_normal_schedule_is_the_formula():
    normal = torch.distributions.Normal(0.3, 0.8)
    t = torch.rand(200, dtype=torch.float64)
    index = (64 * normal.cdf(torch.log(t / (1 - t)))).ceil().clamp(0, 63)
    assert torch.equal(LogitNormalSchedule(64, 0.3, 0.8).visible_count(t), index.long() + 1)
    with pytest.raises(ValueError, match="std"):
        LogitNormalSchedule(4, 0.0, 0.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_token_is_visible_from_its_start_time_on(schedule):
    starts = schedule.start_times()
    assert starts[0] == 0 and (starts.diff() >= 0).all() and (starts < 1).all()
    index = torch.arange(schedule.num_tokens)
    assert (schedule.visible_count((starts + 1e-3).clamp(max=1)) > index).all()
    late = starts > 1e-3
    assert (schedule.visible_count(starts - 1e-3 * late)[late] <= index[late]).all()


def test_selftoks_last_token_is_seen_one_time_in_eighty():
    share = visible_share(TokenSchedule(SELFTOK), FlowConfig())
    assert torch.allclose(1 / share[[0, 192, 511]], torch.tensor([1.0, 1.25, 80.0]))  # ddt-spec 3.6


@pytest.mark.parametrize("schedule", [TokenSchedule((5, 3)), LogitNormalSchedule(8, 0.0, 1.0)])
@pytest.mark.parametrize(
    "flow",
    [
        FlowConfig(token_dropout=0.0),
        FlowConfig(token_dropout=0.0, logit_normal=(0.2, 0.8)),
        FlowConfig(token_dropout=0.0, full_noise_share=0.4, coarse_share=0.5),
        FlowConfig(token_dropout=0.0, full_noise_share=0.2, all_share=0.5),
    ],
)
def test_visible_share_is_how_often_training_shows_a_token(schedule, flow):
    torch.manual_seed(0)
    t = draw_times(rows := Rows.of_batch(200_000), flow)
    seen = draw_visible(rows, t, schedule, flow).float().mean(0)
    assert torch.allclose(seen, visible_share(schedule, flow), atol=5e-3)
