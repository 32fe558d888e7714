"""Every augment gives normalised images of the right size, from its seed alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acmix import registry
from acmix.datasets.digits import Digits
from acmix.datasets.image_folder import ImageFolder
from acmix.errors import NameNotFound, OptionInvalid
from acmix.spec import FlatChoice
from acmix.training.augment import AUGMENTS, EachImage, Translation, evaluation_transform, training_transform


def _choice(name: str, **options) -> FlatChoice:
    return FlatChoice.model_validate({"name": name, **options})


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> ImageFolder:
    """Noise of several sizes, all other than 32 px."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.RandomState(0)
    for number, (width, height) in enumerate([(40, 60), (70, 30), (8, 9), (50, 50), (33, 31), (100, 20)]):
        place = root / "photos/train" / ("a", "b")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (height, width, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return ImageFolder(root, folder="photos", image_px=32)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(Path(), image_px=16)


@pytest.mark.parametrize("dataset", ["digits", "photos"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augment_gives_normalised_images_of_the_right_size(name, dataset, request):
    data = request.getfixturevalue(dataset)
    split = data.split("train")
    transform = training_transform(data, _choice(name))
    for seed in range(5):
        image_3HW = transform(split[seed % len(split)][0], seed)
        assert (image_3HW.dtype, image_3HW.shape) == (torch.float32, (3, data.image_px, data.image_px))
        assert -3 < image_3HW.amin() <= image_3HW.amax() < 3  # TrivialAugment may move all of an 8 px image away


@pytest.mark.parametrize("dataset", ["digits", "photos"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_an_image_depends_on_its_seed_and_not_on_its_batch(name, dataset, request):
    data = request.getfixturevalue(dataset)
    split = data.split("train")
    transform = training_transform(data, _choice(name))
    images = [split[index % len(split)][0] for index in range(6)]
    seeds = [5, 2**32 - 1, 7, 0, 123_456_789, 5]
    batch_B3HW = transform.batch(images, seeds)
    for row in range(6):
        assert torch.equal(batch_B3HW[row], transform(images[row], seeds[row]))


@pytest.mark.parametrize("name", sorted(set(AUGMENTS) - {"none"}))
def test_other_seeds_give_other_images(name, photos):
    transform = training_transform(photos, _choice(name))
    image_3HW = photos.split("train")[0][0]
    assert len({transform(image_3HW, seed).numpy().tobytes() for seed in range(0, 2**32, 2**28)}) > 3


def test_the_random_state_of_the_caller_is_neither_used_nor_changed(photos):
    transform = training_transform(photos, _choice("randaugment", erase=1.0))
    image_3HW = photos.split("train")[0][0]
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), transform(image_3HW, 3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, transform(image_3HW, 3))


def test_steps_of_one_image_draw_from_different_seeds(photos):
    seen = []
    transform = training_transform(photos, _choice("randaugment", erase=0.5))
    for step in transform.steps:
        transform_of_step = EachImage((lambda image: (seen.append(torch.rand(1).item()), image)[1],))
        assert isinstance(step, EachImage)
        object.__setattr__(step, "transforms", (*transform_of_step.transforms, *step.transforms))
    transform(photos.split("train")[0][0], 3)
    assert len(seen) == len(set(seen)) == 3


def test_without_augment_an_image_in_memory_is_only_normalised(digits):
    image_3HW = digits.split("train")[0][0]
    expected = (image_3HW.double() / 255 - digits.mean[0]) / digits.std[0]
    torch.testing.assert_close(evaluation_transform(digits)(image_3HW).double(), expected, atol=1e-5, rtol=0)


def test_evaluation_takes_the_centre_of_the_image(photos):
    """Of 60x30 the short side becomes 37; the middle 32 of 74 columns are the columns 17 to 43 of 60."""
    image_3HW = torch.zeros(3, 30, 60, dtype=torch.uint8)
    image_3HW[:, :, 17:43] = 255
    assert evaluation_transform(photos)(image_3HW).amin() > 1.5
    image_3HW[:, :, :20] = image_3HW[:, :, 40:] = 0
    assert evaluation_transform(photos)(image_3HW)[:, :, [0, -1]].amax() < -1.5


def test_a_shift_moves_by_at_most_its_fraction_and_in_both_directions():
    images = [torch.zeros(3, 9, 9, dtype=torch.uint8) for _ in range(400)]
    for image_3HW in images:
        image_3HW[:, 4, 4] = 255
    seeds = torch.randint(2**32, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    places = {tuple(moved[0].nonzero()[0].tolist()) for moved in Translation(2)(images, seeds)}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_a_flip_mirrors_half_of_the_images():
    images = [torch.arange(4, dtype=torch.uint8).expand(3, 4, 4)] * 1000
    seeds = torch.randint(2**32, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    mirrored = sum(int(moved[0, 0, 0]) == 3 for moved in Translation(0, flip=True)(images, seeds))
    assert 450 < mirrored < 550


def test_a_moved_image_is_one_that_torchvision_could_have_cropped():
    """Witness: all 81 crops of the padded image, and their mirror images."""
    from torchvision.transforms.v2 import functional

    image_3HW = torch.randint(256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    padded_3HW = functional.pad(image_3HW, [4])
    crops = [functional.crop(padded_3HW, top, left, 8, 8) for top in range(9) for left in range(9)]
    possible = {crop.numpy().tobytes() for crop in [*crops, *(functional.horizontal_flip(crop) for crop in crops)]}
    seeds = torch.randint(2**32, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    found = {moved.numpy().tobytes() for moved in Translation(4, flip=True)([image_3HW] * 2000, seeds)}
    assert found == possible


def test_what_is_erased_is_nearly_zero(digits):
    transform = training_transform(digits, _choice("crop", padding_px=0, erase=1.0))
    bright_3HW = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    erased = transform(bright_3HW, 3)
    assert 0 < (erased.abs() < 0.02).float().mean() < 0.5
    assert (erased.abs() < 0.02).logical_or(erased > 1).all()


def test_an_unknown_augment_names_the_nearest(digits):
    with pytest.raises(NameNotFound, match="'randaugmentt'; nearest: randaugment"):
        training_transform(digits, _choice("randaugmentt"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {"erase": 0.5}),
        ("crop", {"erase": 1.5}),
        ("randaugment", {"magnitude": 31}),
        ("shift", {"fraction": "a"}),
    ],
)
def test_a_wrong_option_is_named_with_its_augment(digits, name, options):
    with pytest.raises(OptionInvalid, match=f"augment {name}: option '{next(iter(options))}'"):
        training_transform(digits, _choice(name, **options))


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augment_has_a_description_and_a_schema(name):
    assert registry.description(AUGMENTS[name])
    assert registry.schema(AUGMENTS[name])["additionalProperties"] is False
