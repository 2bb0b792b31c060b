"""`ddt.json`, which a saved language model has beside its weights."""

import json
from pathlib import Path
from typing import Any

FORMAT = 1
SETTINGS = "ddt.json"


def read_settings(file: Path) -> dict[str, Any]:
    """Read it.

    Raises:
        ValueError: If it is damaged or of another format.
    """
    try:
        settings = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}): save the model again") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        found = settings.get("format") if isinstance(settings, dict) else None
        raise ValueError(f"{file} has format {found}, this version of ddt-llm reads {FORMAT}")
    for name in ("template", "visual_fingerprint"):
        if name not in settings or not isinstance(settings[name], str | None):
            raise ValueError(f"{file} must give {name}, a text: save the model again")
    return settings
