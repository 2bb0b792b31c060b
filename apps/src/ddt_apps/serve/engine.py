"""The engine: one thread that does all work of torch, and what the event loop sees of it.

Shape letters: n ids that are written of an image; H, W space.
"""

import asyncio
import logging
import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ddt_apps.serve.asked import RequestError
from ddt_llm import MultimodalLM
from ddt_llm.generation import Output, Writer
from ddt_llm.sequences import Part, Turn
from ddt_llm.streaming import Reader
from ddt_tokenizer.codec import Codec

LONGEST = 4096  # tokens of a request with its answer, for which every slot has room
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a client asks the language model for: as many answers as there are seeds.

    Texts and pictures stand in the order of the conversation; a picture is an image [3, H, W] in [-1, 1].
    """

    prompt: Sequence[Part]
    output: Output
    seeds: Sequence[int]
    sampling: Mapping[str, Any]  # fields of `ddt_llm.generation.Sampling`
    history: Sequence[Turn] = ()
    keep: int | None = None  # ids of an image that are written, the coarsest, and drawn; None: all
    previews: frozenset[int] = frozenset()  # at how many ids an image is also drawn
    steps: int | None = None  # of the decoder; None: its own


@dataclass(frozen=True)
class Began:
    """A task is laid out and waits for slots; its prompt has so many tokens of text and of images."""

    text_tokens: int
    image_tokens: int


@dataclass(frozen=True)
class Wrote:
    """An answer goes on with some text."""

    answer: int
    text: str


@dataclass(frozen=True)
class Drew:
    """An image, from the ids [n] that are written of it, in tokenizer order."""

    answer: int
    ids: Tensor
    image: Tensor  # float32 [3, H, W] in [-1, 1]
    whole: bool


@dataclass(frozen=True)
class Ended:
    """An answer has ended, with so many tokens of text and of images; `cut` if it had no room to go on."""

    answer: int
    text_tokens: int
    image_tokens: int
    cut: bool


@dataclass(frozen=True)
class Returned:
    """A call has ended."""

    value: Any


Event = Began | Wrote | Drew | Ended


class Job:
    """Work of the thread for one client, to whom `tell` takes what comes of it."""

    def __init__(self, begin: Callable[["Job"], None]):
        self.begin, self.cancelled = begin, False
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def tell(self, event: Event | Returned | RequestError) -> None:
        """Hand an event over, from any thread."""
        with suppress(RuntimeError):  # of a loop that is closed
            self.loop.call_soon_threadsafe(self.told.put_nowait, event)


class Answer:
    """An answer in work: reads what the steps write, until there is enough of it."""

    def __init__(self, job: Job, task: Task, number: int, writer: Writer, reader: Reader):
        self.job, self.task, self.number, self.writer, self.reader = job, task, number, writer, reader
        self.enough = False

    def read(self) -> list[Tensor]:
        """Pass text on, and return the ids [n] of images that are to be drawn now."""
        whole, drawn = self.task.keep or self.reader.vocabulary.num_tokens, []
        for event in self.reader.read(self.writer.tokens):
            if event.text:
                self.job.tell(Wrote(self.number, event.text))
            elif len(event.ids) == whole or len(event.ids) in self.task.previews:
                drawn.append(event.ids)
                self.enough = len(event.ids) == self.task.keep
        return drawn

    @property
    def ended(self) -> Ended:
        """What there is to say at the end."""
        tokens, vocabulary = self.writer.tokens, self.reader.vocabulary
        images = sum(vocabulary.visual.start <= token < vocabulary.visual.stop for token in tokens)
        texts = sum(token < vocabulary.text_size for token in tokens)
        cut = self.writer.output != "image" and tokens[-1] != self.writer.eos
        return Ended(self.number, texts, images, cut)


class Engine:
    """Answers, encodes and draws for many clients at once, in one thread.

    Args:
        slots: Answers that are written at once.
        waiting: Answers that may wait for a slot.

    Raises:
        ValueError: If the model cannot write, or the codec is not that of its ids.
    """

    def __init__(self, lm: MultimodalLM, codec: Codec, slots: int, waiting: int):
        lm.request("a picture", codec)  # refuses a codec of another model
        self.lm, self.codec, self.slots = lm, codec, slots
        self.most, self.pending = slots + waiting, 0  # answers that clients may ask for at once, and do
        self.batch = lm.continuous_batch(slots, LONGEST)
        self.answers: dict[Writer, Answer] = {}
        self.text_tokens = self.image_tokens = self.images = 0  # written and drawn since the start
        self._ends: deque[float] = deque(maxlen=64)  # when the last answers ended
        self._jobs: set[Job] = set()
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    # What the event loop calls.

    async def answer(self, task: Task) -> AsyncIterator[Event]:
        """Yield the events of a task as they come: first `Began`, and `Ended` of each answer.

        Closing the iterator cancels the task, and frees its slots.

        Raises:
            RequestError: If too many answers are asked for already, or the task does not fit the model.
        """
        left = len(task.seeds)
        async with aclosing(self._ask(left, lambda job: self._begin(job, task))) as events:
            while left:
                yield (event := await anext(events))
                left -= isinstance(event, Ended)

    async def call(self, work: Callable[[], Any]) -> Any:
        """Do something with torch in the thread, between two steps.

        Raises:
            RequestError: If too many wait already, or the work raises ValueError.
        """
        async with aclosing(self._ask(1, lambda job: job.tell(Returned(work())))) as events:
            return (await anext(events)).value

    async def _ask(self, count: int, begin: Callable[[Job], None]) -> AsyncIterator[Any]:
        if not self.alive:
            raise RequestError.of_server("the server is closing", 503)
        if (over := self.pending + count - self.most) > 0:
            raise RequestError.of_queue(self.pending, self.most, min(max(1, math.ceil(over * self._pace())), 60))
        job = Job(begin)
        self.pending += count
        self._jobs.add(job)
        self._inbox.put(job)
        try:
            while True:
                if isinstance(event := await job.told.get(), RequestError):
                    raise event
                yield event
        finally:
            job.cancelled = True
            self._jobs.remove(job)
            self.pending -= count

    def _pace(self) -> float:
        """Return about how many seconds pass between the ends of two answers."""
        ends = [*self._ends]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 1.0

    # What the thread does.

    def _run(self) -> None:
        try:
            while self._arrive():
                self._step()
        finally:
            for job in [*self._jobs]:
                job.tell(RequestError.of_server("the server is closing", 503))

    def _arrive(self) -> bool:
        """Begin what has arrived, and wait for it where there is nothing else to do; return whether to go on."""
        working = self.answers or self.batch.rows or self.batch.waiting  # rows of cancelled answers have yet to leave
        with suppress(queue.Empty):
            while job := self._inbox.get(block=not working):
                working = True
                if job.cancelled:
                    continue
                try:
                    job.begin(job)
                except ValueError as error:
                    job.tell(RequestError(str(error)))
                except RuntimeError:
                    logger.exception("a request failed")
                    job.tell(RequestError.of_server("the server could not do this; its log says why"))
            return False
        return True

    def _begin(self, job: Job, task: Task) -> None:
        history = [*(part for turn in task.history for side in turn for part in side)]
        pictures = [part for part in [*history, *task.prompt] if isinstance(part, Tensor)]
        ids = iter(self.codec.encode(pictures) if pictures else ())

        def laid(parts: Sequence[Part]) -> list[Part]:
            return [next(ids) if isinstance(part, Tensor) else part for part in parts]

        turns = [(laid(asked), laid(answered)) for asked, answered in task.history]
        prompt = laid(task.prompt)
        requests = [self.lm.request(prompt, output=task.output, seed=seed, history=turns) for seed in task.seeds]
        writers = [self.batch.submit(request, **task.sampling) for request in requests]
        visual = len(pictures) * self.codec.num_tokens
        job.tell(Began(len(requests[0].prompt) - visual, visual))
        for number, writer in enumerate(writers):
            reader = Reader(self.lm.vocabulary, self.lm.text_tokenizer, None, 0)
            self.answers[writer] = Answer(job, task, number, writer, reader)

    def _step(self) -> None:
        """Write a token of each answer that has a slot, and pass on what comes of it."""
        for writer, answer in [*self.answers.items()]:
            if answer.job.cancelled:
                self.batch.cancel(writer)
                del self.answers[writer]
        try:
            written = [self.answers[writer] for writer in self.batch.step() if writer in self.answers]
            self._draw([(answer, ids) for answer in written for ids in answer.read()])
        except (RuntimeError, ValueError):  # such as no memory left; ValueError: weights that are not finite
            logger.exception("a step failed, and with it all answers in work")
            for answer in self.answers.values():
                answer.job.tell(RequestError.of_server("the server could not go on; its log says why"))
            self.answers.clear()
            self.batch = self.lm.continuous_batch(self.slots, LONGEST)
            return
        for answer in written:
            if answer.enough or answer.writer.done:
                self._end(answer)

    def _end(self, answer: Answer) -> None:
        self.batch.cancel(answer.writer)
        del self.answers[answer.writer]
        self._ends.append(time.monotonic())
        self.text_tokens += answer.ended.text_tokens
        self.image_tokens += answer.ended.image_tokens
        answer.job.tell(answer.ended)

    def _draw(self, due: list[tuple[Answer, Tensor]]) -> None:
        """Draw what is due, in one batch for each number of ids."""
        groups: dict[tuple[int, int | None], list[tuple[Answer, Tensor]]] = defaultdict(list)
        for answer, ids in due:
            groups[len(ids), answer.task.steps].append((answer, ids))
        for (count, steps), those in groups.items():
            images = draw(self.codec, torch.stack([ids for _, ids in those]), steps)
            for (answer, ids), image in zip(those, images, strict=True):
                self.images += 1
                answer.job.tell(Drew(answer.number, ids, image, count == (answer.task.keep or self.codec.num_tokens)))


def draw(codec: Codec, ids: Tensor, steps: int | None = None, seed: int | None = None) -> Tensor:
    """Draw the n coarsest ids of images, [N, n] in tokenizer order: images float32 [N, 3, H, W] in [-1, 1].

    Args:
        steps, seed: Of the decoder; None: its own, and that of all drawings.
    """
    missing = codec.num_tokens - ids.shape[1]
    settings = {"keep_tokens": ids.shape[1] if missing else None, "num_steps": steps, "seed": seed}
    settings = {name: value for name, value in settings.items() if value is not None}
    return codec.decode(F.pad(ids, (missing, 0)), **settings)  # id 0 stands in for the finest, which come first
