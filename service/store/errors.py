"""What the store refuses, named for what happened; each message is a sentence."""

from collections.abc import Sequence
from typing import ClassVar

from service.store.rows import Dataset, Job, Webhook


class JobNotFound(Exception):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id[:60]!r}")
        self.job_id = job_id


class WorkerNotFound(Exception):
    def __init__(self, worker_id: str) -> None:
        super().__init__(f"no worker {worker_id[:60]!r} is at work")
        self.worker_id = worker_id


class WorkerIsOlder(Exception):
    """Of a version that knows of no orders."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"worker {worker_id[:60]!r} is of a version that cannot be drained; SIGTERM to it would do")
        self.worker_id = worker_id


class CheckpointNotFound(Exception):
    def __init__(self, checkpoint_id: str) -> None:
        super().__init__(f"there is no checkpoint {checkpoint_id[:60]!r}")
        self.checkpoint_id = checkpoint_id


class WeightsNotFound(Exception):
    def __init__(self, weights_id: str) -> None:
        super().__init__(f"there are no weights {weights_id[:60]!r}")
        self.weights_id = weights_id


class WeightsNeeded(Exception):
    """A job that has not ended starts from what was to be deleted."""

    def __init__(self, job: Job) -> None:
        source = job.resolved_spec["backbone"]["weights"]
        super().__init__(f"job {job.id} is {job.status} and starts from {source}; cancel it or wait for its end")
        self.job = job


class DatasetNotFound(Exception):
    def __init__(self, dataset_id: str) -> None:
        super().__init__(f"there is no data set {dataset_id[:60]!r}")
        self.dataset_id = dataset_id


class DatasetNeeded(Exception):
    """A job that has not ended reads the data set that was to be deleted."""

    def __init__(self, job: Job) -> None:
        source = job.resolved_spec["dataset"]["id"]
        super().__init__(f"job {job.id} is {job.status} and reads {source}; cancel it or wait for its end")
        self.job = job


class DatasetConflict(Exception):
    """What was asked does not go with how the data set stands."""

    code: ClassVar[str] = "conflict"

    def __init__(self, dataset: Dataset, sentence: str) -> None:
        super().__init__(f"data set {dataset.id} {sentence}")
        self.dataset = dataset


class DatasetNotReady(DatasetConflict):
    """A job can read it only once it has been checked and found good."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, f"is {dataset.status}; a job can read it once it is ready")


class DatasetInCheck(DatasetConflict):
    """A housekeeper reads what was to be deleted."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, "is being checked; delete it once it is ready or rejected")


class UploadNotTaken(DatasetConflict):
    """It has all of its content."""

    def __init__(self, dataset: Dataset) -> None:
        where = f"lies at {dataset.path}" if dataset.path is not None else f"is {dataset.status}"
        super().__init__(dataset, f"{where} and takes no upload; create another one for other content")


class UploadUnderWay(DatasetConflict):
    """Another request uploads at the same time, or has gone on in this one's place."""

    code = "upload_under_way"

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, "is being uploaded by another request; ask for its offset and try again")


class OffsetDiffers(DatasetConflict):
    """An upload goes on where the one before ended, and nowhere else."""

    code = "offset_differs"

    def __init__(self, dataset: Dataset, start: int) -> None:
        stored = dataset.received_bytes
        super().__init__(dataset, f"has {stored} bytes; an upload goes on at byte {stored}, not at {start}")


class LengthDiffers(DatasetConflict):
    """Another length of the whole than the parts before it named."""

    def __init__(self, dataset: Dataset, total: int) -> None:
        super().__init__(dataset, f"has {dataset.total_bytes} bytes by the parts before; this one says {total}")


class WebhookNotFound(Exception):
    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"there is no webhook {webhook_id[:60]!r}")
        self.webhook_id = webhook_id


class DeliveryNotFound(Exception):
    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"there is no delivery {delivery_id[:60]!r} of this webhook")
        self.delivery_id = delivery_id


class WebhooksExhausted(Exception):
    """One more would be too many."""

    def __init__(self, most: int) -> None:
        super().__init__(f"there are {most} webhooks, which is as many as there may be; delete one first")
        self.most = most


class WebhookDisabled(Exception):
    """Nothing is sent to it any more."""

    def __init__(self, webhook: Webhook) -> None:
        super().__init__(f"webhook {webhook.id} is disabled: {webhook.disabled_reason}; delete it and make another")
        self.webhook = webhook


class JobNotEnded(Exception):
    """Only an ended job can be deleted."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} is {job.status}; cancel it first, then delete it")
        self.job = job


class MoveRefused(Exception):
    """The table of legal moves has no such action for a job of this status."""

    def __init__(self, job: Job, action: str, allowed: Sequence[str]) -> None:
        super().__init__(f"job {job.id} is {job.status} and takes no {action}; it takes: {', '.join(allowed)}")
        self.job = job


class IdempotencyKeyReused(Exception):
    """The same Idempotency-Key came with another body."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"this Idempotency-Key already made job {job.id} from another body; use a new key")
        self.job = job


class QuotaExceeded(Exception):
    """A tenant would use more than it may."""

    def __init__(self, tenant: str, of: str, used: float, most: float, would_do: str) -> None:
        super().__init__(f"tenant {tenant} has {used:.10g} {of} and may have {most:.10g}; {would_do}")
        self.used = used
        self.most = most


class KeyNotFound(Exception):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key {key_id[:60]!r}; acmix keys list shows those that there are")


class KeyRefused(Exception):
    """What came as a key lets nobody in; the message says why, and never what it was."""


class LeaseLost(Exception):
    """The job is no longer this attempt's: whoever wrote must kill its child, write nothing and leave."""

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(f"attempt {attempt} no longer holds job {job_id}")
        self.job_id = job_id
        self.attempt = attempt


class BackupRefused(Exception):
    """A back-up cannot be made or restored as asked; the message says why, and what would do."""


class ArtifactNotFound(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(f"no artifact has the key {key[:200]!r}")
        self.key = key


class ArtifactsAway(Exception):
    """The files cannot be reached now: no verdict on what was asked, which may be asked again."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the store of files does not answer: {why}")


class ArtifactsRefused(ArtifactsAway):
    """It answers, and will say no until somebody mends its settings; until then it is as good as away."""

    def __init__(self, said: str) -> None:
        would_do = "ARTIFACTS_URL must name a bucket that is there, and AWS_* a key that may use it"
        Exception.__init__(self, f"the store of files refuses ({said}); {would_do}")


class ArtifactsFull(Exception):
    """Where the files are kept no more can be stored."""

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no room to store {key[:200]!r}")
        self.key = key


class ArtifactExists(Exception):
    """A folder of artifacts is written once."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key[:200]!r} already holds other files; put the folder under a new key")
        self.key = key
