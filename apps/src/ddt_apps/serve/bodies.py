"""Bodies of requests: JSON, or forms with files, read without holding up the event loop."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.requests import Request
from torch import Tensor

from ddt_apps.serve.asked import RequestError, filled
from ddt_apps.serve.engine import Engine
from ddt_apps.serve.pictures import from_url, read_picture

MAX_BODY = 32_000_000  # bytes of a request
MAX_PICTURES = 16
FILES = ("image", "image[]")  # fields of a form that hold pictures

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """What every endpoint needs."""

    engine: Engine
    name: str  # of the model
    log_prompts: bool
    readers: asyncio.Semaphore  # of threads that read pictures, each of which may take 300 MB


def served(request: Request) -> Served:
    """Return what serves a request."""
    return request.app.state.served


async def read_json(request: Request, kind: type[T]) -> T:
    """Read what a client asks for.

    Raises:
        RequestError: If the body is no JSON object, or does not fit.
    """
    if "json" not in request.headers.get("content-type", ""):
        raise RequestError("the body must be JSON: set the header Content-Type: application/json", status=415)
    return _filled(request, kind, await asyncio.to_thread(_parsed, await request.body()))


async def read_with_pictures(request: Request, kind: type[T]) -> tuple[T, list[Tensor]]:
    """Read what a client asks for, and the pictures [3, H, W] beside it.

    They are files of a form, or data URLs in the field `image` of a JSON object.

    Raises:
        RequestError: If the body does not fit, or one of them cannot be read.
    """
    sources: list[Any] = []
    if form := "multipart/form-data" in request.headers.get("content-type", ""):
        fields, sources = await _read_form(request)
    elif "json" in request.headers.get("content-type", ""):
        fields = await asyncio.to_thread(_parsed, await request.body())
        image = fields.pop("image", None)
        sources = image if isinstance(image, list) else [] if image is None else [image]
    else:
        raise RequestError("the body must be multipart/form-data or application/json; set its Content-Type", status=415)
    asked = _filled(request, kind, fields, form)
    if not 1 <= len(sources) <= MAX_PICTURES:
        raise RequestError(f"image: 1 to {MAX_PICTURES} pictures are needed, {len(sources)} came", "image")
    return asked, await read_pictures(request, sources, "image")


async def read_pictures(request: Request, sources: list[Any], name: str) -> list[Tensor]:
    """Read files and data URLs as images [3, H, W] in [-1, 1]; `name` is the parameter that holds them.

    Raises:
        RequestError: If one cannot be read.
    """
    size, readers = served(request).engine.codec.image_size, served(request).readers

    def read(source: Any) -> Tensor:
        if not isinstance(source, bytes | str):
            raise RequestError(f"{name} must be a picture: a file, or a data URL", name)
        return read_picture(source if isinstance(source, bytes) else from_url(source, name), size, name)

    async with readers:
        return [await asyncio.to_thread(read, source) for source in sources]


async def _read_form(request: Request) -> tuple[dict[str, Any], list[Any]]:
    fields, sources = {}, []
    async with request.form(max_files=MAX_PICTURES, max_fields=64) as form:
        for name, value in form.multi_items():
            if name in FILES:
                sources.append(await value.read() if isinstance(value, UploadFile) else value)
            elif isinstance(value, UploadFile):
                raise RequestError(f"a file in {name[:40]!a} is not supported; pictures come in image", name)
            else:
                fields[name] = value
    return fields, sources


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    return fields


def _filled(request: Request, kind: type[T], fields: Mapping[str, Any], form: bool = False) -> T:
    asked, name = filled(kind, fields, as_text=form), served(request).name
    if asked.model not in (None, name):
        raise RequestError(
            f"there is no model {asked.model[:80]!a} here; there is {name}", "model", 404, code="model_not_found"
        )
    return asked
