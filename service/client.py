"""A client of the API for people, scripts and the command line."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx

Json = dict[str, Any]

STREAM_SECONDS = 40.0  # without a word, not even a comment, a stream is dead
RETRY_SECONDS = 1.0
GONE_SECONDS = 120.0
ENDED = ("succeeded", "failed", "cancelled")
PASSING = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)


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
    """Speaks to the service at `url`; every method raises ServiceError."""

    def __init__(self, url: str, *, timeout_seconds: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_seconds)

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

    def cancel(self, job_id: str) -> Json:
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def delete(self, job_id: str) -> None:
        self._answer("DELETE", f"/v1/jobs/{job_id}")

    def workers(self) -> list[Json]:
        found: list[Json] = self._json("GET", "/v1/workers")["data"]
        return found

    def _json(self, method: str, path: str, **request: Any) -> Json:
        body: Json = self._answer(method, path, **request).json()
        return body

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._sentences():
            response = self._http.request(method, path, **request)
        _check(response)
        return response

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


def _is_passing(error: ServiceError) -> bool:
    """Whether the service may soon be back."""
    return not isinstance(error, RequestRefused) or error.status in PASSING


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    raise RequestRefused(response.status_code, problem if isinstance(problem, dict) else {})
