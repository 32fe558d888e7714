"""Sixteen samples of the train split on one picture, with what is to be learned of them drawn in."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from acmix.datasets._contract import IGNORED, Dataset, Split, Target
from acmix.drawing import INK, PAPER, drawn, shortened
from acmix.inspection.targets import labels_in_map, labels_of

SIDE = 4  # samples in a row, and rows
CELL_PX = 240
CAPTION_PX = 28
GAP_PX = 8
FONT_PX = 18


def write(dataset: Dataset, file: Path) -> None:
    """A PNG; of the same data always the same."""
    draw_sheet(dataset).save(file, format="PNG")


def draw_sheet(dataset: Dataset) -> Image.Image:
    columns, rows = CELL_PX + GAP_PX, CELL_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (SIDE * columns + GAP_PX, SIDE * rows + GAP_PX), PAPER)
    for number, (image_3HW, target) in enumerate(_samples(dataset.split("train"))):
        left, top = GAP_PX + number % SIDE * columns, GAP_PX + number // SIDE * rows
        picture = drawn(image_3HW, target, longest_px=CELL_PX, texts=_texts(target, dataset.classes))
        sheet.paste(picture, (left + (CELL_PX - picture.width) // 2, top + (CELL_PX - picture.height) // 2))
        _write_caption(sheet, _caption(target, dataset.classes), left, top + CELL_PX)
    return sheet


def _samples(split: Split) -> Iterator[tuple[Tensor, Target]]:
    """Sixteen, each from the middle of a sixteenth of the split; all where there are fewer."""
    most = min(SIDE * SIDE, len(split))
    for number in range(most):
        yield split[(2 * number + 1) * len(split) // (2 * most)]


def _texts(target: Target, classes: Sequence[str]) -> list[str]:
    """The classes of a target's objects."""
    return [classes[label] for label in target["labels"].tolist()] if isinstance(target, Mapping) else []


def _caption(target: Target, classes: Sequence[str]) -> str:
    """The classes that are there, the most frequent first."""
    labels = labels_in_map(target) if isinstance(target, Tensor) else list(labels_of(target))
    known = [label for label in labels if label != IGNORED]
    by_count = sorted(dict.fromkeys(known), key=lambda label: -known.count(label))
    return ", ".join(classes[label] for label in by_count) or "nothing to find"


def _write_caption(sheet: Image.Image, text: str, left: int, top: int) -> None:
    font = ImageFont.load_default(FONT_PX)
    text = shortened(text, font, CELL_PX)
    x = left + (CELL_PX - font.getlength(text)) / 2
    ImageDraw.Draw(sheet).text((x, top + CAPTION_PX / 2), text, fill=INK, font=font, anchor="lm")
