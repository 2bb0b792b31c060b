"""What every benchmark shows of its scores, in the terminal and as a page that needs nothing else."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ddt_apps.evaluation.scores import Scores, shown, value_of
from ddt_apps.pages.report import Metric, metrics, report, section, table

RIGHT, WRONG = "\u2713", "\u2717"
SHOWN = 7  # as many as stand beside one another: right and wrong pictures of each kind

Table = tuple[list[str], list[list[str]]]  # header and rows
Section = tuple[str, str]  # title and HTML, of `ddt_apps.pages.report.section`


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a benchmark shows: few large figures, tables that say more, and charts and pictures."""

    title: str
    intro: str  # what was measured, in a sentence
    metrics: list[Metric]  # a figure or two beside what a trivial method gets, from `against`
    about: str  # how the tables are to be read
    tables: list[Table]
    sections: list[Section]


def against(
    scores: Scores, figure: str, control: str, name: str, baseline_name: str, unit: str, lower: bool = False
) -> Metric:
    """Set a figure of the scores, such as "success.all", beside a control, and the tokenizer if that is one."""
    value, error = value_of(scores.scores, figure)
    baseline, its_error = value_of(scores.controls[control], figure)
    ceiling, _ = value_of(scores.controls.get("tokenizer", {}), figure)
    meaning = "" if ceiling is None else f"{ceiling:.3g} at best, through this tokenizer"
    return Metric(name, value, baseline, baseline_name, unit, meaning, lower, error, its_error)


def side_by_side(rivals: dict[str, dict[str, Any] | None], columns: dict[str, str], digits: int = 1) -> Table:
    """Make a table with a row for each rival that is there, and a column for each figure: its heading and its name."""
    there = {name: figures for name, figures in rivals.items() if figures}
    return ["", *columns], [
        [name, *(shown(figures, figure, digits) for figure in columns.values())] for name, figures in there.items()
    ]


def facts_of(metrics: Iterable[Metric]) -> dict[str, str]:
    """Return figures for the large type at the top of a page."""
    return {metric.name: f"{metric.value:.3g} {metric.unit}" for metric in metrics}


def document(scores: Scores, page: Page, command: str) -> str:
    """Write the page of an evaluation: HTML that needs nothing else."""
    protocol = section(
        "Protocol",
        f"Id {scores.protocol_id}. Scores may be compared only where the id is the same.",
        table(["what", "value"], [[key, str(value)] for key, value in scores.protocol.items()]),
    )
    tables = [metrics(page.metrics), *(table(*each) for each in page.tables)]
    sections = [section("In figures", page.about, *tables), *page.sections, protocol]
    title = f"{scores.model.get('name', 'model')}: {scores.benchmark}"
    return report(title, page.intro, sections, facts_of(page.metrics) | {"protocol": scores.protocol_id}, foot=command)


def chapter(page: Page) -> Section:
    """Put all of a page into one section of another page."""
    tables = [table(*each) for each in page.tables]
    return section(page.title, f"{page.intro} {page.about}", *tables, *page.sections)


def sign(right: bool) -> str:
    """Return the sign of what is right or wrong."""
    return RIGHT if right else WRONG


def marked(right: bool, text: str, why: str = "") -> str:
    """Return a caption that says whether a picture is right, what was asked for or said, and if not, why.

    Example:
        >>> marked(False, "two foxes", "1 fox instead of 2")
        '\u2717 \u201ctwo foxes\u201d: 1 fox instead of 2'
    """
    return f"{sign(right)} \u201c{text}\u201d" + (f": {why}" if why else "")


def spread(rows: Sequence[int], count: int = SHOWN) -> list[int]:
    """Return at most `count` of the rows, evenly spread.

    Example:
        >>> spread(range(10), 3)
        [0, 3, 6]
    """
    return list(rows) if len(rows) <= count else [rows[i * len(rows) // count] for i in range(count)]
