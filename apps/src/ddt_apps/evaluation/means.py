"""Means of an evaluation, each with its standard error beside it.

A figure `name` has its error as `name_standard_error`, of the same shape where the figure is a dict.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddt_apps.evaluation.scores import ERROR

Figures = dict[str, Any]


def standard_error(values: Sequence[float] | Tensor) -> float | None:
    """Return s / sqrt(n), the standard error of the mean of n independent values; None of a single one.

    Of rights and wrongs it is the binomial one, sqrt(p (1 - p) / (n - 1)).

    Example:
        >>> standard_error([0.0, 100.0, 100.0, 0.0, 100.0])
        24.49489742783178
    """
    if len(values) < 2:
        return None
    each = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    return float(each.std() / len(each) ** 0.5)


def mean_of(name: str, values: Sequence[float] | Tensor) -> Figures:
    """Return the mean of values [N], and its standard error.

    Example:
        >>> mean_of("psnr", [20.0, 22.0])
        {'psnr': 21.0, 'psnr_standard_error': 1.0}
    """
    mean = float(values.mean()) if isinstance(values, Tensor) else sum(values) / len(values)
    return {name: mean, name + ERROR: standard_error(values)}


def ratio_of(name: str, parts: Sequence[float], wholes: Sequence[float]) -> Figures:
    """Return R = sum(parts) / sum(wholes), 0 of nothing, and its standard error by the delta method.

    With r_i = parts_i - R * wholes_i, the error is sqrt(n) * std(r) / sum(wholes).

    Example:
        >>> ratio_of("f1", [1.0, 2.0], [2.0, 2.0])["f1"]
        0.75
    """
    whole = sum(wholes)
    ratio = sum(parts) / whole if whole else 0.0
    error = standard_error([part - ratio * some for part, some in zip(parts, wholes, strict=True)])
    known = whole and error is not None
    return {name: ratio, name + ERROR: error * len(wholes) / whole if known else None}


def by_kind(kinds: Sequence[str], **values: Sequence[float]) -> dict[str, Figures]:
    """Return for each kind, sorted, the means of its rows under the names of `values`, and its `count`."""
    table = {}
    for kind, count in sorted(Counter(kinds).items()):
        rows = [row for row, other in enumerate(kinds) if other == kind]
        table[kind] = {"count": count}
        for name, each in values.items():
            table[kind] |= mean_of(name, [each[row] for row in rows])
    return table
