"""What is known of requests: a line of the log and figures for Prometheus; and who may make them."""

import hmac
import logging
import re
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddt_apps.serve.asked import RequestError
from ddt_apps.serve.engine import Engine

OPEN = re.compile(r"/(health|web/.*)?$")  # the page asks for the key
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
logger = logging.getLogger(__name__)


class Figures:
    """Counts of requests and of the engine's work, and of the process (its memory, files and CPU time)."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        names = ("ddt_requests", "Requests, by path and status."), ("ddt_request_seconds", "From the head to the end.")
        self.requests = Counter(*names[0], ("path", "status"), registry=self.registry)
        self.seconds = Histogram(*names[1], ("path",), buckets=SECONDS, registry=self.registry)
        self.registry.register(_OfEngine(engine))
        ProcessCollector(registry=self.registry)


class _OfEngine(Collector):
    def __init__(self, engine: Engine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield what the engine has done, and has to do."""
        engine = self.engine
        for name, help, value in (
            ("ddt_text_tokens", "Text tokens written.", engine.text_tokens),
            ("ddt_image_tokens", "Ids of images written.", engine.image_tokens),
            ("ddt_images", "Images drawn, partial ones among them.", engine.images),
        ):
            yield CounterMetricFamily(name, help, value=value)
        for name, help, value in (
            ("ddt_slots", "Answers that can be written at once.", engine.slots),
            ("ddt_slots_taken", "Answers that are being written.", len(engine.batch.rows)),
            ("ddt_answers_pending", "Answers that are written or wait.", engine.pending),
        ):
            yield GaugeMetricFamily(name, help, value=value)


class Watch:
    """Counts and logs every request: method, path, status and seconds, nothing of what it holds."""

    def __init__(self, app: ASGIApp, figures: Figures, paths: frozenset[str]):
        self.app, self.figures, self.paths = app, figures, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.perf_counter(), 499  # of a client that hung up

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - begun
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.figures.requests.labels(path, status).inc()
            self.figures.seconds.labels(path).observe(seconds)
            logger.info("%s %s %s %.3f s", scope["method"], path, status, seconds)


class Guard:
    """Lets only requests with the right key through, but for those that `OPEN` matches: health, and the page."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not OPEN.match(scope["path"]):
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key):
                refused = RequestError(
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key"
                )
                return await JSONResponse(refused.body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        return await self.app(scope, receive, send)


class BodyLimit:
    """Refuses bodies of more than so many bytes, before they are read where their length is said."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self.most

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise RequestError(f"the body has more than {self.most} bytes", status=413)
            return message

        await self.app(scope, receiving, send)
