# Copied from packages/ddt-tokenizer/src/ddt_tokenizer/scales.py
"""A start at scales: K tables over a grid of patches, from the whole picture to its details, a Haar basis at first.

Encoder and decoder need them equal: what a query gathers, its token spreads again. Shape letters: K tokens; h, w patch
grid.
"""

from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Start = Literal["haar", "grid"]  # of tokens: at scales, or at places

# Of Haar coefficients of embedded patches, measured on 64 px scenes: the whole picture varies most, then a little less
# with each level of detail (2.53, 0.275, 0.197, 0.145; here 2.5, 0.28, 0.2, 0.14). Training moves them.
WHOLE, DETAILS = 2.5, 0.4


def haar_tables(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Make K tables [K, h, w] of which the last is constant and each before it finer, and how much each varies [K].

    Rectangles of patches are halved both ways, level by level, from the whole grid down to single patches. A
    rectangle gives up to three tables: left against right, top against bottom, and their product (Haar 1910; as in
    wavelet coding, a level's tables of one direction follow one another). They are orthonormal, h * w in all, for any
    grid. Of fewer tokens the finest tables are left out; of more, some tables are given twice.

    Example:
        >>> tables, deviations = haar_tables(4, 2, 2)
        >>> (2 * tables).int().tolist()[::-1]
        [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
        >>> [round(deviation, 2) for deviation in deviations.tolist()[::-1]]
        [2.5, 0.28, 0.28, 0.28]
    """
    tables, levels = [torch.full((height, width), (height * width) ** -0.5, dtype=torch.float64)], [0]
    rectangles, level = [(0, height, 0, width)], 0
    while rectangles:
        level += 1
        halves = [(_halves(top, bottom), _halves(left, right)) for top, bottom, left, right in rectangles]
        for vertical, horizontal in ((False, True), (True, False), (True, True)):
            for rows, columns in halves:
                if len(rows) > vertical and len(columns) > horizontal:
                    table = torch.zeros(height, width, dtype=torch.float64)
                    down, across = _wave(rows, height, vertical), _wave(columns, width, horizontal)
                    tables.append(table + torch.outer(down, across))
                    levels.append(level)
        parts = [(*down, *across) for rows, columns in halves for down, across in product(rows, columns)]
        rectangles = [part for part in parts if part[1] - part[0] > 1 or part[3] - part[2] > 1]
    chosen = [i if count <= len(tables) else i * len(tables) // count for i in range(count)][::-1]
    deviations = [WHOLE if levels[i] == 0 else DETAILS * 2 ** (-levels[i] / 2) for i in chosen]
    return torch.stack([tables[i] for i in chosen]).float(), torch.tensor(deviations)


def _halves(start: int, stop: int) -> list[tuple[int, int]]:
    middle = (start + stop + 1) // 2
    return [(start, middle), (middle, stop)] if stop - start > 1 else [(start, stop)]


def _wave(parts: list[tuple[int, int]], length: int, differs: bool) -> Tensor:
    """One along `parts`, or the first against the second: of unit norm, and then of mean zero."""
    wave = torch.zeros(length, dtype=torch.float64)
    sizes = [stop - start for start, stop in parts]
    for sign, (start, stop), size in zip((1, -1), parts, sizes, strict=False):
        wave[start:stop] = sign / size if differs else 1
    return wave / wave.norm()


def on_grid(tables: Tensor, height: int, width: int) -> Tensor:
    """Stretch tables [K, h, w] over another grid: [K, height * width]; their own is returned as it is."""
    if tables.shape[1:] != (height, width):
        tables = F.interpolate(tables[None], (height, width), mode="bilinear", antialias=True)[0]
    return tables.flatten(1)
