"""The two ways to the Kaggle of ``kaggle_server``: over the loopback, and within the process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.kaggle_server import ACTIVE, TOKEN, CutError, KaggleServer


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], ConnectionError
        ):  # clients are killed in the middle of a request
            super().handle_error(request, client_address)


def loopback(kaggle: KaggleServer) -> ThreadingHTTPServer:
    """Return what serves a Kaggle on a free port of the loopback."""
    return _Server(("127.0.0.1", 0), _handler(kaggle))


def _handler(kaggle: KaggleServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_any(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urllib.parse.urlsplit(self.path).path.split("/")
            if "stream" in parts and self.stream(parts[-1]):
                return
            try:
                answer = kaggle.answer(self.command, self.path, self.headers, data)
            except CutError:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(answer.body)
            except OSError:
                self.close_connection = True
            if int(answer.headers.get("Content-Length", len(answer.body))) != len(answer.body):
                self.close_connection = True

        do_GET = do_POST = do_PUT = handle_any

        def stream(self, slug: str) -> bool:
            """Follow the log of a session that is going on; tell whether it is."""
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            version = kaggle._version(
                {"kernelSlug": slug, "versionLabel": query.get("versionLabel", [""])[0]}
            )
            if version is None or version.status not in ACTIVE:
                return False
            with kaggle.lock:
                kaggle.calls["stream"] += 1
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent = 0

            def send(text: str) -> None:
                data = f"data: {text}\n\n".encode()
                kaggle.log_bytes += len(data)
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

            with contextlib.suppress(OSError):
                while version.status in ACTIVE or sent < len(version.shown_log):
                    for piece in version.shown_log[sent:]:
                        send(json.dumps(piece))
                        sent += 1
                    time.sleep(0.02)
                send("END_OF_LOG")
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True
            return True

    return Handler


@contextlib.contextmanager
def within(server: KaggleServer) -> Iterator[Any]:
    """Give the real client's object, with every request of this process going to the server, by no socket.

    Times are the server's clock's: what the client sleeps between its own tries, too.
    """
    import requests
    from requests.adapters import HTTPAdapter

    class Memory(HTTPAdapter):
        def send(self, request: Any, *_: Any, **__: Any) -> Any:
            body = request.body or b""
            if not isinstance(body, (str, bytes)):
                body = body.read() if hasattr(body, "read") else b"".join(body)
            data = body.encode() if isinstance(body, str) else body
            try:
                answer = server.answer(request.method, request.url, request.headers, data)
            except CutError:
                raise requests.ConnectionError("cut") from None
            response = requests.Response()
            response.status_code, response.request, response.url = answer.status, request, request.url
            response.raw = io.BytesIO(answer.body)
            response.headers.update({"Date": formatdate(server.clock.now(), usegmt=True), **answer.headers})
            response.connection = self
            return response

    usual, before = HTTPAdapter.send, dict(os.environ)
    proxies = requests.sessions.get_environ_proxies
    os.environ.update(KAGGLE_API_ENVIRONMENT="LOCALHOST", KAGGLE_API_TOKEN=TOKEN)
    try:
        HTTPAdapter.send = Memory.send  # type: ignore[method-assign]
        requests.sessions.get_environ_proxies = lambda *_, **__: {}  # which takes longer than an answer
        import kaggle
        from kaggle.api import kaggle_api_extended

        class Time:
            sleep = staticmethod(server.clock.sleep)

            def __getattr__(self, name: str) -> Any:
                return getattr(time, name)

        kaggle_api_extended.time = Time()
        kaggle.api.authenticate()
        yield kaggle.api
    finally:
        HTTPAdapter.send = usual  # type: ignore[method-assign]
        requests.sessions.get_environ_proxies = proxies
        os.environ.clear()
        os.environ.update(before)
