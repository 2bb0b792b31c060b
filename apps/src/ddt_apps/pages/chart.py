"""Line charts as inline SVG, coloured by the page they stand on."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
NUM_COLOURS = 6  # classes c0..c5 of report.css
MAX_POINTS = 300


def line_chart(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    markers: bool = False,
) -> str:
    """Draw curves over common axes.

    Args:
        curves: name -> (xs, ys), each of equal length; at most six curves keep distinct colours, by their order. Points
            that are not finite are left out, and so are curves without any other.
        x_label, y_label: Axis titles.
        markers: Draw a dot at every point; for curves of a few points.

    Returns:
        An `<figure>` with an `<svg>` and a legend.

    Raises:
        ValueError: If there are no finite points, or a curve's xs and ys differ in length.

    Example:
        >>> "polyline" in line_chart({"loss": ([0, 10, 20], [1.0, 0.6, 0.5])}, "step", "loss")
        True
    """
    for name, (xs, ys) in curves.items():
        if len(xs) != len(ys):
            raise ValueError(f"curve {name!r} has {len(xs)} xs and {len(ys)} ys")
    colours = {name: f"c{index % NUM_COLOURS}" for index, name in enumerate(curves)}
    points = {name: [p for p in zip(*curve, strict=True) if _finite(*p)] for name, curve in curves.items()}
    curves = {name: _thin(*zip(*some, strict=True)) for name, some in points.items() if some}
    all_x = [x for xs, _ in curves.values() for x in xs]
    all_y = [y for _, ys in curves.values() for y in ys]
    if not all_x:
        raise ValueError(f"the chart of {y_label} over {x_label} has no point that is finite")
    x_ticks, y_ticks = ticks(min(all_x), max(all_x)), ticks(min(all_y), max(all_y))
    x_low, x_high = min(all_x), max(all_x)
    y_low, y_high = min(y_ticks[0], *all_y), max(y_ticks[-1], *all_y)

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / ((x_high - x_low) or 1)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_low) / ((y_high - y_low) or 1)

    parts = []
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{up(tick) + 4:.1f}">{_number(tick)}</text>'
        )
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 18}">'
                f"{_number(tick)}</text>"
            )
    middle_y, middle_x = TOP + (HEIGHT - TOP - BOTTOM) / 2, LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text class="axis" text-anchor="middle" x="{middle_x}" y="{HEIGHT - 5}">{escape(x_label)}</text>')
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(12 {middle_y}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    legend = []
    for name, (xs, ys) in curves.items():
        colour = colours[name]
        points = [(across(x), up(y)) for x, y in zip(xs, ys, strict=True)]
        parts.append(f'<polyline class="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        if markers or len(points) == 1:
            parts += [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
        legend.append(f'<span><i class="{colour}"></i>{escape(name)}</span>')
    label = escape(f"{y_label} over {x_label}: {', '.join(curves)}", quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    caption = f'<figcaption class="legend">{"".join(legend)}</figcaption>' if len(curves) > 1 else ""
    return f'<figure class="chart">{svg}{caption}</figure>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers that cover an interval, roughly `about` of them.

    Example:
        >>> ticks(0.0, 1000.0)
        [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
    """
    if high <= low:
        return [low]
    rough = (high - low) / about
    if rough < 1e-300:  # where floats end
        return [low, high]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _finite(x: float, y: float) -> bool:
    return abs(x) < 1e300 and abs(y) < 1e300  # beyond, their differences are not


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average long curves in equal groups, so that the page stays small and noise does not hide the trend."""
    size = math.ceil(len(xs) / MAX_POINTS)
    groups = [range(i, min(i + size, len(xs))) for i in range(0, len(xs), size)] if size > 1 else []
    if not groups:
        return list(xs), list(ys)
    return [sum(xs[i] for i in g) / len(g) for g in groups], [sum(ys[i] for i in g) / len(g) for g in groups]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
