"""Clients of a benchmark: processes that call as often as they can for a while, and what came of it.

Their HTTP is a socket that stays open and a header read by hand, since a library's client would take as long as some
of the answers do.
"""

import multiprocessing
import resource
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

Call = Callable[[int], object]  # what a client does; it is told how often it has done so before
Opener = Callable[[int], Call]  # made in the client's own process, which is told its number

SYSTEM = multiprocessing.get_context("fork")
APART_SECONDS = 0.1


@dataclass
class Measured:
    """Calls of one or more phases: how long each took, how many there were a second, what they cost the clients."""

    latencies: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    client_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def percentile(self, share: float) -> float:
        return sorted(self.latencies)[round(share * (len(self.latencies) - 1))]

    def add(self, other: "Measured") -> None:
        self.latencies += other.latencies
        self.rates += other.rates
        self.client_seconds += other.client_seconds


def measure(opener: Opener, *, clients: int, seconds: float) -> Measured:
    """So many clients side by side for so long.

    They come one after the other, and those who are there call already. Connections that are opened at once to idle
    processes of one server all go to one of them in half the cases, which is then measured alone.
    """
    barrier = SYSTEM.Barrier(clients)
    pipes, processes = [], []
    for number in range(clients):
        ours, theirs = SYSTEM.Pipe()
        process = SYSTEM.Process(target=_drive, args=(opener, number, clients, seconds, barrier, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
        theirs.close()
    told = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    latencies = [latency for each, _, _ in told for latency in each]
    rate = sum(len(each) / lasted for each, lasted, _ in told)
    return Measured(latencies, [rate], sum(own for _, _, own in told))


def _drive(opener: Opener, number: int, clients: int, seconds: float, barrier: Barrier, pipe: Connection) -> None:
    time.sleep(APART_SECONDS * number)
    call = opener(number)
    latencies: list[float] = []
    come = time.monotonic()
    while time.monotonic() - come < APART_SECONDS * (clients - number):
        call(0)
    barrier.wait()
    before = _own_seconds()
    began = now = time.perf_counter()
    while now - began < seconds:
        call(len(latencies))
        ended = time.perf_counter()
        latencies.append(ended - now)
        now = ended
    pipe.send((latencies, now - began, _own_seconds() - before))


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Http:
    """One connection that is kept; an answer that is no success ends the benchmark."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def send(self, request: bytes) -> bytes:
        """The body of the answer."""
        self._socket.sendall(request)
        head = self._until(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = self._chunks() if b"transfer-encoding" in fields else self._exactly(int(fields[b"content-length"]))
        if head[9:10] != b"2":
            raise AssertionError(f"{request[:200]!r} was answered {head[:60]!r} {body[:500]!r}")
        return body

    def _until(self, mark: bytes) -> bytes:
        while (at := self._rest.find(mark)) < 0:
            self._rest += self._more()
        found, self._rest = self._rest[: at + len(mark)], self._rest[at + len(mark) :]
        return found

    def _exactly(self, count: int) -> bytes:
        parts, missing = [self._rest], count - len(self._rest)
        while missing > 0:
            parts.append(self._more())
            missing -= len(parts[-1])
        whole = b"".join(parts)
        self._rest = whole[count:]
        return whole[:count]

    def _chunks(self) -> bytes:
        whole = b""
        while size := int(self._until(b"\r\n"), 16):
            whole += self._exactly(size)
            self._until(b"\r\n")
        self._until(b"\r\n")
        return whole

    def _more(self) -> bytes:
        data = self._socket.recv(2**18)
        if not data:
            raise AssertionError("the server has closed the connection")
        return data


def request(method: str, path: str, body: bytes = b"", headers: Sequence[str] = ()) -> bytes:
    """The bytes of a request."""
    own = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if body:
        own += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*own, "", ""]).encode() + body
