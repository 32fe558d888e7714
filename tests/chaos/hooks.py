"""A receiver of webhooks beside a campaign: whatever dies, each end of a job is told to it, signed and under one id."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.store.rows import Job
from service.store.states import ENDED
from tests.worker.receivers import Received, Receiver, certificates, receiving

PATIENCE_SECONDS = 90.0  # a lease of a delivery, and what comes after


@dataclass
class Hook:
    """What one webhook was told."""

    receiver: Receiver
    settings: Mapping[str, str]
    secret: str = ""

    def ask_for(self, http_url: str) -> None:
        """Have it told of every end, from now on."""
        answer = httpx.post(f"{http_url}/v1/webhooks", json={"url": self.receiver.url}, timeout=10)
        answer.raise_for_status()
        self.secret = answer.json()["secret"]

    def broken(self, jobs: Mapping[str, Job]) -> list[str]:
        """What of the ends it was not told, told wrongly, or by nobody that we know; waits for the last of them."""
        ended = {(job.id, f"job.{job.status}") for job in jobs.values() if job.status in ENDED}
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while (missing := ended - self._told().keys()) and time.monotonic() < give_up_at:
            time.sleep(0.5)
        found = [f"{job_id}: {kind} was never told" for job_id, kind in sorted(missing)]
        found += [f"{job_id}: {kind} was told and is not so" for job_id, kind in self._told().keys() - ended]
        found += [f"{told}: was told under {len(ids)} ids" for told, ids in self._told().items() if len(ids) > 1]
        return found + ["a message is not signed as ours are"] * (not all(map(self._is_ours, self.receiver.received)))

    def figures(self) -> str:
        came = len(self.receiver.received)
        once = len({each.headers["webhook-id"] for each in self.receiver.received})
        return f"{once} messages to a webhook, {came - once} of them again"

    def _told(self) -> dict[tuple[str, str], set[str]]:
        """By job and type, the ids under which that came."""
        found: dict[tuple[str, str], set[str]] = {}
        for each in list(self.receiver.received):
            message = json.loads(each.body)
            found.setdefault((message["data"]["job"], message["type"]), set()).add(each.headers["webhook-id"])
        return found

    def _is_ours(self, received: Received) -> bool:
        """By Standard Webhooks, computed here anew."""
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        message_id, timestamp, signature = (received.headers[name] for name in names)
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        signed = hmac.new(key, f"{message_id}.{timestamp}.".encode() + received.body, hashlib.sha256).digest()
        return signature == f"v1,{base64.b64encode(signed).decode()}"


@contextmanager
def hook(folder: Path) -> Iterator[Hook]:
    """One whose receiver is up, with the settings by which a cluster lets messages go there."""
    made = certificates(folder / "certificates")
    settings = {"WEBHOOK_NETWORKS": "127.0.0.0/8", "WEBHOOK_CA_FILE": str(made / "authority.pem")}
    with receiving(made) as receiver:
        yield Hook(receiver, settings)
