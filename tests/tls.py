"""TLS before a server that speaks none: what the wheels bring was built without it, and clients see the same."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SSL_REQUEST_BYTES = 8  # of PostgreSQL, answered by one letter before TLS begins
Upstream = Callable[[], socket.socket]


@contextmanager
def tls_before(upstream: Upstream, certificates: Path, *, asked_for: bool = False) -> Iterator[int]:
    """The port of 127.0.0.1 where it is served, behind server.pem of `certificates`.

    Args:
        upstream: opens a connection to the server.
        asked_for: clients ask for TLS first, as those of PostgreSQL do.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    def serve(client: socket.socket) -> None:
        with suppress(OSError), client:
            if asked_for:
                client.recv(SSL_REQUEST_BYTES, socket.MSG_WAITALL)
                client.sendall(b"S")
            with context.wrap_socket(client, server_side=True) as inside, upstream() as server:
                threading.Thread(target=_pump, args=(server, inside), daemon=True).start()
                _pump(inside, server)

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def unix(path: str) -> Upstream:
    """Opens connections to a Unix socket."""

    def connect() -> socket.socket:
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(path)
        return opened

    return connect


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
