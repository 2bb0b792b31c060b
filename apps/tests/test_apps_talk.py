"""ddt chat: what comes through a pipe, and what goes to a terminal."""

import io
import random
import sys
import time
from types import SimpleNamespace

import torch
from transformers import LlamaConfig

from ddt_apps.use.chat import Chat, _joined, _messages
from ddt_llm.streaming import Event


def joined_slowly(parts, between):
    """One after the other, as one would by hand."""
    found = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] = f"{found[-1]}{between}{part}"
        else:
            found.append(part)
    return [p.strip() if isinstance(p, str) else p for p in found if not isinstance(p, str) or p.strip()]


def same(a, b):
    return len(a) == len(b) and all(
        x is y if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def test_neighbouring_texts_become_one():
    rng = random.Random(0)
    for _ in range(500):
        between = rng.choice(["", " "])
        parts = [rng.choice(["a fox", " ", "", "b\n", torch.zeros(2)]) for _ in range(rng.randrange(9))]
        assert same(_joined(parts, between), joined_slowly(parts, between))


def test_a_long_message_takes_time_in_proportion():
    def seconds(words):
        start = time.perf_counter()
        _joined(["word"] * words, " ")
        return time.perf_counter() - start

    assert seconds(2_000_000) < 100 * max(seconds(50_000), 1e-3)  # of 40 times the words; squared it would be 1,600


def test_a_line_that_is_no_utf8_ends_no_talk(monkeypatch):
    rng = random.Random(0)
    lines = [bytes(rng.choices(range(0x20, 0x100), k=rng.randrange(1, 20))) for _ in range(200)]
    for errors in ("strict", "surrogateescape"):  # of a UTF-8 and of a C locale
        stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(lines) + b"\n"), "utf-8", errors, newline="\n")
        monkeypatch.setattr(sys, "stdin", stdin)
        said = list(_messages())
        kept = [line.decode("utf-8", "replace").strip() for line in lines]
        assert said == [line for line in kept if line]
        assert "".join(said).encode()  # what a text tokenizer can take


def test_an_answer_is_harmless_on_the_terminal_and_kept_as_it_is(tmp_path):
    pieces = ["a ", "\x1b[2J", "\x9b31mred\n", "fox\x07"]
    lm = SimpleNamespace(
        stream=lambda *_, **__: (Event(text=piece) for piece in pieces),
        vocabulary=SimpleNamespace(num_tokens=4),
        model=SimpleNamespace(config=LlamaConfig(max_position_embeddings=100)),
    )
    talk = Chat(lm, SimpleNamespace(num_tokens=4), tmp_path, {"max_text_tokens": 8})
    shown = "".join(talk.answer("what is it?"))
    assert shown == "a \\x1b[2J\\x9b31mred\nfox\\x07"
    assert talk.history == [(["what is it?"], ["".join(pieces)])]
