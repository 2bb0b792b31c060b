"""A model as an ONNX file, for engines without torch: any batch size, one output (extra `[onnx]`)."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn


def write_onnx(
    model: nn.Module, example: dict[str, Tensor], output: str, file: str | Path, about: dict[str, str]
) -> None:
    """Trace a model and write it; the file appears whole, or not at all.

    Args:
        example: Inputs by the names of `forward`, whose first dimension is a batch of at least two.
        output: Name of what it returns.
        about: What the file says of itself, its `metadata_props`.

    Raises:
        ValueError: If onnxscript, which writes the graph, is missing.
    """
    if find_spec("onnxscript") is None:
        raise ValueError("ONNX is written with onnx and onnxscript: pip install onnx onnxscript, or the extra [onnx]")
    file, batch = Path(file), torch.export.Dim.DYNAMIC
    with torch.no_grad(), _quietly():
        program = torch.onnx.export(
            model.eval(),
            kwargs=example,
            input_names=list(example),
            output_names=[output],
            dynamic_shapes={name: {0: batch} for name in example},
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(about)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=file.parent) as scratch:
        program.save(Path(scratch) / file.name)
        for part in sorted(
            Path(scratch).iterdir(), key=lambda part: part.name == file.name
        ):  # weights beyond 2 GB first
            part.replace(file.parent / part.name)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what the exporter says of itself within the block."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
