"""Images with what is to be learned of them, or what a model names in them, drawn in."""

# Shapes: H W image, N objects of an image

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from acmix.datasets._contract import IGNORED, Target

FONT_PX = 14
TINT = 0.5
PAPER, INK = (250, 250, 250), (20, 20, 20)
HUE_STEP = 0.618034  # the golden ratio: hues of neighbouring classes lie far apart

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Legend = Sequence[tuple[int, str]]  # classes by index, each with what is written on its colour


def drawn(
    image_3HW: Tensor, target: Target, *, longest_px: int, texts: Sequence[str] = (), legend: Legend = ()
) -> Image.Image:
    """The image, uint8, scaled to that long side, with its target (acmix.datasets._contract.Split) drawn in.

    `texts` stand at the objects of a detection's target, one each; `legend` in the corner of any picture.
    """
    _, height, width = image_3HW.shape
    scale = longest_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture = Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).resize(size, resampling)
    if isinstance(target, Mapping):
        picture = _with_objects(picture, target, scale, texts)
    elif isinstance(target, Tensor):
        picture = _with_map(picture, target)
    _write_legend(picture, legend)
    return picture


def shortened(text: str, font: Font, most_px: int) -> str:
    """As much of a text as fits, on one line."""
    text = "".join(each if each.isprintable() else " " for each in text[:100])
    if font.getlength(text) <= most_px:
        return text
    while text and font.getlength(f"{text}...") > most_px:
        text = text[:-1]
    return f"{text}..."


def _with_map(picture: Image.Image, map_HW: Tensor) -> Image.Image:
    colours = np.array([_colour(label) for label in range(IGNORED + 1)], dtype=np.uint8)
    labels_HW = np.asarray(Image.fromarray(map_HW.numpy()).resize(picture.size, Image.Resampling.NEAREST))
    pixels = np.array(picture)
    _tint(pixels, labels_HW != IGNORED, colours[labels_HW[labels_HW != IGNORED]])
    return Image.fromarray(pixels)


def _with_objects(
    picture: Image.Image, target: Mapping[str, Tensor], scale: float, texts: Sequence[str]
) -> Image.Image:
    labels, boxes = target["labels"].tolist(), (target["boxes"] * scale).tolist()
    pixels = np.array(picture)
    for label, mask_HW in zip(labels, target.get("masks", ()), strict=False):
        mask = Image.fromarray(mask_HW.numpy()).resize(picture.size, Image.Resampling.NEAREST)
        _tint(pixels, np.asarray(mask) > 0, np.array(_colour(label)))
    picture = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX)
    for label, (left, top, right, bottom) in zip(labels, boxes, strict=True):
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=_colour(label), width=2)
    for label, box, text in zip(labels, boxes, texts, strict=True):  # over all boxes
        _write_label(draw, text, _colour(label), (box[0], box[1]), font, picture.size)
    return picture


def _write_legend(picture: Image.Image, legend: Legend) -> None:
    draw, font, top = ImageDraw.Draw(picture), ImageFont.load_default(FONT_PX), 0
    for label, text in legend:
        top += _write_label(draw, text, _colour(label), (0, top), font, picture.size) + 1


def _write_label(
    draw: ImageDraw.ImageDraw, text: str, colour: Colour, at: tuple[float, float], font: Font, size: tuple[int, int]
) -> int:
    """A text on a class's colour, moved to lie within the picture; its height."""
    text = shortened(text, font, size[0])
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x, y = max(0, min(round(at[0]), size[0] - width)), max(0, min(round(at[1]), size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill=INK if sum(colour) > 380 else PAPER, font=font)
    return int(height)


def _tint(pixels: NDArray[np.uint8], where_HW: NDArray[np.bool_], colours: NDArray[Any]) -> None:
    """Mix the pixels there with a colour, or one each."""
    pixels[where_HW] = (1 - TINT) * pixels[where_HW] + TINT * colours


def _colour(label: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(label * HUE_STEP % 1, 0.85 if label % 2 else 0.6, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
