"""Jobs that evaluate: the spec that a checkpoint was trained by, judged on what is asked for."""

from typing import Any

from acmix import spec
from acmix.errors import Problem, SpecInvalid
from acmix.spec import EvaluateSpec, JobSpec
from service.store.backend import Backend
from service.store.errors import CheckpointNotFound


def is_asked_for(raw: Any) -> bool:
    """Whether a body asks for an evaluation."""
    return isinstance(raw, dict) and raw.get("kind") == "evaluate"


def job_of(raw: Any, store: Backend) -> JobSpec:
    """The job that such a body asks for: model and task as trained, its weights those of the checkpoint.

    SpecInvalid with a pointer for every fault.
    """
    asked = spec.parse_as(EvaluateSpec, raw)
    try:
        trained = store.reader.job(store.reader.checkpoint(asked.checkpoint).job)
    except CheckpointNotFound as error:
        raise SpecInvalid([Problem("/checkpoint", "unknown_id", str(error))]) from None
    return _judging(asked, spec.parse(trained.resolved_spec))


def _judging(asked: EvaluateSpec, trained: JobSpec) -> JobSpec:
    batch_size = asked.evaluation.batch_size or trained.training.batch_size
    # running statistics are judged, which nothing is shared of: it may be done on the CPU
    judged = {"batch_size": batch_size, "sync_batch_norm": False}
    return trained.model_copy(
        update={
            **{
                name: getattr(asked, name)
                for name in ("kind", "name", "metadata", "checkpoint", "resources", "priority")
            },
            "backbone": trained.backbone.model_copy(update={"weights": asked.checkpoint}),
            "dataset": asked.dataset or trained.dataset,
            "training": trained.training.model_copy(update=judged),
            "evaluation": trained.evaluation.model_copy(update={"split": asked.evaluation.split}),
        }
    )
