"""What a client may ask for: settings with their ranges, and how a request that does not fit is refused."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from reprlib import repr as short
from typing import Annotated, Any, Literal, Self, TypeVar, get_origin, get_type_hints

from annotated_types import Interval

from ddt_apps.run.terminal import harmless
from ddt_tokenizer.limits import NonNegativeFloat, PositiveInt, Seed, check_setting

# Words of OpenAI's API that change no answer here.
IGNORED = {"user", "safety_identifier", "moderation", "metadata", "store", "service_tier", "prompt_cache_key"}
CHARACTERS = 32_000  # of a text, as OpenAI has it

T = TypeVar("T")


class RequestError(ValueError):
    """A request that is not served: its message, and what else OpenAI's error format says.

    Example:
        >>> RequestError("n (11) must be at most 10", "n").body
        {'error': {'message': 'n (11) must be at most 10', 'type': 'invalid_request_error', 'param': 'n', 'code': None}}
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers
        said = {"message": harmless(message), "type": kind, "param": param and harmless(param), "code": code}
        self.body = {"error": said}

    @classmethod
    def of_server(cls, message: str, status: int = 500) -> Self:
        """Refuse what is not the client's fault."""
        return cls(message, status=status, kind="server_error")

    @classmethod
    def of_queue(cls, pending: int, most: int, seconds: int) -> Self:
        """Refuse what has no place in the queue."""
        message = f"{pending} answers are asked for already, {most} are the most: try again in {seconds} s"
        headers = {"Retry-After": str(seconds)}
        return cls(message, status=429, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How pictures go out."""

    model: str | None = None
    size: str = "auto"  # or as 512x512, to which the picture is enlarged
    response_format: Literal["b64_json", "url"] = "b64_json"  # a url holds the picture itself: nothing is kept here
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Interval(ge=0, le=100)] = 100
    steps: Annotated[int, Interval(ge=1, le=100)] | None = None  # of the decoder


@dataclass(frozen=True, kw_only=True)
class Generation(Drawn):
    """POST /v1/images/generations."""

    prompt: str
    n: Annotated[int, Interval(ge=1, le=10)] = 1
    quality: Literal["auto", "high", "medium", "low"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    stream: bool = False
    partial_images: Annotated[int, Interval(ge=0, le=3)] = 0
    seed: Seed | None = None  # of the first picture; the next one has the next
    guidance: NonNegativeFloat = 1.5
    temperature: NonNegativeFloat = 0.7


@dataclass(frozen=True, kw_only=True)
class Edit(Generation):
    """POST /v1/images/edits; its pictures come beside."""

    guidance: NonNegativeFloat = 1.0
    temperature: NonNegativeFloat = 0.0


@dataclass(frozen=True, kw_only=True)
class Chat:
    """POST /v1/chat/completions."""

    messages: list
    model: str | None = None
    modalities: list[Literal["text", "image"]] = ("text", "image")
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt = 64  # of text
    temperature: NonNegativeFloat = 0.0  # of text; images have 0.7
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    guidance: NonNegativeFloat = 1.5
    seed: Seed | None = None
    n: Annotated[int, Interval(ge=1, le=1)] = 1
    stream: bool = False
    stream_options: dict[str, bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """POST /v1/tokenize; its pictures come beside."""

    model: str | None = None
    keep_tokens: PositiveInt | None = None  # the coarsest ids of each picture; None: all


@dataclass(frozen=True, kw_only=True)
class Detokenize(Drawn):
    """POST /v1/detokenize."""

    ids: list
    keep_tokens: PositiveInt | None = None  # draw the coarsest ids of each picture; None: all that are given
    seed: Seed | None = None  # of the decoder's noise


def filled(kind: type[T], given: Mapping[str, Any], as_text: bool = False) -> T:
    """Fill a dataclass with the fields of a request; null stands for a field that is not there.

    Args:
        as_text: The values are text, as a form has them.

    Raises:
        RequestError: If a field is unknown, missing, or outside of its range; names it.

    Example:
        >>> filled(Generation, {"prompt": "a fox", "n": 2, "seed": None}).n
        2
        >>> filled(Edit, {"prompt": "make it blue", "guidance": "2.5"}, as_text=True).guidance
        2.5
        >>> filled(Generation, {"prompt": "a fox", "guidence": 2})
        Traceback (most recent call last):
        ddt_apps.serve.asked.RequestError: unknown parameter 'guidence'; did you mean guidance?
    """
    hints, read = get_type_hints(kind, include_extras=True), {}
    for name, value in given.items():
        if value is None or name in IGNORED:
            continue
        if name not in hints:
            near = get_close_matches(name, hints, 1)
            raise RequestError(
                f"unknown parameter {short(name)}" + "".join(f"; did you mean {each}?" for each in near), name
            )
        if as_text and not (hints[name] is str or get_origin(hints[name]) is Literal or name == "model"):
            value = _number(value)
        try:
            check_setting(name, hints[name], value)
        except ValueError as error:
            raise RequestError(str(error), name) from error
        read[name] = value
    for field in fields(kind):
        if field.default is MISSING and field.name not in read:
            raise RequestError(f"{field.name} is missing", field.name, code="missing_required_parameter")
    return kind(**read)


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
