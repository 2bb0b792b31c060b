"""ddt export hub: a folder for the Hugging Face Hub, with a card that says what is known of the model."""

from collections.abc import Iterator
from pathlib import Path

from ddt_apps.evaluation.scores import Scores, compare_scores
from ddt_apps.models import load_language_model, load_renderer_run
from ddt_apps.run.yaml_file import read_yaml
from ddt_data.shards.manifest import Manifest
from ddt_data.shards.mixture import folders_and_shares
from ddt_data.shards.remote import open_folder
from ddt_tokenizer.codec import Codec, run_of
from ddt_tokenizer.hub import upload


def export_hub(run: Path, out: Path, licence: str | None = None, push: str | None = None, private: bool = False) -> str:
    """Write the model of a run and its `README.md` into a folder, upload it if asked to, and say where it is.

    Raises:
        FileNotFoundError: If the run holds no finished model.
        ValueError: If the Hub refuses.
    """
    run = run_of(run)
    model: Codec | object
    if (run / "model" / "ddt.json").is_file():
        model = load_language_model(run)
    elif (run / "renderer" / "config.json").is_file():
        model = load_renderer_run(run)
        model.renderer.save_pretrained(out / "renderer")
    else:
        model = Codec.from_pretrained(run)
    model.save_pretrained(out)
    card = model.card(push or f"OWNER/{run.name}", licence)
    (out / "README.md").write_text(card + "".join(_sections(run)), encoding="utf-8")
    if push is None:
        return f"{out} holds the model and README.md; read it, then: ddt export hub {run} --out {out} --push OWNER/NAME"
    return upload(out, push, private)


def _sections(run: Path) -> Iterator[str]:
    yield "\n## Trained on\n\n| data | samples | source | licence |\n|---|---|---|---|\n"
    for name, manifest in _data(run):
        parts = manifest.parts or (
            {"source": manifest.source, "licence": manifest.licence, "samples": manifest.samples},
        )
        for part in parts:
            yield f"| {_cell(name)} | {part['samples']} | {_cell(part['source'])} | {_cell(part['licence'])} |\n"
    found = sorted(run.glob("evaluation/**/scores.json"))
    yield "\n## Measured\n\n"
    if not found:
        yield "Nothing yet: `ddt evaluate`.\n"
        return
    yield "By `ddt evaluate`. Figures of one protocol may be compared, others may not; ± is one standard error.\n\n"
    yield "| benchmark | figure | value | protocol |\n|---|---|---|---|\n"
    for file in found:
        scores, (_, rows, _) = Scores.load(file), compare_scores([file])
        for figure, value in rows:
            if "." not in figure and figure != "protocol":
                yield f"| {scores.benchmark} | {figure} | {value} | {scores.protocol_id} |\n"


def _data(run: Path) -> Iterator[tuple[str, Manifest]]:
    """Yield the shard folders that a run was trained on, as far as they are still there."""
    config = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    for setting in ("data", "text"):
        folders, _ = folders_and_shares(config[setting]) if config.get(setting) else ((), ())
        for folder in folders:
            try:
                yield folder.rstrip("/").rpartition("/")[2], open_folder(folder)[1]
            except (OSError, ValueError):
                yield folder, Manifest(samples=0, shards=(), source="(not there any more)", licence="?")


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return f"{text[:80]}..." if len(text) > 80 else text or "?"
