"""Packing: several examples in one row, each blind to the others.

Shape letters: B rows, L row length.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from ddt_llm.sequences import IGNORED, Example, collate


def pack(examples: Sequence[Example], row_length: int) -> list[list[Example]]:
    """Distribute examples over few rows, as evenly as possible.

    The longest example comes first, each goes into the row with the most room. Rows are later padded to the longest of
    them, not to `row_length`: so eight numbers of rows are tried, from the least that holds all, and the one with the
    least padding is taken.

    Raises:
        ValueError: If an example is longer than a row.

    Example:
        >>> rows = pack([Example(torch.arange(n), torch.arange(n)) for n in (3, 5, 2, 6)], row_length=8)
        >>> [[len(example.input_ids) for example in row] for row in rows]
        [[6, 2], [5, 3]]
    """
    ordered = sorted(examples, key=lambda example: len(example.input_ids), reverse=True)
    if ordered and len(ordered[0].input_ids) > row_length:
        raise ValueError(
            f"an example has {len(ordered[0].input_ids)} tokens, a packed row {row_length}: raise the row length"
        )
    least = -(-sum(len(example.input_ids) for example in ordered) // row_length)
    spread = (_spread(ordered, count) for count in range(least, len(ordered) + 1))
    fitting = list(islice((rows for rows in spread if _longest(rows) <= row_length), 8))
    return min(fitting, key=lambda rows: len(rows) * _longest(rows))


def _spread(ordered: Sequence[Example], count: int) -> list[list[Example]]:
    rows: list[list[Example]] = [[] for _ in range(count)]
    filled = [0] * count
    for example in ordered:
        row = filled.index(min(filled))
        rows[row].append(example)
        filled[row] += len(example.input_ids)
    return rows


def _longest(rows: list[list[Example]]) -> int:
    return max((sum(len(example.input_ids) for example in row) for row in rows), default=0)


def collate_packed(examples: Sequence[Example], pad_id: int, row_length: int) -> dict[str, Tensor]:
    """Pack examples into rows of at most `row_length` tokens.

    Attention needs no mask here. Positions start again at 0 where an example begins: from that, transformers models
    make a block-diagonal causal mask. Padding at the end of a row counts as one more example.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 [B, L]. The first label of every example is -100: nothing before
        it belongs to it.

    Raises:
        ValueError: If an example is longer than a row.

    Example:
        >>> examples = [Example(torch.tensor([n] * n), torch.tensor([n] * n)) for n in (1, 3, 2)]
        >>> batch = collate_packed(examples, pad_id=0, row_length=4)
        >>> batch["input_ids"].tolist(), batch["position_ids"].tolist()
        ([[3, 3, 3], [2, 2, 1]], [[0, 1, 2], [0, 1, 0]])
    """
    rows, positions = [], []
    for row in pack(examples, row_length):
        labels = [torch.cat([example.labels.new_tensor([IGNORED]), example.labels[1:]]) for example in row]
        rows.append(Example(torch.cat([example.input_ids for example in row]), torch.cat(labels)))
        positions.append(torch.cat([torch.arange(len(example.input_ids)) for example in row]))
    batch = collate(rows, pad_id)
    length = batch["input_ids"].shape[1]
    padded = [torch.cat([row, torch.arange(length - len(row))]) for row in positions]
    return {**batch, "position_ids": torch.stack(padded)}
