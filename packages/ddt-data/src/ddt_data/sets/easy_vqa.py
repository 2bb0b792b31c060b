"""easy-VQA: 5,000 pictures of one coloured shape, and 48,248 questions about them with 13 answers."""

import json
from collections import defaultdict
from pathlib import Path

from ddt_data.readers.records import Record
from ddt_data.sets.pinned import Pinned, Split, fetch, read_archive

EASY_VQA = Pinned(
    "pip",
    "easy-vqa",
    "1.0",
    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    "MIT",
    "easy-VQA, by Victor Zhou",
)


def load_easy_vqa(cache: Path | None = None) -> dict[str, Split]:
    """Fetch `train` (4,000 pictures, 38,575 questions) and `held-out` (1,000, 9,673), as their author split them.

    Raises:
        ValueError: If the package cannot be had.
    """
    files = dict(read_archive(fetch(EASY_VQA, cache=cache)))
    splits = {}
    for name, folder in {"train": "easy_vqa/data/train", "held-out": "easy_vqa/data/test"}.items():
        questions = defaultdict(list)
        for question, answer, picture in json.loads(files[f"{folder}/questions.json"]):
            questions[picture].append({"kind": "easy-vqa", "question": question, "answer": answer})
        records = [
            Record(f"{picture}.png", files[f"{folder}/images/{picture}.png"], meta={"questions": asked})
            for picture, asked in sorted(questions.items())
        ]
        splits[name] = Split(records, {EASY_VQA: len(records)})
    return splits
