"""A client of the API for people, scripts and the command line."""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import httpx

from service._downloads import download

Json = dict[str, Any]

STREAM_SECONDS = 40.0  # without a word, not even a comment, a stream is dead
RETRY_SECONDS = 1.0
GONE_SECONDS = 120.0
ENDED = ("succeeded", "failed", "cancelled")
PART_BYTES = 64 * 2**20
PREDICTION_SECONDS = 60.0  # a service answers within 30, be it that it cannot yet
STORING_SECONDS = 300.0  # from the last byte of a part to the word that it is kept
BLOCK_BYTES = 2**20
PASSING = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


# of a part of an upload: it may be taken when sent again, or from another offset on
PASSING_CODES = ("upload_under_way", "offset_differs", "digest_mismatch", "request_timeout")


class ServiceError(Exception):
    """What went wrong, in sentences for the user."""


class ServiceUnreachable(ServiceError):
    """Nobody answers at the URL."""


class RequestRefused(ServiceError):
    """The service refused; `problem` is its whole answer (RFC 9457)."""

    def __init__(self, status: int, problem: Json) -> None:
        faults = [f"{fault['pointer'] or 'the body'}: {fault['message']}" for fault in problem.get("errors", [])]
        super().__init__("\n".join(faults or [problem.get("detail", f"the service answered {status}")]))
        self.status = status
        self.problem = problem

    @property
    def code(self) -> str:
        return str(self.problem.get("code", ""))


class Client:
    """Speaks to the service at `url`, with a key where it asks for one; every method raises ServiceError."""

    def __init__(self, url: str, *, key: str | None = None, timeout_seconds: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def catalog(self) -> Json:
        return self._json("GET", "/v1/catalog")

    def plan(self, spec: Mapping[str, Any], *, num_classes: int | None = None, image_px: int | None = None) -> Json:
        """What a job would take; the two replace what its data set gives, which may then be left out."""
        assumed = {"num_classes": num_classes, "image_px": image_px}
        given = {name: value for name, value in assumed.items() if value is not None}
        body = {**spec, "assume": {**spec.get("assume", {}), **given}} if given else dict(spec)
        return self._json("POST", "/v1/plans", json=body)

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Post a job; with a key it can be posted again without making a second one."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", "/v1/jobs", json=dict(spec), headers=headers)

    def job(self, job_id: str) -> Json:
        return self._json("GET", f"/v1/jobs/{job_id}")

    def jobs(self, **filters: Any) -> Iterator[Json]:
        """All jobs, newest first, a page at a time; `filters` are the list's query parameters."""
        yield from self._pages("/v1/jobs", filters)

    def wait(self, job_id: str, on_event: Callable[[Json], None] = lambda _: None) -> Json:
        """The job once it has ended; `on_event` is told everything on the way."""
        for event in self.follow(job_id):
            on_event(event)
        return self.job(job_id)

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[Json]:
        """Events as they happen until the job has ended; a stream that is cut off goes on where it was."""
        heard_at = time.monotonic()
        while True:
            try:
                for event in self._stream(job_id, after):
                    after, heard_at = event["number"], time.monotonic()
                    yield event
                if self.job(job_id)["status"] in ENDED and not self._has_more_events(job_id, after):
                    return
            except ServiceError as error:
                if not _is_passing(error) or time.monotonic() - heard_at > GONE_SECONDS:
                    raise
            time.sleep(RETRY_SECONDS)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Json]:
        """What has happened so far, in rising number."""
        yield from self._pages(f"/v1/jobs/{job_id}/events", {"after": after, "limit": 1000})

    def results(self, job_id: str) -> Json:
        return self._json("GET", f"/v1/jobs/{job_id}/results")

    def metrics(self, job_id: str, **query: Any) -> Json:
        return self._json("GET", f"/v1/jobs/{job_id}/metrics", params=query)

    def traces(self, job_id: str, **query: Any) -> Json:
        return self._json("GET", f"/v1/jobs/{job_id}/traces", params=query)

    def traces_svg(self, job_id: str, style: Literal["depth", "trajectory"] = "depth") -> str:
        return self._answer("GET", f"/v1/jobs/{job_id}/traces.svg", params={"style": style}).text

    def logs(self, job_id: str, *, tail: int | None = None) -> str:
        return self._answer("GET", f"/v1/jobs/{job_id}/logs", params={"tail": tail} if tail else {}).text

    def checkpoints(self, job_id: str) -> list[Json]:
        found: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/checkpoints")["data"]
        return found

    def checkpoint_content(self, checkpoint_id: str) -> bytes:
        return self._answer("GET", f"/v1/checkpoints/{checkpoint_id}/content").content

    def checkpoint(self, checkpoint_id: str) -> Json:
        return self._json("GET", f"/v1/checkpoints/{checkpoint_id}")

    def download_checkpoint(self, checkpoint_id: str, target: Path) -> Json:
        """Write a checkpoint's file, which comes from the store itself where that can be had; returns what it is.

        Nothing is left at `target` of a file that is cut off or not as it was stored.
        """
        described = self.checkpoint(checkpoint_id)
        partial = target.with_name(f".{target.name}.part")
        try:
            path, seconds = f"/v1/checkpoints/{checkpoint_id}/content", self._timeout_seconds
            with self._sentences():
                sha256 = download(self._http, path, partial, _check, timeout_seconds=seconds)
            if sha256 != described["sha256"]:
                raise ServiceError(f"what came of {checkpoint_id} is not what was stored: its sha256 differs")
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
        return described

    def predict(self, checkpoint_id: str, image: Path, *, min_score: float = 0.5) -> Json:
        """What a checkpoint names in an image file."""
        named: Json = self._predicted(checkpoint_id, image, min_score, "application/json").json()
        return named

    def predict_drawn(self, checkpoint_id: str, image: Path, *, min_score: float = 0.5) -> bytes:
        """The same as a PNG, drawn on the image."""
        return self._predicted(checkpoint_id, image, min_score, "image/png").content

    def upload_weights(self, file: Path, *, name: str = "") -> Json:
        """Keep a safetensors file for `backbone.weights`, streamed."""
        with file.open("rb") as content:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
            return self._json("POST", "/v1/weights", params={"name": name}, content=content, headers=headers)

    def weights(self) -> Iterator[Json]:
        """All uploaded weights, newest first, a page at a time."""
        yield from self._pages("/v1/weights", {})

    def delete_weights(self, weights_id: str) -> None:
        self._answer("DELETE", f"/v1/weights/{weights_id}")

    def create_dataset(self, name: str, *, task: str, format_: str, **more: Any) -> Json:
        """Declare a data set; `more` may be options, sha256 of the archive to come, or path below the data root."""
        return self._json("POST", "/v1/datasets", json={"name": name, "task": task, "format": format_, **more})

    def upload_dataset(
        self,
        dataset_id: str,
        archive: Path,
        *,
        part_bytes: int = PART_BYTES,
        on_progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> Json:
        """Bring a data set's archive part by part; returns the data set, which is then checked.

        It begins where an upload before it has stopped, and goes on after errors that may pass. `on_progress` is told
        the bytes sent so far, which fall back when a part has to be sent again, and those of the whole.
        """
        total = archive.stat().st_size
        if total == 0:
            raise ServiceError(f"{archive} is empty; an archive would do")
        heard_at = time.monotonic()
        with archive.open("rb") as content:
            while True:
                try:
                    start = self._upload_offset(dataset_id)
                    while start < total:
                        on_progress(start, total)
                        part = Part(content, start, min(part_bytes, total - start), total)
                        start = self._upload_part(dataset_id, part, on_progress)
                        heard_at = time.monotonic()
                    on_progress(total, total)
                    return self.dataset(dataset_id)
                except ServiceError as error:
                    if not _is_passing(error) or time.monotonic() - heard_at > GONE_SECONDS:
                        raise
                time.sleep(RETRY_SECONDS)

    def dataset(self, dataset_id: str) -> Json:
        return self._json("GET", f"/v1/datasets/{dataset_id}")

    def wait_dataset(self, dataset_id: str, on_change: Callable[[Json], None] = lambda _: None) -> Json:
        """The data set once its check is over; `on_change` is told how it stands on the way."""
        while (found := self.dataset(dataset_id))["status"] == "checking":
            on_change(found)
            time.sleep(RETRY_SECONDS)
        return found

    def datasets(self, **filters: Any) -> Iterator[Json]:
        """All data sets, newest first, a page at a time; `filters` are the list's query parameters."""
        yield from self._pages("/v1/datasets", filters)

    def dataset_samples(self, dataset_id: str) -> bytes:
        """The contact sheet, a PNG."""
        return self._answer("GET", f"/v1/datasets/{dataset_id}/samples.png").content

    def delete_dataset(self, dataset_id: str) -> None:
        self._answer("DELETE", f"/v1/datasets/{dataset_id}")

    def create_webhook(self, url: str, **more: Any) -> Json:
        """Have a URL told of jobs; `more` may be name and types. The answer's `secret` is not shown again."""
        return self._json("POST", "/v1/webhooks", json={"url": url, **more})

    def webhooks(self) -> Iterator[Json]:
        """All webhooks, newest first, a page at a time."""
        yield from self._pages("/v1/webhooks", {})

    def delete_webhook(self, webhook_id: str) -> None:
        self._answer("DELETE", f"/v1/webhooks/{webhook_id}")

    def test_webhook(self, webhook_id: str) -> Json:
        """Have something sent that means nothing; returns the delivery."""
        return self._json("POST", f"/v1/webhooks/{webhook_id}/test")

    def deliveries(self, webhook_id: str, **filters: Any) -> Iterator[Json]:
        """What a webhook was told or is to be told, newest first, a page at a time."""
        yield from self._pages(f"/v1/webhooks/{webhook_id}/deliveries", filters)

    def retry_delivery(self, webhook_id: str, delivery_id: str) -> Json:
        """Have it sent again under its id."""
        return self._json("POST", f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry")

    def cancel(self, job_id: str) -> Json:
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> Json:
        """Have it give back its device until it is resumed."""
        return self._json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> Json:
        """Queue it again; it goes on from where it was paused."""
        return self._json("POST", f"/v1/jobs/{job_id}/resume")

    def retry(self, job_id: str) -> Json:
        """A new job of the same spec as that of one that has ended."""
        return self._json("POST", f"/v1/jobs/{job_id}/retry")

    def attempts(self, job_id: str) -> list[Json]:
        """Every claim of the job, newest first."""
        found: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/attempts")["data"]
        return found

    def delete(self, job_id: str) -> None:
        self._answer("DELETE", f"/v1/jobs/{job_id}")

    def usage(self) -> Json:
        """What the key's tenant has used, and its limits."""
        return self._json("GET", "/v1/usage")

    def workers(self) -> list[Json]:
        found: list[Json] = self._json("GET", "/v1/workers")["data"]
        return found

    def drain_worker(self, worker_id: str, *, requeue: bool = False) -> Json:
        """Have it take on nothing more, and its jobs finish or be queued again."""
        body = {"jobs": "requeue" if requeue else "finish"}
        return self._json("POST", f"/v1/workers/{worker_id}/drain", json=body)

    def resume_worker(self, worker_id: str) -> Json:
        """Have it take on jobs again."""
        return self._json("POST", f"/v1/workers/{worker_id}/resume")

    def _json(self, method: str, path: str, **request: Any) -> Json:
        body: Json = self._answer(method, path, **request).json()
        return body

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._sentences():
            response = self._http.request(method, path, **request)
        _check(response)
        return response

    def _predicted(self, checkpoint_id: str, image: Path, min_score: float, media_type: str) -> httpx.Response:
        """The answer, waited for again where it is not there yet."""
        give_up_at, content = time.monotonic() + GONE_SECONDS, image.read_bytes()
        while True:
            try:
                return self._answer(
                    "POST",
                    f"/v1/checkpoints/{checkpoint_id}/predict",
                    params={"min_score": min_score},
                    content=content,
                    headers={"Content-Type": "application/octet-stream", "Accept": media_type},
                    timeout=PREDICTION_SECONDS,
                )
            except RequestRefused as error:
                if error.code != "not_ready" or time.monotonic() > give_up_at:
                    raise

    def _upload_offset(self, dataset_id: str) -> int:
        state = self.dataset(dataset_id)["upload"]
        return int(state["offset"]) if state else 0

    def _upload_part(self, dataset_id: str, part: "Part", on_progress: Callable[[int, int], None]) -> int:
        """Send one part; returns where the next begins."""
        last = part.start + part.size_bytes - 1
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(part.size_bytes),
            "Content-Range": f"bytes {part.start}-{last}/{part.total}",
            "Content-Digest": f"sha-256=:{base64.b64encode(part.sha256()).decode()}:",
        }
        sent = part.blocks(lambda done: on_progress(done, part.total))
        timeout = httpx.Timeout(self._timeout_seconds, read=STORING_SECONDS)
        path = f"/v1/datasets/{dataset_id}/content"
        return int(self._answer("PUT", path, content=sent, headers=headers, timeout=timeout).headers["Upload-Offset"])

    def _pages(self, path: str, query: Mapping[str, Any]) -> Iterator[Json]:
        page = {"has_more": True, "next": query.get("after")}
        while page["has_more"]:
            more = {"after": page["next"]} if page["next"] is not None else {}
            page = self._json("GET", path, params={**query, **more})
            yield from page["data"]

    def _stream(self, job_id: str, after: int) -> Iterator[Json]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(10, read=STREAM_SECONDS)
        with (
            self._sentences(),
            self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as response,
        ):
            if not response.is_success:
                response.read()
            _check(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def _has_more_events(self, job_id: str, after: int) -> bool:
        return bool(self._json("GET", f"/v1/jobs/{job_id}/events", params={"after": after, "limit": 1})["data"])

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"nobody answers at {self.url}: {error}") from None


@dataclass(frozen=True)
class Part:
    """A stretch of an archive: `size_bytes` from `start` on, of `total`."""

    content: BinaryIO
    start: int
    size_bytes: int
    total: int

    def sha256(self) -> bytes:
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.digest()

    def blocks(self, on_progress: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        """Its bytes; `on_progress` is told where in the archive each block ends."""
        self.content.seek(self.start)
        end = self.start + self.size_bytes
        for at in range(self.start, end, BLOCK_BYTES):
            yield self.content.read(min(BLOCK_BYTES, end - at))
            on_progress(min(at + BLOCK_BYTES, end))


def _is_passing(error: ServiceError) -> bool:
    """Whether the service may soon be back, or the same request be taken when it is sent again."""
    if isinstance(error, RequestRefused):
        return error.status in PASSING or error.code in PASSING_CODES
    return isinstance(error, ServiceUnreachable)


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    raise RequestRefused(response.status_code, problem if isinstance(problem, dict) else {})
