"""ddt export run: the model of a run that is not finished, from its last checkpoint."""

from dataclasses import replace
from pathlib import Path

from ddt_apps.run.config import load_config
from ddt_apps.run.origin import Origin
from ddt_apps.train import adapt, pretrain, renderer, rl, sft, tokenizer, vae
from ddt_apps.train.settings import SETTINGS

TRAIN = {"train-tokenizer": tokenizer.train, "train-renderer": renderer.train, "pretrain": pretrain.train}
TRAIN |= {"sft": sft.train, "train-vae": vae.train, "adapt": adapt.train, "rl": rl.train}


def export_run(run: Path) -> None:
    """Export the model of `last.ckpt` to where the finished run would, as the run was set; it can go on afterwards.

    Raises:
        FileNotFoundError: If there is no such run, or it has no checkpoint yet.
        ValueError: If the run was begun with other data or models than lie there now, or its checkpoint is damaged.
    """
    folder = run if run.name else run.resolve()
    if not (folder / "origin.json").is_file():
        raise FileNotFoundError(f"no training run in '{run}': it has no origin.json; begin or continue one first")
    verb = Origin.read(folder / "origin.json").verb
    if verb not in TRAIN:
        raise ValueError(f"{folder / 'origin.json'}: verb {verb!r} must be one of {', '.join(TRAIN)}")
    config = load_config(SETTINGS[verb], folder / "config.yaml", upgraded=SETTINGS[verb].upgraded)
    TRAIN[verb](replace(config, name=folder.name, devices="auto"), folder.parent, only_export=True)
