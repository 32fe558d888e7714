"""Sixteen samples on one picture, with what is to be learned of them drawn in where it is."""

import numpy as np
import torch
from PIL import Image

from acmix.datasets.image_folder import ImageFolder
from acmix.inspection import contact_sheet, reports
from acmix.inspection.content import Content
from acmix.inspection.findings import look_at
from acmix.inspection.formats._contract import Format
from tests.acmix.photos import write_photos

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 210)


class _Objects:
    """Grey pictures of any task."""

    name, classes, has_masks = "objects", ("thing", "other thing"), False

    def __init__(self, *targets) -> None:
        self.targets = targets

    def split(self, name: str):
        return self

    def source(self, index: int) -> str:
        return f"{index}.png"

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return torch.full((3, 120, 240), 100, dtype=torch.uint8), self.targets[index]


def _boxes(*, masks: bool = False) -> dict[str, torch.Tensor]:
    target = {
        "boxes": torch.tensor([[20.0, 30.0, 100.0, 110.0], [150.0, 10.0, 230.0, 60.0]]),
        "labels": torch.tensor([0, 1]),
        "areas": torch.tensor([6400.0, 4000.0]),
        "crowd": torch.tensor([False, True]),
    }
    if masks:
        target["masks"] = torch.zeros((2, 120, 240), dtype=torch.uint8)
        target["masks"][0, 60:110, 20:60] = 1
    return target


CELL_TOP = contact_sheet.GAP_PX + (contact_sheet.CELL_PX - 120) // 2  # of a picture half as high as wide
CELL_LEFT = contact_sheet.GAP_PX


def _drawn(target) -> np.ndarray:
    """The first sample's picture on the sheet."""
    sheet = np.asarray(contact_sheet.draw_sheet(_Objects(target)))
    return sheet[CELL_TOP : CELL_TOP + 120, CELL_LEFT : CELL_LEFT + 240]


def test_samples_are_spread_over_train(tmp_path):
    for name, colour in (("a", RED), ("b", GREEN), ("c", BLUE), ("d", RED)):
        (tmp_path / "photos/train" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (8, 8), colour).save(tmp_path / "photos/train" / name / f"{number}.png")
    sheet = contact_sheet.draw_sheet(ImageFolder(tmp_path, folder="photos"))
    step = contact_sheet.CELL_PX + contact_sheet.GAP_PX
    for row, colour in enumerate((RED, GREEN, BLUE, RED)):
        for column in range(4):
            assert sheet.getpixel((100 + column * step, 100 + row * (step + contact_sheet.CAPTION_PX))) == colour


def test_of_the_same_data_the_sheet_is_the_same(tmp_path):
    photos = ImageFolder(write_photos(tmp_path), folder=".")
    contact_sheet.write(photos, tmp_path / "1.png")
    contact_sheet.write(photos, tmp_path / "2.png")
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_the_class_stands_below_its_picture():
    captions = slice(CELL_LEFT + 0, CELL_LEFT + 240)
    rows = slice(
        contact_sheet.GAP_PX + contact_sheet.CELL_PX,
        contact_sheet.GAP_PX + contact_sheet.CELL_PX + contact_sheet.CAPTION_PX,
    )
    drawn = [np.asarray(contact_sheet.draw_sheet(_Objects(label)))[rows, captions] for label in (0, 1)]
    assert all((caption < 100).any() for caption in drawn)
    assert (drawn[0] != drawn[1]).any()
    assert (drawn[0] < 100).sum() < (drawn[1] < 100).sum()


def test_boxes_masks_and_labels_are_drawn_where_they_are():
    plain, boxed, masked = _drawn(0), _drawn(_boxes()), _drawn(_boxes(masks=True))
    assert (plain == 100).all()
    assert (boxed[80, 20] != 100).any()
    assert (boxed[80, 99] != 100).any()
    assert (boxed[109, 60] != 100).any()
    assert (boxed[80, 60] == 100).all()
    assert (boxed[80, 110] == 100).all()
    assert (boxed[34:44, 24:60] != 100).any()  # the class's name
    assert (masked[80, 40] != 100).any()
    assert (masked[80, 80] == 100).all()


def test_a_label_map_is_tinted_by_class_and_left_alone_where_ignored():
    labels_HW = torch.full((120, 240), 255, dtype=torch.uint8)
    labels_HW[:, :80], labels_HW[:, 80:160] = 0, 1
    drawn = _drawn(labels_HW)
    assert len({tuple(drawn[60, x]) for x in (40, 120, 200)}) == 3
    assert (drawn[:, 160:] == 100).all()


def test_other_tasks_are_counted_by_their_targets(tmp_path):
    class Boxes(Format):
        name, task, layout, expected = "boxes", "detection", frozenset(), "boxes"

    class Maps(Boxes):
        task = "segmentation"

    labels_HW = torch.tensor([[1, 1, 255]], dtype=torch.uint8)
    content = Content("0" * 64, 1, 1)
    for form, target, by_class in [
        (Boxes, _boxes(), {"thing": 1, "other thing": 0}),
        (Maps, labels_HW, {"thing": 0, "other thing": 1}),
    ]:
        findings = look_at(_Objects(target), tmp_path, lambda done, of: None)
        report = reports.ready(form, content, findings, root=".", options={}, passed_over=0)
        assert report["splits"]["train"] == {"samples": 1, "by_class": by_class}
