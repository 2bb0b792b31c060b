"""POST /v1/images/generations and /v1/images/edits, in the words of OpenAI's API."""

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from ddt_apps.run.terminal import harmless
from ddt_apps.serve.answering import as_stream, while_there
from ddt_apps.serve.asked import CHARACTERS, Drawn, Edit, Generation, RequestError
from ddt_apps.serve.bodies import read_json, read_with_pictures, served
from ddt_apps.serve.engine import Began, Drew, Ended, Engine, Event, Task
from ddt_apps.serve.pictures import as_base64, side_of

SHARES = {"low": 4, "medium": 2, "high": 1, "auto": 1}  # of the ids and steps, one in so many
logger = logging.getLogger(__name__)


async def generations(request: Request) -> Response:
    """Draw what a prompt says."""
    asked = await read_json(request, Generation)
    return await _draw(request, asked, [asked.prompt], "image_generation")


async def edits(request: Request) -> Response:
    """Change pictures as a prompt says."""
    asked, pictures = await read_with_pictures(request, Edit)
    if served(request).engine.lm.template != "instruction":
        raise RequestError("this model was not tuned on instructions: it draws and describes, but edits nothing")
    return await _draw(request, asked, [*pictures, asked.prompt], "image_edit")


async def _draw(request: Request, asked: Generation, prompt: Sequence[str | Tensor], kind: str) -> Response:
    engine = served(request).engine
    side = side_of(asked.size, engine.codec.image_size)
    if len(asked.prompt) > CHARACTERS:
        raise RequestError(f"prompt has {len(asked.prompt)} characters, {CHARACTERS} are the most", "prompt")
    if asked.stream and asked.n > 1:
        raise RequestError("n must be 1 with stream: its events do not say of which picture they are", "n")
    if asked.partial_images and not asked.stream:
        raise RequestError("partial_images come with stream=true only", "partial_images")
    if served(request).log_prompts:
        logger.info("prompt: %s", harmless(asked.prompt))
    task = _task(engine, asked, prompt)
    events = engine.answer(task)
    began = await while_there(request, anext(events))
    sent = {"size": f"{side}x{side}", "quality": "high" if asked.quality == "auto" else asked.quality}
    sent |= {"output_format": asked.output_format, "background": "opaque"}
    if asked.stream:
        return as_stream(_events(events, asked, side, kind, sent, began))
    return JSONResponse(await while_there(request, _whole(events, asked, side, sent, began, task.seeds)))


def _task(engine: Engine, asked: Generation, prompt: Sequence[str | Tensor]) -> Task:
    """Translate quality and partial images into ids, which a model that writes coarse ones first need not finish."""
    seed = random.randrange(2**31) if asked.seed is None else asked.seed
    share, steps, keep, previews = SHARES[asked.quality], asked.steps, None, frozenset()
    if share > 1 and steps is None and engine.codec.num_steps > 1 and not engine.codec.renderer:
        steps = math.ceil(engine.codec.num_steps / share)
    if engine.lm.vocabulary.visual_order == "coarse_to_fine":
        whole = engine.codec.num_tokens
        keep = max(1, whole // share) if share > 1 else None
        previews = frozenset((keep or whole) >> halvings for halvings in range(1, asked.partial_images + 1)) - {0}
    return Task(
        prompt,
        "image",
        [(seed + i) % 2**63 for i in range(asked.n)],
        {"guidance_scale": asked.guidance, "temperature": asked.temperature},
        keep=keep,
        previews=previews,
        steps=steps,
    )


async def _events(
    events: AsyncIterator[Event], asked: Generation, side: int, kind: str, sent: dict[str, Any], began: Began
) -> AsyncIterator[tuple[str, Any]]:
    partial, last = 0, {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Drew):
                data = await asyncio.to_thread(as_base64, event.image, side, asked)
                shown = {"b64_json": data, "created_at": int(time.time())}
                if event.whole:
                    last = shown | {"ids": event.ids.tolist()}
                    continue
                name = f"{kind}.partial_image"
                yield name, {"type": name, **shown, **sent, "partial_image_index": partial}
                partial += 1
            elif isinstance(event, Ended):
                name = f"{kind}.completed"
                yield name, {"type": name, **last, **sent, "usage": usage(began, [event])}


async def _whole(
    events: AsyncIterator[Event], asked: Generation, side: int, sent: dict[str, Any], began: Began, seeds: Sequence[int]
) -> dict[str, Any]:
    drawn: dict[int, Drew] = {}
    ended = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Drew):
                drawn[event.answer] = event
            elif isinstance(event, Ended):
                ended.append(event)
    data = [await picture(drawn[i].image, side, asked) for i in range(asked.n)]
    for i, each in enumerate(data):
        each |= {"ids": drawn[i].ids.tolist(), "seed": seeds[i]}
    return {"created": int(time.time()), "data": data, **sent, "usage": usage(began, ended)}


async def picture(image: Tensor, side: int, drawn: Drawn) -> dict[str, Any]:
    """Return what a response holds of a picture."""
    data = await asyncio.to_thread(as_base64, image, side, drawn)
    if drawn.response_format == "b64_json":
        return {"b64_json": data}
    return {"url": f"data:image/{drawn.output_format};base64,{data}"}


def usage(began: Began, ended: Sequence[Ended]) -> dict[str, Any]:
    """Count tokens, as OpenAI's images API has them."""
    asked = {"text_tokens": began.text_tokens, "image_tokens": began.image_tokens}
    answered = {name: sum(getattr(each, name) for each in ended) for name in ("text_tokens", "image_tokens")}
    before, after = sum(asked.values()), sum(answered.values())
    sizes = {"input_tokens": before, "output_tokens": after, "total_tokens": before + after}
    return {**sizes, "input_tokens_details": asked, "output_tokens_details": answered}
