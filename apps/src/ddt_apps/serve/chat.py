"""POST /v1/chat/completions: text and pictures in, text and pictures out, in the words of OpenAI's API.

OpenAI's chat draws no pictures; those of an answer stand in its `images`, as parts of the kind that pictures of a
question have (the way of OpenRouter). An answer that comes back as part of a conversation may have them there too.
"""

import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from ddt_apps.run.terminal import harmless
from ddt_apps.serve.answering import as_stream, while_there
from ddt_apps.serve.asked import CHARACTERS, Chat, Drawn, RequestError
from ddt_apps.serve.bodies import MAX_PICTURES, read_json, read_pictures, served
from ddt_apps.serve.engine import Began, Drew, Ended, Event, Task, Wrote
from ddt_apps.serve.images import picture
from ddt_llm.sequences import Part, Turn

URL = Drawn(response_format="url")
logger = logging.getLogger(__name__)


async def completions(request: Request) -> Response:
    """Answer the last message of a conversation."""
    asked = await read_json(request, Chat)
    history, prompt = await _conversation(request, asked.messages)
    if served(request).log_prompts:
        logger.info("prompt: %s", harmless(" ".join(part for part in prompt if isinstance(part, str))))
    seed = random.randrange(2**31) if asked.seed is None else asked.seed
    output = "auto" if len(set(asked.modalities)) != 1 else asked.modalities[0]
    sampling = {"guidance_scale": asked.guidance, "temperature": 0.7, "text_temperature": asked.temperature}
    sampling |= {"text_top_p": asked.top_p, "max_text_tokens": asked.max_tokens or asked.max_completion_tokens}
    events = served(request).engine.answer(Task(prompt, output, [seed], sampling, history))
    began = await while_there(request, anext(events))
    said = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served(request).name}
    if asked.stream:
        return as_stream(_chunks(request, events, began, said, bool((asked.stream_options or {}).get("include_usage"))))
    return JSONResponse(await while_there(request, _whole(request, events, began, said)))


async def _conversation(request: Request, messages: list[Any]) -> tuple[list[Turn], list[Part]]:
    """Return the turns before the last question, and that question."""
    said = [(_role(message, f"messages[{i}]"), message, f"messages[{i}]") for i, message in enumerate(messages)]
    sides = [
        (role, [part for _, message, name in group for part in _parts(message, name)])
        for role, group in groupby(said, key=lambda each: each[0])
    ]
    if len(sides) % 2 == 0 or sides[0][0] != "user":
        raise RequestError("messages must begin and end with those of the user", "messages")
    parts = [part for _, side in sides for part in side]
    urls = [part["url"] for part in parts if isinstance(part, dict)]
    characters = sum(len(part) for part in parts if isinstance(part, str))
    if len(urls) > MAX_PICTURES or characters > CHARACTERS:
        found, most = f"{characters} characters and {len(urls)} pictures", f"{CHARACTERS} and {MAX_PICTURES}"
        raise RequestError(f"messages have {found}; {most} are the most", "messages")
    pictures = iter(await read_pictures(request, urls, "messages"))
    turns = [_joined([part if isinstance(part, str) else next(pictures) for part in side]) for _, side in sides]
    return [*zip(turns[:-1:2], turns[1::2], strict=True)], turns[-1]


def _role(message: Any, name: str) -> str:
    """Return whose message it is. What a system says is said by the user: the model knows no other."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("system", "developer", "user", "assistant"):
        raise RequestError(f"{name} must be an object with role system, developer, user or assistant", "messages")
    return role if role == "assistant" else "user"


def _parts(message: dict[str, Any], name: str) -> list[Any]:
    """Return the texts of a message, and objects with the `url` of its pictures."""
    content, images = (message.get(each) or [] for each in ("content", "images"))
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = []
    for part in [*content, *images] if isinstance(content, list) and isinstance(images, list) else [None]:
        kind = part.get("type") if isinstance(part, dict) else None
        found = part.get(kind) if kind in ("text", "image_url") else None
        if not isinstance(found, str if kind == "text" else dict):
            raise RequestError(f"{name} must hold text, or parts of type text and image_url", "messages")
        parts.append(found if kind == "text" else {"url": found.get("url")})
    return parts


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Join neighbouring texts to one, without what is blank."""
    joined: list[Part] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        run = list(group)
        joined += [" ".join(run).strip()] if is_text else run
    return [part for part in joined if isinstance(part, Tensor) or part]


async def _whole(request: Request, events: AsyncIterator[Event], began: Began, said: dict[str, Any]) -> dict[str, Any]:
    text, images = "", []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Wrote):
                text += event.text
            elif isinstance(event, Drew):
                images.append(await _image(request, event.image, len(images)))
            elif isinstance(event, Ended):
                ended = event
    message = {"role": "assistant", "content": text.strip(), "refusal": None} | ({"images": images} if images else {})
    choice = {"index": 0, "message": message, "finish_reason": _reason(ended), "logprobs": None}
    return {**said, "object": "chat.completion", "choices": [choice], "usage": _usage(began, ended)}


async def _chunks(
    request: Request, events: AsyncIterator[Event], began: Began, said: dict[str, Any], counts: bool
) -> AsyncIterator[tuple[str, Any]]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> tuple[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return "", {**said, "object": "chat.completion.chunk", "choices": [choice]}

    images = 0
    async with aclosing(events):
        yield chunk({"role": "assistant", "content": ""})
        async for event in events:
            if isinstance(event, Wrote):
                yield chunk({"content": event.text})
            elif isinstance(event, Drew):
                yield chunk({"images": [await _image(request, event.image, images)]})
                images += 1
            elif isinstance(event, Ended):
                yield chunk({}, _reason(event))
                if counts:
                    usage = _usage(began, event)
                    yield "", {**said, "object": "chat.completion.chunk", "choices": [], "usage": usage}
    yield "", "[DONE]"


async def _image(request: Request, image: Tensor, index: int) -> dict[str, Any]:
    side = served(request).engine.codec.image_size
    return {"type": "image_url", "index": index, "image_url": await picture(image, side, URL)}


def _reason(ended: Ended) -> str:
    return "length" if ended.cut else "stop"


def _usage(began: Began, ended: Ended) -> dict[str, int]:
    before, after = began.text_tokens + began.image_tokens, ended.text_tokens + ended.image_tokens
    return {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after}
