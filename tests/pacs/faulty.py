"""An HTTP proxy on loopback that passes requests on to an archive, and misbehaves when its plan says so."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROXY_THREAD = "process_request_thread"  # in the names of ThreadingHTTPServer's threads
FAULTS = ("refuse", "reset", "cut", "truncate", "stall", "corrupt", "shorten", "other", "401", "503", "500", "html")


@contextmanager
def watched() -> Iterator[list[tuple[str, int]]]:
    """Every address that this process connects to, the proxy's own connections aside."""
    seen: list[tuple[str, int]] = []
    before = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}

    def watching(connect: Callable[..., Any]) -> Callable[..., Any]:
        def connected(self: socket.socket, address: Any) -> Any:
            if PROXY_THREAD not in threading.current_thread().name and self.family != socket.AF_UNIX:
                seen.append(address[:2])
            return connect(self, address)

        return connected

    try:
        for name, connect in before.items():
            setattr(socket.socket, name, watching(connect))
        yield seen
    finally:
        for name, connect in before.items():
            setattr(socket.socket, name, connect)


class Faulty:
    """The proxy.

    Parameters
    ----------
    port : int
        Of the archive's HTTP server on loopback.
    plan : callable
        From method and path to the name of a fault, or ''.
    stall_s : float
        How long a stalled answer stands still.
    certificate : Path or None
        PEM file of a key and a certificate: HTTPS instead of HTTP (Debian's Orthanc 1.10 does not survive HTTPS).
    """

    def __init__(
        self, port: int, plan: Callable[[str, str], str], *, stall_s: float = 3, certificate: Path | None = None
    ) -> None:
        proxy = self
        self.done: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self._last = b""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _pass(self) -> None:
                body = self._body()
                with proxy._lock:
                    proxy.requests.append((self.command, self.path))
                    fault = plan(self.command, self.path)
                    if fault:
                        proxy.done.append(fault)
                if fault in ("401", "503", "500"):
                    self._answer(int(fault), {"Content-Type": "text/plain", "Retry-After": "0"}, b"no")
                    return
                if fault == "html":
                    self._answer(200, {"Content-Type": "text/html"}, b"<html>log in</html>")
                    return
                if fault == "redirect":
                    self._answer(302, {"Location": "http://elsewhere.invalid/dicom-web"}, b"")
                    return
                if fault == "refuse":
                    self._reset()
                    return
                status, kind, content = proxy._ask(port, self.command, self.path, dict(self.headers), body)
                headers = {"Content-Type": kind} if kind else {}
                if fault == "lost":  # the archive did it, and its answer is lost
                    self._reset()
                elif fault in ("reset", "cut", "stall"):
                    self._head(status, {**headers, "Content-Length": str(len(content))})
                    self.wfile.write(content[: len(content) // 2])
                    self.wfile.flush()
                    if fault == "stall":
                        time.sleep(stall_s)
                    if fault == "reset":
                        self._reset()
                    self.close_connection = True
                elif fault == "drip":
                    self._head(status, {**headers, "Content-Length": str(len(content))})
                    with suppress(OSError):
                        for i in range(len(content)):
                            self.wfile.write(content[i : i + 1])
                            time.sleep(0.1)
                    self.close_connection = True
                else:
                    self._answer(status, headers, proxy._spoilt(content, fault))

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    pieces = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        pieces.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(pieces)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _head(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                with suppress(OSError):
                    self._head(status, {**headers, "Content-Length": str(len(content))})
                    self.wfile.write(content)

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

            do_GET = do_POST = _pass

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_address[1]
        self.web = f"http://127.0.0.1:{self.port}/dicom-web"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            listening = self._server.socket
            self._server.socket = context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)
            self.web = f"https://localhost:{self.port}/dicom-web"

    def _ask(self, port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        passed = {k: v for k, v in headers.items() if k.lower() in ("accept", "content-type", "authorization")}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body=body or None, headers=passed)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
        finally:
            connection.close()

    def _spoilt(self, content: bytes, fault: str) -> bytes:
        with self._lock:
            last, self._last = self._last or content, content
        if fault == "truncate":  # a well-formed answer whose end is missing
            return content[: len(content) // 2]
        if fault == "corrupt":  # the header is overwritten
            at = content.find(b"DICM") + 20
            return content[:at] + b"\xff" * 400 + content[at + 400 :]
        if fault == "shorten":  # pixels are missing, the multipart form is whole
            at = content.rfind(b"\r\n--")
            return content[: at - 100] + content[at:]
        return last if fault == "other" else content

    def __enter__(self) -> Faulty:
        threading.Thread(target=self._server.serve_forever, daemon=True, name=f"{PROXY_THREAD} accept").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
