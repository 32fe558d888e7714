"""Receivers of webhooks: real HTTPS servers on this machine's own addresses, with an authority of their own."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "receiver.test"
HERE, THERE = "127.0.0.1", "127.0.0.2"
OPENSSL = """
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \\
    -addext keyUsage=critical,keyCertSign -keyout authority.key -out authority.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=receiver -keyout server.key -out server.csr
printf 'subjectAltName=DNS:receiver.test,IP:127.0.0.1,IP:::1\\nextendedKeyUsage=serverAuth\\n' > names
openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -days 2 -extfile names -out server.pem
"""


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


Answering = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Receiver:
    """What has come, and what is answered: a status, again and again, or whatever else is done with a request."""

    port: int
    host: str
    received: list[Received] = field(default_factory=list)
    answer: int | Answering = 200

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}/hooks?of=acmix"


def certificates(folder: Path) -> Path:
    """A folder with authority.pem, and server.pem with its server.key for `NAME`, `HERE` and ::1."""
    folder.mkdir()
    subprocess.run(["bash", "-c", OPENSSL], cwd=folder, check=True, capture_output=True)
    return folder


@contextmanager
def receiving(folder: Path, address: str = HERE, port: int = 0, host: str | None = None) -> Iterator[Receiver]:
    """A receiver that listens at an address; `host` is how its URL names it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = (_Server6 if ":" in address else _Server)((address, port), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.receiver = Receiver(server.server_address[1], host or address)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    receiver: Receiver

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever sends may go away; the tests look at what was received."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 20

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        receiver = self.server.receiver
        receiver.received.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if isinstance(receiver.answer, int):
            self.send_response(receiver.answer)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            receiver.answer(self)

    def log_message(self, *_: Any) -> None:
        """Quiet."""
