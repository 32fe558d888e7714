"""The catalog that a worker posts, by hand: a few entries of each kind, as the registry's folders give them."""

from typing import Any

from acmix.catalog import (
    AugmentEntry,
    BackboneEntry,
    Catalog,
    DatasetEntry,
    Entry,
    MixerEntry,
    MixerForm,
    SlotPattern,
    TaskEntry,
)

ODD = {"type": "integer", "minimum": 1, "maximum": 63, "not": {"multipleOf": 2}}


def catalog() -> Catalog:
    return Catalog(
        tasks=[
            _task("classification", "One label an image"),
            _task("detection", "Boxes"),
        ],
        backbones=[
            _resnet("resnet26", [1, 2, 4, 1]),
            _resnet("resnet50", [3, 4, 6, 3]).model_copy(update={"timm_counterpart": "resnet50"}),
            _resnet("resnet", [3, 4, 6, 3], depths_option="depths", depths=DEPTHS),
            _family("zoo", ["lion", "lioness", "tiger_small"]),
        ],
        mixers=[_acmix(), _rolling()],
        datasets=[
            _dataset("digits", 10, image_px={**PIXELS, "maximum": 224, "default": 8}),
            _dataset("image_folder", None, folder=FOLDER, image_px={**PIXELS, "maximum": 1024, "default": 224}),
            _dataset("boxes", 3, task="detection"),
        ],
        optimizers=[
            Entry(name="sgd", description="Momentum", options=_options(**RATE, momentum=_share(0.9), nesterov=SWITCH)),
            Entry(name="adamw", description="Adam, decay apart", options=_options(**RATE, betas=BETAS)),
        ],
        schedules=[
            Entry(name="cosine", description="Half a cosine", options=_options(**WARMUP, final_factor=_share(0.0))),
            Entry(
                name="milestones",
                description="In steps",
                options=_options(**WARMUP, at_epochs={"type": "array", "items": {"type": "number"}, "maxItems": 9}),
            ),
        ],
        augments=[
            AugmentEntry(name="default", description="What suits the data set", options=_options()),
            AugmentEntry(name="crop", description="Random crops", options=_options(padding_px=PADDING, fill=FILL)),
        ],
    )


PIXELS = {"type": "integer", "minimum": 8}
FOLDER = {"type": "string", "minLength": 1, "maxLength": 1000}
WARMUP = {"warmup_epochs": {"type": "number", "minimum": 0, "maximum": 100_000, "default": 1}}
SWITCH = {"type": "boolean", "default": False}
BETAS = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2, "maxItems": 2, "default": [0.9, 1]}
DEPTHS = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 64}, "default": [3, 4, 6, 3]}
PADDING = {"type": "integer", "minimum": 0, "maximum": 512, "default": 4}
FILL = {"anyOf": [{"enum": ["mean", "edge"]}, {"type": "integer", "minimum": 0}, {"type": "null"}], "default": None}
RATE = {
    "lr": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6, "default": 0.1},
    "weight_decay": {"type": "number", "minimum": 0, "default": 1e-4},
}


def _share(default: float) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "default": default}


def _options(**properties: Any) -> dict[str, Any]:
    required = [name for name, option in properties.items() if "default" not in option]
    closed = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**closed, "required": required} if required else closed


def _resnet(name: str, blocks: list[int], *, depths_option: str | None = None, **more: Any) -> BackboneEntry:
    pattern = SlotPattern(
        name="layer{stage}.{block}.conv2",
        kind="conv2d",
        depths=blocks,
        channels=[64, 128, 256, 512],
        strides=[1, 2, 2, 2],
        depths_option=depths_option,
        width_option="width",
    )
    stem = {"type": "string", "enum": ["imagenet", "small"], "default": "imagenet"}
    width = {"type": "number", "minimum": 0.05, "maximum": 8, "default": 1.0}
    options = _options(stem=stem, width=width, **more)
    slots = pattern.slots({})
    return BackboneEntry(name=name, description="Bottlenecks", options=options, slots=slots, slot_pattern=pattern)


def _family(name: str, variants: list[str]) -> BackboneEntry:
    """Models whose slots only they themselves tell."""
    options = _options(drop_rate={"anyOf": [_share(0.0), {"type": "null"}], "default": None})
    return BackboneEntry(name=name, description="Many models", options=options, slots=None, variants=variants)


def _acmix() -> MixerEntry:
    options = _options(
        heads={"type": "integer", "minimum": 1, "maximum": 1024, "default": 4},
        kernel_att={**ODD, "default": 7},
        kernel_conv={**ODD, "default": 3},
        combine={"type": "string", "const": "alpha_beta", "default": "alpha_beta"},
    )
    form = MixerForm(kind="conv2d", description="For convolutions", options=options, divides_channels="heads")
    return MixerEntry(name="acmix", description="Attention and convolution", forms=[form])


def _rolling() -> MixerEntry:
    """A mixer without a form for convolutions."""
    form = MixerForm(kind="window", description="For windows", options=_options())
    return MixerEntry(name="rolling", description="Windows alone", forms=[form])


def _dataset(name: str, classes: int | None, *, task: str = "classification", **options: Any) -> DatasetEntry:
    return DatasetEntry(name=name, description=name, options=_options(**options), task=task, num_classes=classes)


def _task(name: str, description: str) -> TaskEntry:
    metrics = ["accuracy", "top5_accuracy", "loss"]
    return TaskEntry(name=name, description=description, options=_options(), metrics=metrics)
