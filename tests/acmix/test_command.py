"""The library by hand: `python -m acmix run`, `python -m acmix catalog`, and what an import costs."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from acmix.catalog import Catalog
from tests.acmix.small import small_spec

NOTING_IMPORTS = (sys.executable, "-X", "importtime")
DATASETS = {
    *("digits", "digits_detection", "digits_segmentation", "cifar10", "cifar100"),
    *("fashion_mnist", "fashion_mnist_detection", "fashion_mnist_segmentation"),
    *("image_folder", "imagenet", "coco", "voc", "ade20k", "mask_folder"),
}
COMPILER = "torch._dynamo"  # as long to import as torch itself


def _run(tmp_path: Path, spec: object, *, folder: str = "run") -> subprocess.CompletedProcess[str]:
    path = tmp_path / "spec.json"
    path.write_text(spec if isinstance(spec, str) else json.dumps(spec))
    command = [*NOTING_IMPORTS, "-m", "acmix", "run", str(path), "--folder", str(tmp_path / folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_a_run_by_hand_prints_events_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    done = _run(tmp_path, small_spec().dump())
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [events[0]["data"]["status"], events[-1]["data"]["status"]] == ["running", "succeeded"]
    assert {event["type"] for event in events} == {"status", "progress", "metrics", "trace", "checkpoint", "evaluation"}
    assert "epoch 2 of 2" in done.stderr
    assert "torch.optim" in _imported(done)
    assert COMPILER not in _imported(done)


def test_what_the_user_can_mend_is_a_sentence_in_the_last_event(tmp_path: Path) -> None:
    job = small_spec().dump()
    job["swaps"][0]["layers"] = "layer9.*"
    for spec, code in [("{", "spec_invalid"), (job, "layer_not_found"), ({"backbone": 3}, "spec_invalid")]:
        done = _run(tmp_path, spec)
        last = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode == 1
        assert last["data"]["status"] == "failed"
        assert last["data"]["reason"]["code"] == code
        assert last["data"]["reason"]["blame"] == "user"
        assert "Traceback" not in done.stderr


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(small_spec(epochs=2, limit_train_batches=30).model_dump_json())
    command = [sys.executable, "-m", "acmix", "run", str(path), "--folder", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["type"] == "trace":
                process.send_signal(signal.SIGTERM)
                break
        rest = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert rest[-1]["data"]["status"] == "stopped"
    done = _run(tmp_path, path.read_text())
    assert COMPILER not in _imported(done)
    again = [json.loads(line) for line in done.stdout.splitlines()]
    assert again[0]["data"]["resumed_from"]["step"] == rest[-2]["data"]["step"]
    assert again[-1]["data"]["status"] == "succeeded"


def test_the_catalog_lists_every_name_with_its_options() -> None:
    done = subprocess.run([*NOTING_IMPORTS, "-m", "acmix", "catalog"], capture_output=True, text=True, check=True)
    assert COMPILER not in _imported(done)
    card = json.loads(done.stdout)
    menu = Catalog.model_validate(card["catalog"])
    assert {entry.name for entry in menu.backbones} >= {"resnet", "resnet26", "resnet38", "resnet50"}
    assert {entry.name for entry in menu.datasets} == {
        *("digits", "digits_detection", "digits_segmentation", "cifar10", "cifar100"),
        *("fashion_mnist", "fashion_mnist_detection", "fashion_mnist_segmentation"),
        *("image_folder", "imagenet", "coco", "voc", "ade20k", "mask_folder"),
    }
    for section in type(menu).model_fields:
        assert getattr(menu, section), section
        told = "what" if section == "presets" else "description"
        assert all(getattr(entry, told) for entry in getattr(menu, section)), section
    for backbone in menu.backbones:
        assert backbone.slots == backbone.slots_under({})


def test_importing_the_library_loads_no_torch_and_torch_loads_no_torchvision() -> None:
    """In one process, where what an earlier statement has loaded counts for every later one too."""
    heavy = {"torch", "torchvision", "timm", "sklearn", "pydantic", "numpy"}
    allowances = {
        "import acmix": set(),
        "import acmix.spec, acmix.events, acmix.errors, acmix.catalog, acmix.resolve": {"pydantic"},
        "import acmix; acmix.build, acmix.run, acmix.mixers, acmix.authors": {"pydantic", "torch", "numpy"},
        "import acmix.menu; acmix.menu.catalog()": {"pydantic", "torch", "numpy"},
    }
    code = "".join(f"{statement}\nimport sys; print(*{heavy} & set(sys.modules))\n" for statement in allowances)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for loaded, (statement, allowed) in zip(done.stdout.splitlines(), allowances.items(), strict=True):
        assert set(loaded.split()) <= allowed, statement


PARENT = """
import os, subprocess, sys
tethered = [sys.executable, "-m", "acmix.tether", str(os.getpid()), "--", "sleep", "600"]
subprocess.Popen(tethered)
os.kill(os.getpid(), 9)
"""


def test_a_tethered_child_dies_with_its_parent() -> None:
    """It holds its parent's standard output: reading that comes to an end only once the child is gone too."""
    done = subprocess.run([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
