"""What a training run tells on the screen: what begins, and what to type when it is done."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ddt_apps.run.settings import RunSettings
from ddt_data.shards.mixture import folders_and_shares
from ddt_data.shards.remote import is_remote

if TYPE_CHECKING:
    import lightning

NEXT = {
    "train-vae": "ddt train-tokenizer small/tokenizer data={data} vae={folder}/vae",
    "train-tokenizer": "ddt tokenize {data} --tokenizer {folder} --out {ids}",
    "train-renderer": "ddt reconstruct PICTURE --tokenizer {tokenizer} --renderer {folder} --out again.png",
    "pretrain": 'ddt generate "a red fox" --model {folder} --out fox.png',
    "rl": 'ddt generate "a red fox left of a bell" --model {folder} --out fox.png',
    "adapt": 'ddt generate "a red fox" --model {folder} --denoise 8 --out fox.png',
    "sft": "ddt chat --model {folder}",
}


def tell_start(
    folder: Path,
    config: RunSettings,
    where: str,
    module: "lightning.LightningModule",
    stream: "lightning.LightningDataModule",
    step: int,
) -> None:
    """Print on stderr what is trained, on what, for how long, and where that goes.

    Args:
        where: Device and precision.
        module: Whose weights are counted, as far as they learn.
        stream: Of which the samples are counted, if it has a dataset.
        step: At which training goes on.
    """
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    going_on = f", going on at step {step}" if step else ""
    lines = [f"training {weights:,} weights on {where} into {folder}{going_on}"]
    if dataset := getattr(stream, "dataset", None):
        seen = config.batches * config.batch_size
        batch = f"{config.accumulate} x {config.batch_size}" if config.accumulate > 1 else config.batch_size
        lines.append(f"{len(dataset):,} samples, {config.steps:,} steps of {batch}: {seen / len(dataset):.3g} epochs")
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def next_command(config: RunSettings, folder: Path) -> str:
    """Return what to type when a run is finished.

    Example:
        >>> from ddt_apps.train.settings import Tune
        >>> next_command(Tune(data="data/ids", model="runs/my-lm"), Path("runs/sft"))
        'ddt chat --model runs/sft'
    """
    data = folders_and_shares(config.data)[0][0] if hasattr(config, "data") else ""
    ids = f"{Path(data).name if is_remote(data) else data}-ids"
    named = {"folder": folder, "data": data, "ids": ids, "tokenizer": ""}
    named |= {"tokenizer": config.tokenizer} if hasattr(config, "tokenizer") else {}
    return NEXT[config.verb].format(**{name: shlex.quote(str(value)) for name, value in named.items()})
