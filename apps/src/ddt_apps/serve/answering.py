"""Answers on their way to a client: as a whole or as server-sent events, and never longer than the client stays."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from ddt_apps.serve.asked import RequestError

T = TypeVar("T")


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """Do work for a client whose body is read, and stop it when the client hangs up.

    Raises:
        ClientDisconnect: If the client has.
    """
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, RequestError):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_stream(events: AsyncIterator[tuple[str, Any]]) -> StreamingResponse:
    """Send named events as they come; an event without a name has only data. A failure is an event of its own.

    Args:
        events: Their names, and what JSON shall hold (text goes as it is).
    """

    async def lines() -> AsyncIterator[str]:
        async with aclosing(events):
            try:
                async for name, data in events:
                    yield _line(name, data)
            except RequestError as error:
                yield _line("error", error.body)

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # which else gathers events in nginx
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def _line(name: str, data: Any) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
