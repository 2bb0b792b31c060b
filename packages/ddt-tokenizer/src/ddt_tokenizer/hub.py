"""The Hugging Face Hub: folders from there, folders to there, and the card that says what is in one (extra `[hub]`)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILES = ["*.json", "*.safetensors", "*.jinja"]  # no code, no pickles


def local_folder(source: str | Path, *parts: str) -> Path:
    """Return a folder as it is, and of a Hub id (`owner/name`, or `owner/name/folder`) one in the cache.

    No code and no pickle is fetched. What is in the cache already needs no network.

    Args:
        parts: Folders within it that are needed; none: the one that is named.

    Raises:
        FileNotFoundError: If it is no folder here, and the Hub has no such model or cannot be reached.
    """
    named = str(source).split("/")
    if Path(source).exists() or len(named) not in (2, 3) or not all(named) or named[0].startswith((".", "~")):
        return Path(source)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ModuleNotFoundError:
        return Path(source)
    inside = [f"{named[2]}/{part}" for part in parts] or [named[2]] if named[2:] else list(parts)
    patterns = [f"{each}/*.{kind}" for each in inside for kind in ("json", "safetensors", "jinja")]
    try:
        root = snapshot_download("/".join(named[:2]), allow_patterns=[*patterns, "*.json"] if patterns else FILES)
    except (OSError, ValueError, HFValidationError) as error:
        raise FileNotFoundError(f"'{source}' is neither a folder nor a model that the Hub has for you") from error
    return Path(root, *named[2:])


def model_card(
    title: str, what: str, usage: str, facts: dict[str, Any], licence: str | None, tags: Sequence[str]
) -> str:
    """Write the `README.md` of a model, with the front matter by which the Hub finds it.

    Args:
        what: Sentences on what it is.
        usage: Python that loads and uses it.
        facts: Shown as a table.
        licence: Of the weights, by its name on the Hub; None says that none was given.

    Example:
        >>> card = model_card("Mine", "A model.", "load()", {"ids": 16}, "cc-by-4.0", ["ddt"])
        >>> card.splitlines()[:6]
        ['---', 'library_name: ddt', 'license: cc-by-4.0', 'tags:', '- ddt', '---']
    """
    head = [
        "library_name: ddt",
        *([] if licence is None else [f"license: {licence}"]),
        "tags:",
        *(f"- {t}" for t in tags),
    ]
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    given = "No licence of the weights was given." if licence is None else f"Licence of the weights: {licence}."
    parts = [
        "\n".join(["---", *head, "---"]),
        f"# {title}",
        what,
        f"```python\n{usage}\n```",
        "\n".join(["| | |", "|---|---|", *rows]),
        given,
    ]
    return "\n\n".join(parts) + "\n"


def upload(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Make a repository on the Hub if need be, put a folder's files into it in one commit, and return its address.

    Raises:
        ValueError: If the Hub refuses; says why.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    except ModuleNotFoundError as error:
        raise ValueError("the Hub needs: pip install huggingface_hub, or the extra [hub]") from error
    try:
        address = HfApi().create_repo(repo_id, private=private, exist_ok=True)
        HfApi().upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Upload a model of ddt")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"'{repo_id}' could not be written ({said}); log in with: hf auth login") from error
    return str(address)


class OnHub:
    """What makes a model with `save_pretrained(folder)` and `card(repo_id, licence)` one that can be put on the Hub."""

    def push_to_hub(self, repo_id: str, *, private: bool = False, licence: str | None = None) -> str:
        """Save the model and a card of it, upload both, and return the address.

        Args:
            repo_id: `owner/name`; the repository is made if need be.
            licence: Of the weights, by its name on the Hub, such as "cc-by-4.0".

        Raises:
            ValueError: If the Hub refuses; says why.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            Path(folder, "README.md").write_text(self.card(repo_id, licence), encoding="utf-8")
            return upload(folder, repo_id, private)
