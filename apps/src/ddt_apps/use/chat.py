"""ddt chat: talk with a tuned model; pictures go in by their path, come out as files, and are shown small."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_apps.models import load_pair, need_instructions
from ddt_apps.run.terminal import harmless
from ddt_apps.use.inline import half_blocks
from ddt_apps.use.pictures import save_picture
from ddt_data.shards.images import FILES
from ddt_llm import MultimodalLM
from ddt_llm.positions import most_positions
from ddt_llm.sequences import Part, Turn
from ddt_tokenizer.codec import Codec
from ddt_tokenizer.images import to_uint8
from ddt_tokenizer.precision import Precision

HELP = "Write a message; a path in it, such as fox.png, shows the picture. /new starts over, /quit ends."


@dataclass
class Chat:
    """A conversation: what was said, and where pictures go.

    Pictures of answers are written to `folder` as 001.png, 002.png and so on, after those that are there.
    """

    lm: MultimodalLM
    codec: Codec
    folder: Path
    settings: dict[str, Any]  # of `MultimodalLM.stream`
    seed: int = 0
    thumbnails: bool = False
    history: list[Turn] = field(default_factory=list)

    def answer(self, message: str) -> Iterator[str]:
        """Answer a message, piece by piece: text, and for a picture its file and thumbnail.

        Raises:
            FileNotFoundError: If a picture that the message names does not exist.
            ValueError: If the message is too long for the model.
        """
        question, said = self._parts(message), []
        self._make_room(question)
        self.seed += 1
        settings = {**self.settings, "history": self.history, "seed": self.seed}
        again = False  # whether a preview of the same picture stands above
        for event in self.lm.stream(question, self.codec, **settings):
            if event.text:
                said.append(event.text)
                yield harmless(event.text)
            elif event.image is not None:
                whole = len(event.ids) == self.codec.num_tokens
                said += [event.ids] if whole else []
                yield self._show(event.image, whole, again)
                again = not whole
        self.history = [*self.history, (question, _joined(said))]

    def _parts(self, message: str) -> list[Part]:
        """Return a message as texts and the ids of the pictures that it names."""
        parts: list[Part] = []
        for word in message.split():
            path = Path(word.strip(",;:?!()'\""))
            if path.suffix.lower() in FILES:
                if not path.is_file():
                    raise FileNotFoundError(f"picture '{path}' does not exist")
                parts.append(self.codec.encode([path])[0])
            else:
                parts.append(word)
        return _joined(parts, " ")

    def _make_room(self, question: list[Part]) -> None:
        """Forget the oldest turns until the question and an answer with a picture fit."""
        answer = self.lm.vocabulary.num_tokens + 2 + self.settings["max_text_tokens"]
        room = (most_positions(self.lm.model.config) or 2**31) - answer
        while self.history and len(self.lm.sequences.prompt(question, "instruction", self.history)) > room:
            self.history = self.history[1:]

    def _show(self, image: Tensor, whole: bool, again: bool) -> str:
        picture, shown = to_uint8(image[None])[0], "\n"
        if self.thumbnails:
            small = half_blocks(picture)
            up = small.count("\n")
            shown = f"\x1b[{up}A{small}" if again else f"\n{small}"
        if not whole:
            return shown
        numbers = [int(file.stem) for file in self.folder.glob("*.png") if file.stem.isdigit()]
        file = self.folder / f"{max(numbers, default=0) + 1:03}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        save_picture(picture, file)
        return f"{shown}{file}\n"


def _joined(parts: list[Part], between: str = "") -> list[Part]:
    """Join neighbouring texts to one, without what is blank."""
    joined: list[Part] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        run = list(group)
        joined += [between.join(run).strip()] if is_text else run
    return [part for part in joined if isinstance(part, Tensor) or part]


def _messages() -> Iterator[str]:
    """Yield what the user types, or what comes through a pipe, until its end or /quit."""
    sys.stdin.reconfigure(errors="replace")  # a line that is no UTF-8 ends no talk
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives `input` a history)

        print(HELP)
    while True:
        try:
            message = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if message == "/quit":
            return
        if message:
            yield message


@torch.inference_mode()
def run_chat(
    model: Path,
    out: Path,
    tokenizer: Path | None,
    guidance: float,
    temperature: float,
    text_temperature: float,
    seed: int,
    precision: Precision = "32",
) -> None:
    """Answer messages from the terminal or a pipe until they end. A mistake in one is named, and the talk goes on."""
    lm, codec = load_pair(model, tokenizer, precision)
    need_instructions(lm, model)
    thumbnails = sys.stdout.isatty()
    settings = {
        "preview_every": codec.num_tokens // 4 if thumbnails else 0,
        "guidance_scale": guidance,
        "temperature": temperature,
        "text_temperature": text_temperature,
        "max_text_tokens": 64,
    }
    chat = Chat(lm, codec, out, settings, seed, thumbnails)
    for message in _messages():
        if message == "/new":
            chat.history = []
            continue
        try:
            for piece in chat.answer(message):
                print(piece, end="", flush=True)
            print()
        except (ValueError, OSError) as error:
            print(f"error: {harmless(str(error))}", file=sys.stderr)
