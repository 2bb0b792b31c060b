"""Who may call, by what a browser cannot be made to hide: the name it was told, and the page that it shows."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ddt_apps.serve.asked import RequestError

READS = ("GET", "HEAD", "OPTIONS")  # whose answers a foreign page cannot read without CORS


class Callers:
    """Refuses requests under names that are not this server's, and what pages of others send.

    A name of another's may point here (DNS rebinding), and a form of any page may be sent here; programs, which say no
    origin, are let through.

    Args:
        hosts: Names of this server; "*": any.
        origins: Of pages that may send.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str]):
        self.app, self.hosts, self.origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refused(Headers(scope=scope), scope["method"])):
            return await JSONResponse(refused.body, refused.status)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _refused(self, headers: Headers, method: str) -> RequestError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if "*" not in self.hosts and _name(f"//{host}") not in self.hosts:
            return RequestError(f"this server is not {host[:80]!a}: call it as {self.hosts[0]}, or give it a --host")
        if origin is None or method in READS or origin in self.origins or origin.partition("://")[2] == host:
            return None
        return RequestError(
            f"pages of {origin[:80]!a} may not send to {host[:80]!a}; --cors names those that may (a proxy must leave "
            "the header Host as it came)",
            status=403,
        )


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # of brackets that do not close
        return None
