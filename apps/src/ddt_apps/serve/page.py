"""The page at /: plain files of the folder `web`, which call this server's own API and nothing else."""

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

# Scripts and styles are files of this server, never text within the page; pictures are data, or from the clipboard.
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data: blob:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asks whether a file has changed, so that a newer server has its newer page
}


class Web(StaticFiles):
    """Serves the files of the page, each with `HEADERS`."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


WEB = Web(directory=Path(__file__).with_name("web"))


async def page(request: Request) -> Response:
    """Send the page itself."""
    return await WEB.get_response("index.html", request.scope)
