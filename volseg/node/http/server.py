"""A small HTTP server: reading request bodies as streams, and answering."""

import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from volseg.errors import ConfigError, InputError
from volseg.text import whole_number

logger = logging.getLogger(__name__)

BLOCK = 2**16
# The longest line of a chunked body.
_LONGEST_LINE = 2**14
_TIMEOUT_SECONDS = 60

# Answers a request if it is its own: (handler, method, path) -> whether it did.
Answer = Callable[["Handler", str, str], bool]


class Handler(BaseHTTPRequestHandler):
    """One request; what it asks for goes to the `answers` of its server."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "volseg", ""
    timeout = _TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answer GET."""
        self._dispatch("GET")

    def do_POST(self) -> None:
        """Answer POST."""
        self._dispatch("POST")

    def _dispatch(self, method: str) -> None:
        server: Any = self.server
        # After an answer to a body that was not read to its end, the connection cannot go on.
        self.close_connection = self.close_connection or method == "POST"
        try:
            # Browsers send Origin: no page of the web may ask in the name of who opens it.
            if "Origin" in self.headers:
                self.reply(403, b"")
            elif not any(answer(self, method, self.path.partition("?")[0]) for answer in server.answers):
                self.reply(404, b"")
        except InputError as error:
            logger.error("Refused a request: %s", error)
            self.reply(400, str(error).encode())
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            logger.error("An HTTP request failed: %s", type(error).__name__)
            logger.debug("Traceback of the error:", exc_info=error)
            self.reply(500, b"")

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> Iterator[bytes]:
        """The blocks of the request's body.

        Raises:
            InputError: it ends early, or its length is not stated.
        """
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            yield from self._chunks()
            return
        length = whole_number(self.headers.get("Content-Length", ""))
        if length is None:
            raise InputError("The request states no Content-Length.")
        yield from self._exactly(length)

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self.rfile.readline(_LONGEST_LINE)
            size = re.match(rb"[0-9a-fA-F]{1,15}", line)
            if not size:
                raise InputError("The chunked body of the request ends early.")
            if not int(size[0], 16):
                while self.rfile.readline(_LONGEST_LINE).strip():
                    pass
                return
            yield from self._exactly(int(size[0], 16))
            self.rfile.readline(_LONGEST_LINE)

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            block = self.rfile.read(min(length, BLOCK))
            if not block:
                raise InputError("The body of the request ends early.")
            length -= len(block)
            yield block

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: their paths may hold what a user typed."""


class Server(ThreadingHTTPServer):
    """A server in a thread of its own.

    Args:
        address: to listen on, and port (0: any that is free).
        answers: asked in order.
        is_allowed: whether an IP address may ask; by default loopback alone.
        context: of TLS.
    """

    daemon_threads = True
    # Connections at a time; each has a thread.
    most_connections = 64

    def __init__(
        self,
        address: tuple[str, int],
        answers: Sequence[Answer],
        is_allowed: Callable[[str], bool] = lambda address: ipaddress.ip_address(address).is_loopback,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.answers, self.is_allowed, self._context = answers, is_allowed, context
        self._free = threading.BoundedSemaphore(self.most_connections)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, Handler)
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {address[0]} port {address[1]}: {error.strerror}. Choose another port or "
                "stop the program that has it."
            ) from error
        self._thread = threading.Thread(target=self.serve_forever, name="volseg-http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - of socketserver
        """Whether this address may ask and there is a thread for it; else the connection is closed."""
        return self.is_allowed(client_address[0]) and self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection and give its thread back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection, in its own thread; so a slow TLS handshake holds up nobody else."""
        if self._context:
            request.settimeout(_TIMEOUT_SECONDS)
            request = self._context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the signature of socketserver
        """A connection that failed is closed; nothing of it is printed."""
        logger.debug("An HTTP connection failed", exc_info=True)

    def close(self) -> None:
        """Stop to listen."""
        self.shutdown()
        self.server_close()
