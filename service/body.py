"""Bodies of requests: read with patience, but not for ever, and never more than was to come."""

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import BinaryIO

from fastapi import Request

from acmix.errors import Problem
from service.errors import RequestRefused

SILENT_SECONDS = 60.0
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


async def patiently(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks of a body; one that stands still is given up with a 408."""
    while True:
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            message = f"nothing of the body came for {SILENT_SECONDS:g} s; send it again, or ask where to go on"
            raise RequestRefused(408, "request_timeout", message) from None
        yield chunk


async def read_bounded(request: Request, most: int) -> bytes:
    """A body of at most so many bytes; 413 as soon as it is larger."""
    if declared_bytes(request) > most:
        raise too_large("body", most)
    body = bytearray()
    async for chunk in patiently(request.stream()):
        body += chunk
        if len(body) > most:
            raise too_large("body", most)
    return bytes(body)


def declared_bytes(request: Request) -> int:
    """What Content-Length says; 0 where it says nothing that can be."""
    header = request.headers.get("content-length", "")
    return int(header[:20]) if header.isascii() and header.isdigit() else 0


def too_large(what: str, most: int) -> RequestRefused:
    """413: `what` has more than `most` bytes."""
    fault = Problem("", "too_large", f"the {what} must be at most {most} bytes", limit=most)
    return RequestRefused(413, "too_large", fault.message, problems=[fault])


def write_all(file: BinaryIO, content: bytearray) -> None:
    """A disk that fills up takes a part first, and says so by how much it took."""
    written = 0
    try:
        while written < len(content):
            written += file.write(memoryview(content)[written:])
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RequestRefused(507, "disk_full", "the service has no room left on its disk for this file") from None
