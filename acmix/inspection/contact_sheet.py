"""Sixteen samples of the train split on one picture, with what is to be learned of them drawn in."""

# Shapes: H W image, N objects of an image

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from acmix.datasets._contract import IGNORED, Dataset, Split, Target
from acmix.inspection.targets import labels_in_map, labels_of

SIDE = 4  # samples in a row, and rows
CELL_PX = 240
CAPTION_PX = 28
GAP_PX = 8
FONT_PX = 18
BOX_FONT_PX = 14
TINT = 0.5
PAPER, INK = (250, 250, 250), (20, 20, 20)
HUE_STEP = 0.618034  # the golden ratio: hues of neighbouring classes lie far apart

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write(dataset: Dataset, file: Path) -> None:
    """A PNG; of the same data always the same."""
    draw_sheet(dataset).save(file, format="PNG")


def draw_sheet(dataset: Dataset) -> Image.Image:
    columns, rows = CELL_PX + GAP_PX, CELL_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (SIDE * columns + GAP_PX, SIDE * rows + GAP_PX), PAPER)
    for number, (image_3HW, target) in enumerate(_samples(dataset.split("train"))):
        left, top = GAP_PX + number % SIDE * columns, GAP_PX + number // SIDE * rows
        picture = _picture(image_3HW, target, dataset.classes)
        sheet.paste(picture, (left + (CELL_PX - picture.width) // 2, top + (CELL_PX - picture.height) // 2))
        _write_caption(sheet, _caption(target, dataset.classes), left, top + CELL_PX)
    return sheet


def _samples(split: Split) -> Iterator[tuple[Tensor, Target]]:
    """Sixteen, each from the middle of a sixteenth of the split; all where there are fewer."""
    most = min(SIDE * SIDE, len(split))
    for number in range(most):
        yield split[(2 * number + 1) * len(split) // (2 * most)]


def _picture(image_3HW: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
    """The image as large as fits the cell, with its target drawn in."""
    _, height, width = image_3HW.shape
    scale = CELL_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture = Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).resize(size, resampling)
    if isinstance(target, Mapping):
        return _with_objects(picture, target, scale, classes)
    return _with_map(picture, target) if isinstance(target, Tensor) else picture


def _with_map(picture: Image.Image, map_HW: Tensor) -> Image.Image:
    colours = np.array([_colour(label) for label in range(IGNORED + 1)], dtype=np.uint8)
    labels_HW = np.asarray(Image.fromarray(map_HW.numpy()).resize(picture.size, Image.Resampling.NEAREST))
    return _tinted(picture, colours[labels_HW], labels_HW != IGNORED)


def _with_objects(
    picture: Image.Image, target: Mapping[str, Tensor], scale: float, classes: Sequence[str]
) -> Image.Image:
    labels = target["labels"].tolist()
    for label, mask_HW in zip(labels, target.get("masks", ()), strict=False):
        mask = Image.fromarray(mask_HW.numpy()).resize(picture.size, Image.Resampling.NEAREST)
        picture = _tinted(picture, np.array(_colour(label), dtype=np.uint8), np.asarray(mask) > 0)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(BOX_FONT_PX)
    for label, box in zip(labels, (target["boxes"] * scale).tolist(), strict=True):
        left, top, right, bottom = box
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_colour(label), width=2)
    for label, box in zip(labels, (target["boxes"] * scale).tolist(), strict=True):  # over all boxes
        _write_label(draw, classes[label], _colour(label), (box[0], box[1]), font, picture.size)
    return picture


def _write_label(
    draw: ImageDraw.ImageDraw, text: str, colour: Colour, at: tuple[float, float], font: Font, size: tuple[int, int]
) -> None:
    """A class's name on its colour at a box's corner, moved to lie within the picture."""
    text = _shortened(text, font, size[0])
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x, y = max(0, min(round(at[0]), size[0] - width)), max(0, min(round(at[1]), size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill=INK if sum(colour) > 380 else PAPER, font=font)


def _tinted(picture: Image.Image, colours: NDArray[np.uint8], where_HW: NDArray[np.bool_]) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float32)
    mixed = np.where(where_HW[..., None], (1 - TINT) * pixels + TINT * colours, pixels)
    return Image.fromarray(mixed.astype(np.uint8))


def _caption(target: Target, classes: Sequence[str]) -> str:
    """The classes that are there, the most frequent first."""
    labels = labels_in_map(target) if isinstance(target, Tensor) else list(labels_of(target))
    known = [label for label in labels if label != IGNORED]
    by_count = sorted(dict.fromkeys(known), key=lambda label: -known.count(label))
    return ", ".join(classes[label] for label in by_count) or "nothing to find"


def _write_caption(sheet: Image.Image, text: str, left: int, top: int) -> None:
    font = ImageFont.load_default(FONT_PX)
    text = _shortened(text, font, CELL_PX)
    x = left + (CELL_PX - font.getlength(text)) / 2
    ImageDraw.Draw(sheet).text((x, top + CAPTION_PX / 2), text, fill=INK, font=font, anchor="lm")


def _shortened(text: str, font: Font, most_px: int) -> str:
    """As much of a text as fits, on one line."""
    text = "".join(each if each.isprintable() else " " for each in text[:100])
    if font.getlength(text) <= most_px:
        return text
    while text and font.getlength(f"{text}...") > most_px:
        text = text[:-1]
    return f"{text}..."


def _colour(label: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(label * HUE_STEP % 1, 0.85 if label % 2 else 0.6, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
