"""An OpenAI-compatible endpoint on 127.0.0.1 with faults that are drawn by item and attempt."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("timeout", "429", "500", "broken")
ITEM = re.compile(r"item (\d+)")


def draw(*parts):
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def completion(content, finish_reason="stop", **message):
    """A chat completion with usage of 100 input and 10 output tokens."""
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def any_answer(body, item):
    """A valid answer to every criterion of the JSON schema of a request."""
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    return json.dumps(
        {
            name: (
                schema["enum"][int(draw(name, item) * len(schema["enum"]))]
                if "enum" in schema
                else schema["minimum"] + int(draw(name, item) * (schema["maximum"] - schema["minimum"] + 1))
            )
            for name, schema in properties.items()
        }
    )


@dataclass
class JudgeServer:
    """What the endpoint does, and what it saw."""

    reply: object = None
    """From the body of a request and its item: HTTP status, JSON value or text, headers; None: answers."""
    fault_rate: float = 0.0
    stall: float = 1.0
    """Seconds that a "timeout" takes."""
    models: tuple = ("judge",)
    key: str = ""
    """The key that it asks for."""
    bodies: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    attempts: Counter = field(default_factory=Counter)
    answered: Counter = field(default_factory=Counter)
    """Item -> valid answers that were sent."""
    faults: Counter = field(default_factory=Counter)
    url: str = ""
    _lock: object = field(default_factory=threading.Lock)

    def respond(self, body):
        """Status, value and headers of the response to a request."""
        match = ITEM.search(body["messages"][1]["content"])
        item = int(match[1]) if match else -1
        with self._lock:
            self.bodies.append(body)
            self.attempts[item] += 1
            attempt = self.attempts[item]
        if self.reply is not None:
            return self.reply(body, item)
        chance = draw("fault", item, attempt)
        if chance < self.fault_rate:
            fault = FAULTS[int(chance / self.fault_rate * len(FAULTS))]
            with self._lock:
                self.faults[fault] += 1
            return self._fault(fault, body, item)
        with self._lock:
            self.answered[item] += 1
        return 200, completion(any_answer(body, item)), {}

    def _fault(self, fault, body, item):
        if fault == "timeout":
            time.sleep(self.stall)
            return 200, completion(any_answer(body, item)), {}
        if fault == "429":
            return 429, {"error": {"message": "slow down", "code": "rate_limit"}}, {"Retry-After": "0.05"}
        if fault == "500":
            return 500, {"error": {"message": "internal error"}}, {}
        return 200, completion(any_answer(body, item)[:-3]), {}


@contextmanager
def serve(server):
    """Serve while the block runs; `server.url` is the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]}
            self._send(*((200, listed, {}) if self._has_key() else (401, {"error": {"message": "no"}}, {})))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.headers.append(dict(self.headers))
            if not self._has_key():
                key = self.headers.get("Authorization", "")
                self._send(401, {"error": {"message": f"Incorrect API key provided: {key}"}}, {})
                return
            self._send(*server.respond(body))

        def _has_key(self):
            return not server.key or self.headers.get("Authorization") == f"Bearer {server.key}"

        def _send(self, status, value, headers):
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            try:
                self.send_response(status)
                for name, text in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client has given up or was killed
                self.close_connection = True

        def log_message(self, *_):
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, request, client_address):
            """Connections of a killed client."""

    http = Server(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.005,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
