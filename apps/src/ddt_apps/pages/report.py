"""A report is one HTML file that needs nothing else: pictures and charts are inside it.

Every function returns a piece of HTML; `report` puts pieces together. A picture is stored at its own size and enlarged
by a whole factor without smoothing.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddt_apps.run.atomic import writing

Picture = NDArray[np.uint8]  # [H, W, 3]
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Metric:
    """One figure beside what a trivial method would get.

    Example:
        >>> Metric("PSNR", 21.0, 13.5, "mean image", "dB").verdict
        'better than'
    """

    name: str
    value: float
    baseline: float
    baseline_name: str  # such as "mean image" or "chance"
    unit: str = ""
    meaning: str = ""  # one sentence for somebody who has never seen it
    lower_is_better: bool = False
    error: float | None = None  # standard error of the value, where it is known
    baseline_error: float | None = None

    @property
    def verdict(self) -> str:
        """How the value compares: better or worse only where they differ by more than one standard error."""
        gain = self.baseline - self.value if self.lower_is_better else self.value - self.baseline
        margin = math.hypot(self.error or 0.0, self.baseline_error or 0.0)
        return "better than" if gain > margin else "worse than" if -gain > margin else "about equal to"


def picture(image: Picture, alt: str, size: int = 128) -> str:
    """Return one `<img>`, enlarged by the largest whole factor that stays within `size` pixels.

    Example:
        >>> picture(np.zeros((32, 32, 3), np.uint8), "a fox", size=100)[:58]
        '<img class="px" width="96" height="96" alt="a fox" src="da'

    Raises:
        ValueError: If it is no picture.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    factor = max(1, size // max(image.shape[:2]))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    height, width = (side * factor for side in image.shape[:2])
    return f'<img class="px" width="{width}" height="{height}" alt="{escape(alt, quote=True)}" src="{source}">'


def grid(pictures: Iterable[tuple[Picture, str]], size: int = 128) -> str:
    """Return pictures with a caption under each, as many a row as fit.

    Example:
        >>> grid([(np.zeros((8, 8, 3), np.uint8), "a red fox")]).count("<figure>")
        1
    """
    cells = (
        f"<figure>{picture(image, caption, size)}<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in pictures
    )
    return f'<div class="grid">{"".join(cells)}</div>'


def strip(rows: Iterable[tuple[str, Sequence[tuple[Picture, str]]]], size: int = 96) -> str:
    """Return rows of labelled pictures, each on one line, such as one from 1, 2, 4 ... tokens: (what it shows, row).

    Example:
        >>> strip([("a fox", [(np.zeros((8, 8, 3), np.uint8), "1 token")])]).count('alt="a fox: 1 token"')
        1
    """
    lines = []
    for name, row in rows:
        cells = (
            f"<figure>{picture(image, f'{name}: {label}', size)}<figcaption>{escape(label)}</figcaption></figure>"
            for image, label in row
        )
        lines.append(f'<div class="strip">{"".join(cells)}</div>')
    return f'<div class="strips">{"".join(lines)}</div>'


def pairs(rows: Iterable[tuple[Picture, str, Picture, Picture | None, str]], size: int = 96) -> str:
    """Return cards of edits: before, what was asked, after, the exact result or None, and what to say of after.

    Example:
        >>> blank = np.zeros((8, 8, 3), np.uint8)
        >>> pairs([(blank, "make the fox blue", blank, None, "drawn")]).count("<img")
        2
    """
    cards = []
    for before, instruction, after, truth, said in rows:
        shown = (
            ("before", before, f"before the edit \u201c{instruction}\u201d"),
            (said, after, f"after the edit \u201c{instruction}\u201d: {said}"),
            ("exact", truth, f"the exact result of \u201c{instruction}\u201d"),
        )
        figures = [
            f"<figure>{picture(image, alt, size)}<figcaption>{escape(name)}</figcaption></figure>"
            for name, image, alt in shown
            if image is not None
        ]
        figures.insert(1, f'<p class="asked"><q>{escape(instruction)}</q><span aria-hidden="true">&#10230;</span></p>')
        cards.append(f'<div class="pair">{"".join(figures)}</div>')
    return f'<div class="pairs">{"".join(cards)}</div>'


def answers(cards: Iterable[tuple[Picture, Sequence[tuple[str, str, str]]]], size: int = 128) -> str:
    """Return pictures with questions about them: (question, answer given, true answer) each.

    Example:
        >>> "no: bell" in answers([(np.zeros((8, 8, 3), np.uint8), [("What is this?", "fox", "bell")])])
        True
    """
    shown = []
    for image, questions in cards:
        lines = []
        for question, answer, truth in questions:
            right = answer.strip().lower() == truth.strip().lower()
            mark = '<b class="right">&#10003;</b>' if right else '<b class="wrong">&#10007;</b>'
            correction = "" if right else f" <small>no: {escape(truth)}</small>"
            lines.append(f"<dt>{escape(question)}</dt><dd>{mark} {escape(answer) or '(nothing)'}{correction}</dd>")
        alt = "the picture of the question " + ", ".join(f"\u201c{question}\u201d" for question, *_ in questions)
        shown.append(f'<div class="card">{picture(image, alt, size)}<dl>{"".join(lines)}</dl></div>')
    return f'<div class="cards">{"".join(shown)}</div>'


def metrics(rows: Iterable[Metric]) -> str:
    """Return a table of figures beside their trivial baselines.

    Example:
        >>> ">better than<" in metrics([Metric("PSNR", 21.0, 13.5, "mean image", "dB")])
        True
    """
    lines = []
    for row in rows:
        colour = {"better than": " yes", "worse than": " no"}.get(row.verdict, "")
        unit = f" <small>{escape(row.unit)}</small>" if row.unit else ""
        meaning = f"<small>{escape(row.meaning)}</small>" if row.meaning else ""
        lines.append(
            f'<tr><th scope="row">{escape(row.name)}{meaning}</th>'
            f'<td class="value" data-of="value"><div>{_with_error(row.value, row.error)}{unit}</div></td>'
            f'<td data-of="which is"><span class="pill{colour}">{row.verdict}</span></td>'
            f'<td data-of="baseline"><div>{_with_error(row.baseline, row.baseline_error)}{unit}'
            f"<small>{escape(row.baseline_name)}</small></div></td></tr>"
        )
    head = "<tr><th>measured on held-out scenes</th><th>value</th><th>which is</th><th>baseline</th></tr>"
    return (
        f'<div class="scroll"><table class="metrics wide"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'
        "</div>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a plain table; numbers are shown with four digits. On a narrow screen each row becomes a list.

    Example:
        >>> table(["stage", "seconds"], [["pack", 3.14159]]).count("<td ")
        2
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = []
    for row in rows:
        cells = (escape(_short(item) if isinstance(item, float) else str(item)) for item in row)
        cells = (cell.replace(" \u00b1 ", "&nbsp;&plusmn;&nbsp;") for cell in cells)
        named = zip(header, cells, strict=True)
        shown = (f'<td data-of="{escape(name, quote=True)}">{cell}</td>' for name, cell in named)
        lines.append(f"<tr>{''.join(shown)}</tr>")
    wide = ' class="wide"' if len(header) > 2 else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table{wide}>{body}</table></div>'


def columns(*pieces: str) -> str:
    """Return pieces beside one another where there is room, such as charts.

    Example:
        >>> columns("a", "b")
        '<div class="columns"><div>a</div><div>b</div></div>'
    """
    return f'<div class="columns">{"".join(f"<div>{piece}</div>" for piece in pieces)}</div>'


def note(text: str) -> str:
    """Return a remark that must not be missed, such as a limit of what is shown.

    Example:
        >>> note("small models")
        '<p class="note">small models</p>'
    """
    return f'<p class="note">{escape(text)}</p>'


def section(title: str, text: str, *pieces: str | tuple[str, str]) -> tuple[str, str]:
    """Return a titled part of the page with a sentence or two that say what is to be seen; for `report`.

    A piece is HTML, or another section, which becomes a part of this one.
    """
    parts = [piece if isinstance(piece, str) else f"<h3>{escape(piece[0])}</h3>{piece[1]}" for piece in pieces]
    return title, "".join([f"<p>{escape(text)}</p>" if text else "", *parts])


def report(
    title: str, intro: str, sections: Sequence[tuple[str, str]], facts: Mapping[str, str] | None = None, foot: str = ""
) -> str:
    """Put sections together to a page.

    Args:
        title, intro: Heading and the paragraph under it.
        sections: From `section`.
        facts: A few figures in large type under the intro: name -> value.
        foot: The command that made the page, and the like.

    Returns:
        The whole HTML document.

    Example:
        >>> page = report("Demo", "Pictures.", [section("Drawn", "From captions.", note("small"))], {"time": "9 min"})
        >>> page.startswith("<!doctype html>") and "http" not in page
        True
    """
    names = [f"part-{number}" for number in range(1, len(sections) + 1)]
    links = "".join(
        f'<a href="#{name}">{escape(heading)}</a>' for name, (heading, _) in zip(names, sections, strict=True)
    )
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>'
        for name, (heading, content) in zip(names, sections, strict=True)
    )
    figures = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in (facts or {}).items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(intro)}</p>'
        f'{f"""<div class="facts">{figures}</div>""" if figures else ""}<nav>{links}</nav></header>'
        f"<main>{body}</main><footer>{escape(foot)}</footer></body></html>\n"
    )


def save_report(path: Path, page: str) -> None:
    """Write the page atomically.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_report(Path(folder) / "report.html", report("Demo", "Nothing yet.", []))
    """
    with writing(path) as file:
        file.write_text(page, encoding="utf-8")


def _with_error(value: float, error: float | None) -> str:
    """The error in two digits, the value to the same place."""
    if not error:
        return _short(value) if error is None else f"{_short(value)} &plusmn; 0"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} &plusmn; {error:.{digits}f}"


def _short(value: float) -> str:
    return f"{value:.4g}"
