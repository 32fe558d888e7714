"""P14: no code runs from a user's file, whichever of the library's doors it comes in by."""

import io
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from acmix import manifest, spec, weights
from acmix.convert import convert
from acmix.errors import CheckpointIncompatible, ImageUnreadable, SpecInvalid
from acmix.inspection.command import Request, inspect
from acmix.inspection.progress import Progress
from acmix.prediction.predictor import Predictor
from acmix.training import checkpoint
from acmix.training.run import run
from tests.acmix.archives.tars import member, tar
from tests.acmix.small import few_digits_judged, small_spec
from tests.acmix.trees import TREES
from tests.payloads import Payload, payloads

ANNOTATIONS = {
    "coco": ["annotations/train.json"],
    "voc": ["Annotations/0.xml", "ImageSets/Main/train.txt"],
    "ade20k": ["annotations/training/0.png"],
    "mask_folder": ["classes.txt", "train/masks/0.png"],
    "imagenet": [],
    "image_folder": [],
}
TASKS = {"coco": "detection", "voc": "detection", "ade20k": "segmentation", "mask_folder": "segmentation"}
# what a process that looked for modules beside the data would load
MODULES = ("sitecustomize.py", "usercustomize.py", "torch.py", "numpy/__init__.py", "acmix/__init__.py", "conftest.py")


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Is there as soon as any of the code has run; must not be at the end."""
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a real training."""
    folder = tmp_path_factory.mktemp("trained")
    with few_digits_judged(20):
        list(run(small_spec(epochs=1, limit_train_batches=1), folder))
    return checkpoint.listed(folder / "checkpoints")[0]


def test_each_would_leave_its_mark_where_it_is_loaded_by_what_it_is_meant_for(tmp_path: Path) -> None:
    """The negative control."""
    mark, file = tmp_path / "mark", tmp_path / "file"
    loaded = [payload for payload in payloads(mark) if payload.load]
    for payload in loaded:
        file.write_bytes(payload.content)
        assert payload.load
        with suppress(TypeError, AttributeError):  # what the code returns is not what was to be read
            payload.load(file)
        assert mark.exists(), payload.name
        mark.unlink()
    assert len(loaded) > 15


def test_none_runs_as_weights(mark: Path, tmp_path: Path) -> None:
    for payload, file in given(mark, tmp_path):
        is_safetensors = payload.name in ("safetensors that tells code", "safetensors with a pickle in it")
        with suppress(CheckpointIncompatible):
            weights.read(file)
            assert is_safetensors, payload.name
        if is_safetensors:
            assert isinstance(weights.about(file), dict)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # which torch has doubts about
def test_none_runs_as_a_checkpoint_of_the_authors(mark: Path, tmp_path: Path) -> None:
    for _, file in given(mark, tmp_path):
        with pytest.raises(CheckpointIncompatible):
            convert(file, tmp_path / "ours.safetensors")
        assert not (tmp_path / "ours.safetensors").exists()


def test_none_runs_as_an_image_to_be_named(trained: Path, mark: Path, tmp_path: Path) -> None:
    predictor = Predictor(trained / checkpoint.MODEL)
    for _, file in given(mark, tmp_path):
        with pytest.raises(ImageUnreadable):
            predictor.predict(file)


def test_none_runs_as_a_model_to_name_with(mark: Path, tmp_path: Path) -> None:
    for _, file in given(mark, tmp_path):
        with pytest.raises(CheckpointIncompatible):
            Predictor(file)


@pytest.mark.parametrize("part", [checkpoint.MODEL, checkpoint.STATE, checkpoint.RECORD])
def test_none_runs_as_a_part_of_a_checkpoint_whose_hashes_are_right(
    part: str, trained: Path, mark: Path, tmp_path: Path
) -> None:
    for payload in payloads(mark):
        folder = tmp_path / "checkpoints" / trained.name
        shutil.copytree(trained, folder)
        (folder / part).write_bytes(payload.content)
        manifest.write(folder, (checkpoint.MODEL, checkpoint.STATE, checkpoint.RECORD))
        with suppress(Exception):  # whatever is raised: that it did not run is what counts
            saved = checkpoint.verified(folder)
            checkpoint.load_weights(saved)
            checkpoint.load_state(saved)
        shutil.rmtree(folder)


def test_none_runs_as_a_spec(mark: Path, tmp_path: Path) -> None:
    for _, file in given(mark, tmp_path):
        with suppress(UnicodeDecodeError), pytest.raises(SpecInvalid):
            spec.read(file)


@pytest.mark.parametrize("form", TREES)
def test_none_runs_as_a_file_of_a_data_set(
    form: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of an image, of what is said of the images, and as a module beside them."""
    image = TREES[form](tmp_path / "tree").relative_to(tmp_path / "tree").as_posix()
    files = {path.relative_to(tmp_path / "tree").as_posix(): path for path in (tmp_path / "tree").rglob("*.*")}
    whole = {name: path.read_bytes() for name, path in files.items()}
    modules = {name: f"open({str(mark)!r}, 'w').close()".encode() for name in MODULES}
    for number, payload in enumerate(payloads(mark)):
        for place in [image, *ANNOTATIONS[form]]:
            into = tmp_path / f"into-{number}-{place.replace('/', '-')}"
            into.mkdir()
            everything = {**whole, **modules, place: payload.content}
            (into / "archive").write_bytes(tar(*(member(name.encode(), each) for name, each in everything.items())))
            monkeypatch.chdir(into)
            request = Request(into, TASKS.get(form, "classification"), form, archive=[into / "archive"])
            assert inspect(request, Progress(io.StringIO()))["status"] == "rejected", (payload.name, place)


def given(mark: Path, folder: Path) -> Iterator[tuple[Payload, Path]]:
    """Each as a file whose name says nothing of what it is."""
    for number, payload in enumerate(payloads(mark)):
        file = folder / f"file-{number}"
        file.write_bytes(payload.content)
        yield payload, file
