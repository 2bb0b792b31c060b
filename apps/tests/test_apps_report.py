"""The report: one file that needs nothing else."""

import base64
import io
import math
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ddt_apps.pages.chart import line_chart, ticks
from ddt_apps.pages.report import (
    Metric,
    answers,
    columns,
    grid,
    metrics,
    note,
    pairs,
    picture,
    report,
    save_report,
    section,
    strip,
    table,
)

VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Fails where a tag is closed that is not the open one."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """`<line/>` opens and closes itself."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page():
    random = np.random.default_rng(0)

    def image():
        return random.integers(0, 256, (32, 32, 3), dtype=np.uint8)

    steps = list(range(0, 3000, 10))
    return report(
        "Demo <1>",
        "Pictures from a few tokens & back.",
        [
            section("Figures", "All of them.", metrics([Metric("PSNR", 20, 14, "mean image", "dB", "Closeness.")])),
            section(
                "Pictures",
                "Below.",
                grid([(image(), "a <red> fox")]),
                strip([("a fox", [(image(), "1"), (image(), "2")])]),
            ),
            section("Edits", "Before and after.", pairs([(image(), 'say "blue"', image(), image(), "drawn")])),
            section("Answers", "Q and A.", answers([(image(), [("What?", "fox", "fox"), ("Colour?", "", "red")])])),
            section(
                "Curves",
                "Loss.",
                columns(
                    line_chart({"a": (steps, [1 / (1 + s) for s in steps]), "b": (steps, [0.5] * 300)}, "step", "loss"),
                    line_chart({"PSNR": ([1, 2, 4], [12.0, 14.0, 17.0])}, "tokens", "dB", markers=True),
                ),
                table(["stage", "seconds"], [["pack", 3.14159]]),
                note("Small models on small data."),
            ),
        ],
        {"tokens": "16"},
        "made by ddt demo",
    )


def test_the_page_needs_nothing_else(page, tmp_path):
    save_report(tmp_path / "deep" / "report.html", page)
    assert (tmp_path / "deep" / "report.html").read_text() == page
    assert "http" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_tags_are_balanced_and_text_is_escaped(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "a &lt;red&gt; fox" in page
    assert "<1>" not in page


def test_wrong_answers_show_the_truth(page):
    assert "no: red" in page
    assert page.count('class="right"') == 1


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        (Metric("a", 2, 1, "x"), True),
        (Metric("a", 1, 1, "x"), False),
        (Metric("a", 1, 2, "x", lower_is_better=True), True),
        (Metric("a", 2, 1, "x", error=0.6, baseline_error=0.7), True),
        (Metric("a", 2, 1, "x", error=0.8, baseline_error=0.7), False),
    ],
)
def test_a_metric_beats_its_baseline_only_if_strictly_better_by_more_than_its_error(metric, better):
    assert (metric.verdict == "better than") is better
    assert metric.verdict != "worse than"


def test_a_metric_below_its_baseline_says_so():
    assert Metric("a", 1, 2, "x", error=0.3).verdict == "worse than"
    assert Metric("a", 1, 2, "x", error=3.0).verdict == "about equal to"
    assert "about equal to" in metrics([Metric("a", 1, 1, "x")])


def test_errors_are_shown_in_two_digits_and_values_to_the_same_place():
    shown = metrics([Metric("a", 12.3456, 0.0, "x", error=0.0234), Metric("b", 61.26, 0.0, "x", error=2.19)])
    assert "12.346 &plusmn; 0.023" in shown and "61.3 &plusmn; 2.2" in shown


def test_what_a_picture_shows_is_said(page):
    said = re.findall(r'alt="([^"]*)"', page)
    assert len(said) == page.count("<img") and "a fox: 2" in said
    assert "the picture of the question \u201cWhat?\u201d, \u201cColour?\u201d" in said
    asked = "\u201csay &quot;blue&quot;\u201d"
    assert {f"before the edit {asked}", f"after the edit {asked}: drawn", f"the exact result of {asked}"} < set(said)


def test_only_pictures_are_shown():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    shown = base64.b64decode(re.search(r"base64,([^\"]*)", picture(array, "noise")).group(1))
    assert (np.asarray(Image.open(io.BytesIO(shown))) == array).all()
    with pytest.raises(ValueError, match=r"not uint8 \[5, 7\]"):
        picture(array[..., 0], "grey")
    with pytest.raises(ValueError, match=r"not float64 \[5, 7, 3\]"):
        picture(array / 255, "floats")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.97), (-3, 2900), (1e-5, 3e-5), (7, 7)])
def test_ticks_cover_the_interval_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high - 1e-12
    assert len(found) <= 8


def test_a_long_curve_is_thinned_and_keeps_its_mean():
    chart = line_chart({"a": (list(range(10_000)), [1.0, 3.0] * 5000)}, "step", "loss")
    points = re.search(r'points="([^"]*)"', chart).group(1).split()
    assert len(points) <= 300
    assert len({point.split(",")[1] for point in points}) == 1


def test_a_chart_without_points_is_refused():
    for curves in ({}, {"a": ([1, 2], [math.nan, math.inf])}):
        with pytest.raises(ValueError, match="the chart of loss over step has no point that is finite"):
            line_chart(curves, "step", "loss")
    with pytest.raises(ValueError, match="'a' has 2 xs and 1 ys"):
        line_chart({"a": ([1, 2], [1])}, "x", "y")


@pytest.mark.parametrize("seed", range(20))
def test_a_chart_leaves_out_what_is_not_finite(seed):
    rng = random.Random(seed)
    ys = [rng.gauss(0, 1) * 10 ** rng.randint(-320, 299) for _ in range(rng.randint(1, 700))]
    ends = [math.nan, math.inf, -math.inf, 1.7e308]
    places = sorted(rng.randrange(len(ys) + 1) for _ in ends)
    mixed = list(ys)
    for place, end in reversed(list(zip(places, ends, strict=True))):
        mixed.insert(place, end)
    xs = {len(some): list(range(len(some))) for some in (ys, mixed)}
    kept = [x for x, y in zip(xs[len(mixed)], mixed, strict=True) if y not in ends[1:] and y == y]
    drawn = line_chart({"loss": (xs[len(mixed)], mixed)}, "step", "loss")
    assert drawn == line_chart({"loss": (kept, ys)}, "step", "loss")
    assert not re.search(r"\b(nan|inf)\b", drawn)


def test_every_cell_of_a_wide_table_names_its_column():
    """A narrow screen shows rows as lists, so a cell stands without its heading."""
    header, rows = ["what <is>", "of seen", "of unseen"], [["a", "b", "c"], ["d", "e", "f"]]
    found = table(header, rows)
    assert re.findall(r'data-of="([^"]*)"', found) == ["what &lt;is&gt;", "of seen", "of unseen"] * 2
    assert 'class="wide"' in found and 'class="wide"' not in table(header[:2], [row[:2] for row in rows])
    figures = metrics([Metric("PSNR", 20, 14, "mean image", "dB")])
    assert re.findall(r'data-of="([^"]*)"', figures) == ["value", "which is", "baseline"]
