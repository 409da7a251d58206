"""The door of the local web pages: who may ask, for what, and what a browser may do with the answer.

Other programs of this machine and every page in a browser can send requests to a local port. A request needs
the token that was printed at start, which only the person who started the viewer has; its Host must be a name
of this machine, so that no other site can pass itself off as this one (DNS rebinding); and what is written
needs the Origin of these pages besides.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "paretune_view"
TOKEN_PARAMETER = "t"
HOST_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY_BYTES = 262_144

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""A report is a file that anyone may have made: as a page of no origin it can ask this server for nothing."""
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Guard:
    """Wraps the application: refuses requests without the token, from other hosts or origins."""

    app: ASGIApp
    token: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given),
                ]
            await send(message)

        request = Request(scope)
        answer = self._refusal(request)
        await (answer or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that must not reach the pages; None if it may."""
        host = request.headers.get("host", "")
        if _host_name(host) not in HOST_NAMES:
            return _refuse("This page is only served to addresses of this machine, such as 127.0.0.1.")
        if request.method not in ("GET", "HEAD", "POST"):
            return _refuse("These pages can only be read.", 405)
        given = request.query_params.get(TOKEN_PARAMETER)
        if given is not None and request.method == "GET" and self._is_token(given):
            # The address without the token: it must not stay in the history or be passed on with a link.
            # One slash: //host would lead to another site.
            answer = RedirectResponse(f"/{request.url.path.lstrip('/')}", 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", path="/")
            return answer
        if not self._is_token(request.cookies.get(COOKIE, "")):
            return _refuse("Open the address that “paretune view” printed: it contains the access token.")
        if request.method == "POST" and not _is_own_form(request, host):
            return _refuse("Only forms from these pages are accepted.")
        return None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_own_form(request: Request, host: str) -> bool:
    """Whether a page of this server sent a form, by what the browser says and no page can change."""
    origin = request.headers.get("origin")
    # With the referrer policy above, browsers write "null" for a form; then this header tells the sender.
    is_hidden = origin == "null" and request.headers.get("sec-fetch-site") == "same-origin"
    return is_hidden or origin == f"http://{host}"


def form_token(token: str) -> str:
    """The token of forms: the cookie's own must not be part of a page."""
    return hashlib.sha256(f"form/{token}".encode()).hexdigest()


def is_form_token(fields: Mapping[str, str], token: str) -> bool:
    """Whether a form was made by these pages."""
    return hmac.compare_digest(fields.get("token", "").encode(), form_token(token).encode())


def _refuse(reason: str, status: int = 403) -> Response:
    page = f'<!doctype html><html lang="en"><title>refused</title><h1>Refused</h1><p>{reason}</p></html>'
    return HTMLResponse(page, status)
