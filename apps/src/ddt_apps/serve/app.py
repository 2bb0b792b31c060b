"""The ASGI application: which address does what."""

import asyncio
import time
from collections.abc import Sequence

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from ddt_apps.serve.asked import Edit, Generation, RequestError
from ddt_apps.serve.bodies import MAX_BODY, Served, served
from ddt_apps.serve.callers import Callers
from ddt_apps.serve.chat import completions
from ddt_apps.serve.engine import Engine
from ddt_apps.serve.images import edits, generations
from ddt_apps.serve.page import WEB, page
from ddt_apps.serve.tokens import detokenize, tokenize
from ddt_apps.serve.watching import BodyLimit, Figures, Guard, Watch


def build_app(
    engine: Engine,
    name: str,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    hosts: Sequence[str] = ("*",),
    log_prompts: bool = False,
) -> Starlette:
    """Build the application of one model.

    Args:
        engine: At work, for as long as the application is used.
        name: Of the model.
        api_key: That every request must have, but for /health and the page, which asks for it; None: no one needs one.
        origins: Of web pages of others that may use it from a browser (CORS).
        hosts: Names under which it may be called; others, such as a web page's own that was pointed here, are refused.
        log_prompts: Write prompts into the log.
    """
    routes = [
        Route("/", page),
        Mount("/web", WEB),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name}", model),
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/tokenize", tokenize, methods=["POST"]),
        Route("/v1/detokenize", detokenize, methods=["POST"]),
    ]
    figures = Figures(engine)
    middleware = [
        Middleware(Watch, figures=figures, paths=frozenset(route.path for route in routes)),
        Middleware(Callers, hosts=hosts, origins=origins),
        *([Middleware(CORSMiddleware, **_cors(origins))] if origins else []),
        *([Middleware(Guard, key=api_key)] if api_key else []),
        Middleware(BodyLimit, most=MAX_BODY),
    ]
    handlers = {RequestError: _refused, HTTPException: _not_here, ClientDisconnect: _gone, 500: _failed}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.state.served = Served(engine, name, log_prompts, asyncio.Semaphore(2))
    app.state.figures, app.state.begun = figures, int(time.time())
    return app


def _cors(origins: Sequence[str]) -> dict[str, Sequence[str]]:
    return {"allow_origins": origins, "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}


async def health(request: Request) -> Response:
    """Show load balancers whether requests are answered."""
    alive = served(request).engine.alive
    return JSONResponse({"status": "ok" if alive else "closing"}, 200 if alive else 503)


async def metrics(request: Request) -> Response:
    """Show figures in the format of Prometheus."""
    return Response(generate_latest(request.app.state.figures.registry), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    """List the one model."""
    return JSONResponse({"object": "list", "data": [_described(request)]})


async def model(request: Request) -> Response:
    """Describe the model."""
    if (name := request.path_params["name"]) != served(request).name:
        raise RequestError(f"there is no model {name[:80]!a} here; there is {served(request).name}", "model", 404)
    return JSONResponse(_described(request))


def _described(request: Request) -> dict:
    lm, codec = served(request).engine.lm, served(request).engine.codec
    tuned, settings = lm.template == "instruction", ("guidance", "temperature")
    own = {"template": lm.template, "image_size": codec.image_size, "num_steps": codec.num_steps, **codec.identity}
    own |= {"visual_order": lm.vocabulary.visual_order}
    own |= {"tasks": ["draw", "edit", "ask", "chat"] if tuned else ["draw", "caption"]}
    asked = {"draw": Generation, "edit": Edit} if tuned else {"draw": Generation}
    own |= {"defaults": {task: {name: getattr(kind, name) for name in settings} for task, kind in asked.items()}}
    about = {"id": served(request).name, "object": "model", "created": request.app.state.begun, "owned_by": "ddt"}
    return {**about, "ddt": own}


async def _refused(request: Request, error: RequestError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _not_here(request: Request, error: HTTPException) -> Response:
    refused = RequestError(f"{error.detail}: {request.method} {request.url.path[:80]!a}", status=error.status_code)
    return JSONResponse(refused.body, error.status_code, error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # which nobody reads, but the log


async def _failed(request: Request, error: BaseException) -> Response:
    return JSONResponse(RequestError.of_server("the server failed; its log says why").body, 500)
