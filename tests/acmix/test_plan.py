"""What a swap costs, told before anything is trained."""

import json
import re
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from acmix import backbones, menu, plan_request, registry, spec
from acmix.errors import SpecInvalid
from acmix.mixers import layers_of
from acmix.model import build
from acmix.plan import plan
from acmix.planning.library import fingerprint
from acmix.planning.sizes import StepSize, measure
from acmix.spec import JobSpec
from acmix.tasks.classification import Classification
from acmix.training import optimizer

TINY = {"name": "resnet26", "options": {"stem": "small", "width": 0.125}}
SHALLOW = {"name": "resnet", "options": {"depths": [2, 1, 1, 1], "stem": "small", "width": 0.125}}  # each kind of block
EVERYWHERE = [{"layers": "*"}]


def job_of(backbone: Any = TINY, swaps: Any = EVERYWHERE, **training: Any) -> JobSpec:
    return spec.parse(
        {
            "backbone": {"name": backbone} if isinstance(backbone, str) else backbone,
            "swaps": swaps,
            "dataset": {"name": "digits"},
            "training": {"batch_size": 4, **training},
        }
    )


def sizes_of(job: JobSpec, image_px: int = 16) -> StepSize:
    with torch.device("meta"):
        model = build(job.backbone, job.swaps, num_classes=10, image_px=image_px)
    return measure(model, job, num_classes=10, image_px=image_px, layers=list(layers_of(model)))


def problem_of(job: JobSpec, image_px: int = 16) -> dict[str, Any]:
    with pytest.raises(SpecInvalid) as caught:
        plan(job, num_classes=10, image_px=image_px)
    (problem,) = caught.value.problems
    return problem.as_json()


@pytest.mark.parametrize(
    ("backbone", "params_before", "macs_before", "params_after", "macs_after"),
    [
        ("resnet26", 13.7e6, 2.4e9, 10_487_816, 2.230e9),
        ("resnet38", 19.6e6, 3.2e9, 14_410_896, 2.877e9),
        ("resnet50", 25.6e6, 4.1e9, 18_333_976, 3.525e9),
    ],
)
def test_sizes_are_the_published_ones(backbone, params_before, macs_before, params_after, macs_after):
    totals = plan(job_of(backbone), num_classes=1000, image_px=224)["totals"]
    assert totals["before"]["params"] == pytest.approx(params_before, abs=0.05e6)
    assert totals["before"]["macs"] == pytest.approx(macs_before, abs=0.05e9)
    assert totals["after"]["params"] == params_after
    assert totals["after"]["macs"] == pytest.approx(macs_after, abs=0.0005e9)


def test_layers_are_the_slots_of_the_plain_backbone_and_the_rest_stays_as_it_was():
    planned = plan(job_of(swaps=[{"layers": "layer3.*"}]), num_classes=10, image_px=16)
    names = [each["layer"] for each in planned["layers"]]
    assert names[:4] == ["layer1.0.conv2", "layer2.0.conv2", "layer2.1.conv2", "layer3.0.conv2"]
    for each in planned["layers"]:
        swapped = each["layer"].startswith("layer3.")
        assert each["mixer"] == ("acmix" if swapped else None)
        assert (each["after"] != each["before"]) is swapped
    totals = planned["totals"]
    for figure in ("params", "macs"):
        changed = sum(each["after"][figure] - each["before"][figure] for each in planned["layers"])
        assert totals["after"][figure] - totals["before"][figure] == changed
    assert json.loads(json.dumps(planned)) == planned


def test_what_a_layer_is_told_to_compute_is_its_definition():
    planned = plan(job_of(batch_size=6), num_classes=10, image_px=16)
    model = build(TINY, EVERYWHERE, num_classes=10, image_px=16)
    shapes = {}
    for name, layer in layers_of(model).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: shapes.update({name: args[0].shape}))
    model(torch.zeros(1, 3, 16, 16))
    for each in planned["layers"]:
        layer = model.get_submodule(each["layer"])
        assert each["after"]["macs"] == layer.macs(shapes[each["layer"]])
        assert each["after"]["params"] == sum(parameter.numel() for parameter in layer.parameters())


def test_activations_of_a_layer_are_what_it_really_saves():
    planned = plan(job_of(), num_classes=10, image_px=16)
    for swaps, when in (([], "before"), (EVERYWHERE, "after")):
        model = build(TINY, swaps, num_classes=10, image_px=16)
        inputs = {}
        for each in planned["layers"]:
            model.get_submodule(each["layer"]).register_forward_pre_hook(
                lambda _, args, name=each["layer"], inputs=inputs: inputs.update({name: args[0].detach()})
            )
        model(torch.zeros(4, 3, 16, 16))
        for each in planned["layers"]:
            layer = model.get_submodule(each["layer"])
            assert each[when]["activation_bytes"] == _really_saved(layer, inputs[each["layer"]]), each["layer"]


def _really_saved(layer: nn.Module, x: torch.Tensor) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept_alive = layer(x.clone().requires_grad_())
    assert kept_alive.grad_fn is not None
    return sum(saved.values())


class _RealBytes(TorchDispatchMode):
    """The witness: the same count over tensors that have memory."""

    def __init__(self, lasting: list[torch.Tensor]) -> None:
        super().__init__()
        self.now_bytes = self.most_bytes = 0
        self.known: dict[int, Any] = {each.untyped_storage()._cdata: None for each in lasting}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else (result,):
            if isinstance(output, torch.Tensor) and output.untyped_storage()._cdata not in self.known:
                self._add(output.untyped_storage())
        self.most_bytes = max(self.most_bytes, self.now_bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self.now_bytes -= size_bytes
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.now_bytes += size_bytes


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
@pytest.mark.parametrize("swaps", [[], EVERYWHERE], ids=["plain", "swapped"])
def test_the_step_without_memory_takes_what_a_real_step_takes(swaps, precision):
    job = job_of(SHALLOW, swaps, precision=precision, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0})
    model = build(job.backbone, job.swaps, num_classes=10, image_px=32)
    dtype = torch.float64 if precision == "float64" else torch.float32
    model, batch = model.to(dtype), (torch.zeros(4, 3, 32, 32, dtype=dtype), torch.zeros(4, dtype=torch.int64))
    model(batch[0])  # biases of attention that are kept between steps
    task = Classification([""] * 10, 0.1)
    with _RealBytes([*model.parameters(), *model.buffers(), *batch]) as real:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = task.step(model, batch)
        loss.backward()
    assert sizes_of(job, 32).passing_bytes == pytest.approx(real.most_bytes, rel=0.02)


@pytest.mark.parametrize("name", list(optimizer.OPTIMIZERS))
def test_lasting_bytes_are_weights_batch_and_what_the_optimizer_keeps(name):
    job = job_of(SHALLOW, optimizer={"name": name})
    model = build(job.backbone, job.swaps, num_classes=10, image_px=16)
    descent = optimizer.build(model, job.training.optimizer, job.training.weight_decay_on)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.zeros(4, dtype=torch.int64)).backward()
    descent.step()
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [each for kept in descent.state.values() for each in kept.values() if isinstance(each, torch.Tensor)]
    assert sizes_of(job).lasting_bytes == sum(each.nbytes for each in tensors) + 4 * 3 * 16 * 16 * 4 + 4 * 8


def test_an_average_is_a_second_copy_and_accumulated_batches_wait_together():
    plain, averaged, accumulated = (
        sizes_of(job_of(SHALLOW, **more)) for more in ({}, {"ema": {"decay": 0.99}}, {"accumulate_batches": 5})
    )
    model = build(SHALLOW, EVERYWHERE, num_classes=10, image_px=16)
    weight_bytes = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    gradient_bytes = sum(each.nbytes for each in model.parameters())
    assert averaged.lasting_bytes - plain.lasting_bytes == weight_bytes
    assert accumulated.lasting_bytes - plain.lasting_bytes == 4 * (4 * 3 * 16 * 16 * 4 + 4 * 8)
    assert accumulated.passing_bytes - plain.passing_bytes <= gradient_bytes
    assert accumulated.passing_bytes > plain.passing_bytes


def test_half_precision_and_smaller_batches_keep_less():
    full = sizes_of(job_of("resnet26", batch_size=16), 64)
    assert (
        sizes_of(job_of("resnet26", batch_size=16, precision="bf16"), 64).activation_bytes < 0.7 * full.activation_bytes
    )
    half = sizes_of(job_of("resnet26", batch_size=8), 64)
    assert half.macs == full.macs
    assert half.activation_bytes < 0.6 * full.activation_bytes  # kernels and biases are the same for any batch


def test_sizes_of_no_machine_are_planned_as_quickly():
    plan(job_of("resnet26"), num_classes=10, image_px=32)
    began = time.process_time()
    planned = plan(job_of("resnet26", batch_size=65_536, mixup=0.8), num_classes=100_000, image_px=4096)
    assert time.process_time() - began < 10
    assert planned["totals"]["after"]["peak_memory_bytes"] > 2**50
    assert any("whatever the batch_size" in sentence for sentence in planned["warnings"])


def test_a_plan_again_is_the_same_plan_and_leaves_no_trace_in_the_generator():
    state = torch.get_rng_state()
    first, second = (plan(job_of(SHALLOW), num_classes=10, image_px=16) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_warnings_say_what_stands_out():
    def warnings(job: JobSpec, image_px: int) -> list[str]:
        found: list[str] = plan(job, num_classes=10, image_px=image_px)["warnings"]
        return found

    assert warnings(job_of(swaps=[]), 16) == ["nothing is swapped: this is the plain resnet26"]
    shifted = {"name": "acmix", "options": {"shift": "tensor"}}
    early = warnings(job_of("resnet50", [{"layers": "layer1.*", "mixer": shifted}]), 224)
    assert any(
        re.match(r"layer1 swaps take \d+ % of the activation memory for \d % of the MACs", each) for each in early
    )
    everything = warnings(job_of("timm/resnet18", batch_size=8), 224)
    assert any("raise the peak of a training step from " in sentence for sentence in everything)
    large = warnings(job_of("resnet26", batch_size=512), 224)
    (sentence,) = (sentence for sentence in large if "beyond 16.0 GiB" in sentence)
    batch_size = int(sentence.partition("a batch_size of ")[2].split()[0])
    within = plan(job_of("resnet26", batch_size=batch_size), num_classes=10, image_px=224)
    assert 14 * 2**30 < within["totals"]["after"]["peak_memory_bytes"] <= 16 * 2**30
    assert warnings(job_of("resnet26", [{"layers": "layer4.*"}]), 224) == []


def test_notes_tell_of_windows_larger_than_their_map():
    planned = plan(job_of(), num_classes=10, image_px=16)
    notes = {each["layer"]: each["notes"] for each in planned["layers"]}
    assert notes["layer1.0.conv2"] == notes["layer2.1.conv2"] == []  # maps of 16 and 8
    assert notes["layer3.1.conv2"] == ["window 7 covers the whole 4x4 map from everywhere: attention is global"]
    assert notes["layer3.0.conv2"] == []  # it sees the map of 8 before its stride
    assert len(notes["layer4.0.conv2"]) == 1
    assert any("in 4 of 8 swapped layers (layer3.1.conv2, " in sentence for sentence in planned["warnings"])
    small = [{"layers": "*", "mixer": {"name": "acmix", "options": {"kernel_att": 3}}}]
    planned = plan(job_of(swaps=small), num_classes=10, image_px=32)
    assert not any(each["notes"] for each in planned["layers"])


def test_heads_that_do_not_divide_are_a_problem_with_those_that_do():
    swaps = [{"layers": "layer4.*"}, {"layers": "layer1.*", "mixer": {"name": "acmix", "options": {"heads": 3}}}]
    problem = problem_of(job_of(swaps=swaps))
    assert problem["pointer"] == "/swaps/1/mixer/options/heads"
    assert problem["allowed"] == [1, 2, 4, 8]
    assert problem["fixes"] == [2, 4, 1]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"backbone": "resnet62"}, "/backbone/name"),
        ({"backbone": {**TINY, "options": {"height": 3}}}, "/backbone/options"),
        ({"swaps": [{"layers": "layer9.*"}]}, "/swaps/0/layers"),
        ({"swaps": [{"layers": "*", "mixer": {"name": "acmax"}}]}, "/swaps/0/mixer/name"),
        ({"swaps": [{"layers": "*", "mixer": {"name": "acmix", "options": {"head": 2}}}]}, "/swaps/0/mixer/options"),
        ({"optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": True}}, "/training/optimizer"),
    ],
)
def test_a_model_that_cannot_be_is_a_problem_where_it_is(change, pointer):
    assert problem_of(job_of(**change))["pointer"] == pointer


def test_one_image_whose_last_map_is_one_pixel_cannot_be_normalized():
    problem = problem_of(job_of(batch_size=1), image_px=8)
    assert problem["pointer"] == "/training/batch_size"
    assert problem["fixes"] == [2]


FOREIGN = """
from torch import nn


class Patches(nn.Sequential):
    name = "patches"

    def __init__(self, num_classes: int, *, patch: int = 32, broken: bool = False) -> None:
        super().__init__(nn.Conv2d(3, 6, patch, patch), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten())
        self.head = nn.Linear(6 * 49, num_classes)
        self.broken = broken

    def forward(self, images):
        if self.broken:
            raise RuntimeError("it never works\\nand says so at length")
        if images.shape[-1] % self[0].stride[0]:
            raise AssertionError("the side must be a multiple of the patch.")
        return self.head(super().forward(images))
"""


@pytest.fixture
def foreign_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "patches.py").write_text(
        FOREIGN.replace("super().forward(images)", "self[2](self[1](self[0](images)))")
    )
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()
    sys.modules.pop("acmix.backbones.patches")


@pytest.mark.usefixtures("foreign_backbone")
def test_a_backbone_that_refuses_the_image_size_is_a_problem_with_sizes_that_would_do():
    problem = problem_of(job_of("patches", []), image_px=200)
    assert (problem["pointer"], problem["code"], problem["fixes"]) == ("/dataset", "image_size", [224])
    assert "the side must be a multiple of the patch" in problem["message"]
    assert "\n" not in problem["message"]


@pytest.mark.usefixtures("foreign_backbone")
def test_a_backbone_that_never_runs_is_its_own_problem():
    problem = problem_of(job_of({"name": "patches", "options": {"broken": True}}, []), image_px=224)
    assert problem["pointer"] == "/backbone/name"
    assert problem["message"] == "patches cannot run here: it never works"


@pytest.fixture(scope="module")
def request_line() -> str:
    return json.dumps({**job_of().dump(), "assume": {"num_classes": 3, "image_px": 16}})


def test_a_server_of_plans_answers_every_line_and_outlives_all_of_them(request_line: str):
    lines = [
        "rubbish",
        "[]",
        "{}",
        json.dumps({**job_of().dump(), "assume": {"num_classes": 0, "image_px": True, "batch": 1}}),
        json.dumps({**job_of().dump(), "dataset": {"name": "image_folder", "options": {"folder": "mine"}}}),
        "[" * 100_000,
        request_line,
        json.dumps({"backbone": TINY, "dataset": {"name": "digits"}}),
    ]
    command = [sys.executable, "-m", "acmix", "plan", "--serve"]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True)
    ready, *answers = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"ready": True, "library": fingerprint()}
    assert len(answers) == len(lines)
    pointers = [[problem["pointer"] for problem in each.get("problems", [])] for each in answers]
    assert pointers[:3] == [[""], [""], ["/backbone"]]
    assert pointers[3] == ["/assume/num_classes", "/assume/image_px", "/assume/batch"]
    assert pointers[4] == ["/dataset/name"]
    assert "assume.num_classes" in answers[4]["problems"][0]["message"]
    assert answers[5]["problems"][0]["code"] == "malformed"
    model = build(TINY, EVERYWHERE, num_classes=3, image_px=16)
    assert answers[6]["plan"]["totals"]["after"]["params"] == sum(each.numel() for each in model.parameters())
    assert answers[7]["resolved_spec"]["evaluation"]["metric"] == "accuracy"
    assert answers[7]["plan"]["totals"]["before"] == answers[7]["plan"]["totals"]["after"]


def test_a_plan_by_hand_is_one_line_and_its_exit_status_says_whether_there_is_one(tmp_path: Path):
    path = tmp_path / "job.json"
    command = [sys.executable, "-m", "acmix", "plan", str(path)]
    path.write_text(job_of().model_dump_json())
    done = subprocess.run([*command, "--num-classes", "7"], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert list(json.loads(line)) == ["plan"]
    path.write_text("{")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"][0]["code"] == "malformed"
    assert "Traceback" not in done.stderr


def test_a_request_says_all_that_its_plan_depends_on():
    whole = {
        **job_of(ema={"decay": 0.9}, mixup=0.2).dump(),
        "name": "all else",
        "dataset": {"name": "digits", "options": {"image_px": 16}},
        "trace": {"every_steps": 3},
        "priority": 7,
    }
    whole["training"] |= {"epochs": 7, "seed": 5, "clip_norm": 1.0, "schedule": {"name": "constant"}}
    catalog = menu.catalog()
    full = plan_request.resolved(plan_request.parse(whole), catalog)
    essence = plan_request.essence(full)
    again = plan_request.parse(essence)
    assert plan_request.essence(plan_request.resolved(again, catalog)) == essence
    assert plan(again, **again.assume.model_dump()) == plan(full, num_classes=10, image_px=16)
