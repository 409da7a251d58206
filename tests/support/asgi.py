"""Requests to the pages of `paretune view` without a server, as a browser with the cookie sends them."""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from paretune.view.answers import Answers
from paretune.view.app import make_app
from paretune.view.security import COOKIE, form_token
from paretune.view.server import make_viewer
from support.fake_chat import FakeModels

TOKEN = "a-token-that-nobody-guesses"
HOST = "127.0.0.1:8791"


@dataclass(frozen=True)
class Answer:
    """Status, headers and text of an answer."""

    status: int
    headers: dict
    text: str


class Client:
    """A browser with the cookie of a viewer over some folders."""

    def __init__(self, *roots, ratings=None, scales=(), seed=0, models=None):
        self.viewer = make_viewer(roots, ratings, scales, seed, Answers(models or FakeModels()), TOKEN)
        self.app = make_app(self.viewer)

    def request(self, method, address, *, headers=None, body=b"", leave=None, on_body=None, **query):
        """Send a request; `on_body` gets each piece of the answer, until the event `leave` is set."""
        given = {"host": HOST, "cookie": f"{COOKIE}={TOKEN}"} | (headers or {})
        parts = urlsplit(address)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": parts.path, "raw_path": parts.path.encode(), "root_path": "",
            "query_string": (urlencode(query) if query else parts.query).encode(),
            "headers": [(k.encode(), v.encode()) for k, v in given.items() if v is not None],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8791),
        }  # fmt: skip
        messages, waiting = [], [{"type": "http.request", "body": body, "more_body": False}]

        async def ask():
            async def receive():
                if waiting:
                    return waiting.pop()
                await (asyncio.Event().wait() if leave is None else asyncio.to_thread(leave.wait))
                return {"type": "http.disconnect"}

            async def send(message):
                messages.append(message)
                if on_body is not None:
                    on_body(message.get("body", b"").decode())

            await self.app(scope, receive, send)

        asyncio.run(ask())
        content = b"".join(m.get("body", b"") for m in messages)
        names = {k.decode(): v.decode() for k, v in messages[0]["headers"]}
        return Answer(messages[0]["status"], names, content.decode())

    def get(self, address, **query):
        return self.request("GET", address, **query)

    def post(self, address, headers=None, leave=None, on_body=None, **fields):
        given = {"origin": f"http://{HOST}", "content-type": "application/x-www-form-urlencoded"}
        body = urlencode({"token": form_token(TOKEN)} | fields).encode()
        headers = given | (headers or {})
        return self.request("POST", address, headers=headers, body=body, leave=leave, on_body=on_body)
