"""ddt serve: loads a model and answers over HTTP until it is stopped."""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from ddt_apps.models import load_pair
from ddt_apps.serve.app import build_app
from ddt_apps.serve.engine import Engine
from ddt_tokenizer.codec import run_of
from ddt_tokenizer.precision import Precision

LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE = 10  # seconds that answers in work have to end, when the server is stopped


def serve(
    model: Path,
    tokenizer: Path | None = None,
    renderer: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    slots: int = 8,
    waiting: int = 64,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    log_prompts: bool = False,
    precision: Precision = "32",
) -> None:
    """Serve a trained model until Ctrl-C or SIGTERM; answers in work have `GRACE` seconds to end.

    Args:
        renderer: Of a renderer run, which draws in the decoder's place.
        port: 0 takes a free one.
        slots, waiting: See `Engine`.
        api_key, origins, log_prompts: See `build_app`.

    Raises:
        FileNotFoundError: If a run is missing or unfinished.
        ValueError: If the address is taken, or the runs do not belong together.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("ddt_apps.serve").setLevel(logging.INFO)
    with _bound(host, port) as listening:  # before the model is loaded, which takes its time
        lm, codec = load_pair(model, tokenizer, precision, renderer)
        name, hosts = run_of(model).resolve().name, LOOPBACK if host in LOOPBACK else ["*"]
        with Engine(lm, codec, slots, waiting) as engine:
            app = build_app(engine, name, api_key, origins, hosts, log_prompts)
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
            print(welcome(host, listening.getsockname()[1], name, bool(api_key)), flush=True)
            uvicorn.Server(config).run([listening])


def welcome(host: str, port: int, name: str, needs_key: bool) -> str:
    """Return what is told when the server is ready.

    Example:
        >>> print(welcome("127.0.0.1", 8000, "sft", needs_key=False))
        serving sft on http://127.0.0.1:8000, a page for your browser; Ctrl-C stops it
        OpenAI's API is at http://127.0.0.1:8000/v1, for example:
        curl http://127.0.0.1:8000/v1/images/generations --json '{"prompt": "a red fox"}'
    """
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    lines = [
        f"serving {name} on {address}, a page for your browser; Ctrl-C stops it",
        f"OpenAI's API is at {address}/v1, for example:",
        f'curl {address}/v1/images/generations{key} --json \'{{"prompt": "a red fox"}}\'',
    ]
    if not needs_key and host not in LOOPBACK:
        lines.append("whoever can reach this address can use it; DDT_API_KEY asks for a key")
    return "\n".join(lines)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:  # gaierror, one of the first, is of names
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"--host {host} --port {port} cannot be had ({why}); name another, or --port 0") from error
