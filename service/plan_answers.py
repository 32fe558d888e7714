"""What the API answers of plans."""

from typing import Any

from pydantic import Field

from service.answers import Answer
from service.worker_answers import PlannedWorker


class LayerSize(Answer):
    params: int
    macs: int = Field(description="multiply-adds of one image, forward")
    activation_bytes: int = Field(description="kept of one batch for the backward pass")


class ModelSize(Answer):
    params: int
    macs: int = Field(description="multiply-adds of one image, forward")
    peak_memory_bytes: int = Field(description="the most that a training step takes on a CPU")


class PlannedLayer(Answer):
    layer: str = Field(examples=["layer4.0.conv2"])
    mixer: str | None = Field(description="null where nothing is swapped", examples=["acmix"])
    before: LayerSize
    after: LayerSize
    notes: list[str]


class PlanTotals(Answer):
    before: ModelSize
    after: ModelSize


class Plan(Answer):
    """What a job's model takes, with its swaps and without, before anything is trained."""

    resolved_spec: dict[str, Any] = Field(description="with every default written out; `dataset` only if one was named")
    layers: list[PlannedLayer] = Field(description="every layer that can be swapped, in depth order")
    totals: PlanTotals
    workers: list[PlannedWorker] = Field(description="those that are there now, the longest there first")
    warnings: list[str] = Field(examples=[["layer1 swaps take 29 % of the activation memory for 9 % of the MACs"]])
