"""The HTTP side of the loopback Hub: connections, authorisation, ranges and faults; what is answered is in `loopback_routes`."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_content import Answer, Request, json_answer
from loopback_hub import Fault, HubError, LoopbackHub
from loopback_routes import answer_to


class LoopbackServer(ThreadingHTTPServer):
    """A server on a free port of this machine; it asks `hub`, and refuses everything while there is none.

    The port is taken when it is made, and refuses connections until `serve`.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        """Take a port; nothing is served yet."""
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()
        self.hub: LoopbackHub | None = None
        self.thread: threading.Thread | None = None

    def serve(self) -> None:
        """Begin to answer, in a thread; nothing when that has happened."""
        if self.thread is None:
            self.server_activate()
            self.thread = threading.Thread(target=self.serve_forever, daemon=True)
            self.thread.start()

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name that http.server makes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        """Where the Hub is."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may hang up."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def do_GET(self) -> None:
        """Every method is served alike."""
        hub = self.server.hub
        url = urlsplit(self.path)
        path = unquote(url.path)
        fault = hub.arrived(self.command, path) if hub is not None else None
        upload = self.command in ("PUT", "POST")
        body = self.read_body(fault.after_bytes if upload and fault is not None else None)
        if body is None:
            self.hang_up()
            return
        if hub is None:
            answer = json_answer({"error": "no test uses the Hub now"}, 403)
        elif fault is not None and fault.status is not None:
            answer = json_answer({"error": "a fault of the test"}, fault.status)
        else:
            answer = self.answered(hub, Request(self.command, url.path, parse_qs(url.query), self.headers, body, None))
        self.send_answer(answer, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answered(self, hub: LoopbackHub, request: Request) -> Answer:
        """The answer, a refusal included; a token nobody has is refused whatever is asked, as on the real Hub."""
        try:
            scheme, _, token = (self.headers["Authorization"] or "").partition(" ")
            if scheme.lower() == "bearer":
                if token not in hub.tokens:
                    raise HubError(401, "", "Invalid credentials in Authorization header")
                request.user = hub.tokens[token]
            with hub.lock:
                return answer_to(hub, request)
        except HubError as error:
            answer = json_answer({"error": error.message}, error.status)
            answer.headers |= {"X-Error-Message": error.message, **error.headers}
            if error.code:
                answer.headers["X-Error-Code"] = error.code
            return answer

    def read_body(self, stop: int | None) -> bytes | None:
        """The body of a request; None when the connection is to die after `stop` bytes of it."""
        if self.headers["Transfer-Encoding"] == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if stop is not None and len(body) >= stop:
                    return None
            self.rfile.readline()
        else:
            length = int(self.headers["Content-Length"] or 0)
            body = self.rfile.read(length if stop is None else min(stop, length))
        return body if stop is None else None

    def send_answer(self, answer: Answer, fault: Fault | None) -> None:
        """Send an answer: whole, or up to the byte of the file at which the fault lets the connection die."""
        stop = None if fault is None or fault.after_bytes is None else max(fault.after_bytes - answer.offset, 0)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:stop])
        if stop is not None:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection now."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
