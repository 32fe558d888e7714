from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acmix import resolve, spec
from acmix.catalog import BackboneEntry, Catalog, Device, MixerEntry, MixerForm, Slot, TaskEntry
from acmix.errors import Problem
from acmix.fleet import Machine
from tests.service.menu import catalog

LEAST: dict[str, Any] = {"backbone": {"name": "resnet26"}, "dataset": {"name": "digits"}}
CPU_ONLY = (Machine(),)
EVERY_LAYER = [{"layers": "*"}]


def problems(menu: Catalog | None = None, *, fleet: Sequence[Machine] = CPU_ONLY, **changes: Any) -> list[Problem]:
    return resolve.problems(spec.parse({**LEAST, **changes}), menu or catalog(), fleet=fleet)


def machine(gpus: int, name: str = "NVIDIA A100-SXM4-80GB", labels: Sequence[str] = ()) -> Machine:
    devices = (Device(index=index, name=name, memory_bytes=80 * 2**30) for index in range(gpus))
    return Machine(tuple(devices), frozenset(labels))


def resolved(**changes: Any) -> spec.JobSpec:
    return resolve.resolve(spec.parse({**LEAST, **changes}), catalog())


def test_a_right_spec_has_no_problems() -> None:
    assert problems(swaps=EVERY_LAYER) == []


def test_an_unknown_name_is_told_with_the_nearest_and_all_others() -> None:
    (problem,) = problems(backbone={"name": "resnet62"})
    assert problem.pointer == "/backbone/name"
    assert problem.fixes is not None
    assert problem.fixes[0] == "resnet26"
    assert problem.allowed == ["resnet", "resnet26", "resnet50"]


def test_a_model_of_a_family_is_named_with_it() -> None:
    lion = {"name": "zoo/lion", "options": {"drop_rate": 0.5}}
    assert problems(backbone=lion, swaps=EVERY_LAYER) == []
    (problem,) = problems(backbone={"name": "zoo/lion", "options": {"drop_rate": 2}})
    assert problem.pointer == "/backbone/options/drop_rate"
    found = resolved(backbone={"name": "zoo/lion"}, swaps=EVERY_LAYER)
    assert (found.backbone.name, found.backbone.options) == ("zoo/lion", {"drop_rate": None})
    assert resolve.resolve(found, catalog()) == found


@pytest.mark.parametrize(
    ("name", "message", "fixes"),
    [
        ("zoo", "zoo is a family of 3 backbones; add the name of one, such as zoo/lion", None),
        ("zoo/lionness", "no backbone is named 'zoo/lionness'; nearest: zoo/lioness, zoo/lion", ["lioness", "lion"]),
        ("zoo/*", "no backbone is named 'zoo/*'; the catalog lists its variants", None),
        ("tiger_small", "no backbone is named 'tiger_small'; zoo/tiger_small is", ["tiger_small"]),
        ("resnet26/lion", "no backbone is named 'resnet26/lion'; nearest: resnet26, resnet, resnet50", ...),
    ],
)
def test_a_name_that_is_no_model_of_a_family_is_told_how_to_name_one(name: str, message: str, fixes: Any) -> None:
    (problem,) = problems(backbone={"name": name}, swaps=EVERY_LAYER)
    assert (problem.pointer, problem.code, problem.message) == ("/backbone/name", "unknown_name", message)
    if fixes is not ...:
        assert problem.fixes == (fixes and [f"zoo/{each}" for each in fixes])


def test_a_family_is_one_for_all_workers_with_the_variants_of_each() -> None:
    def with_variants(*variants: str) -> Catalog:
        return Catalog(backbones=[BackboneEntry(name="zoo", description="", options={}, slots=None, variants=variants)])

    (family,) = Catalog.union([with_variants("lion", "tiger"), with_variants("tiger", "zebra")]).backbones
    assert family.variants == ["lion", "tiger", "zebra"]


def test_an_unknown_option_is_told_with_the_nearest() -> None:
    (problem,) = problems(training={"optimizer": {"name": "sgd", "momentun": 0.9}})
    assert problem.pointer == "/training/optimizer/momentun"
    assert problem.fixes == ["momentum"]
    assert problem.allowed == ["lr", "momentum", "nesterov", "weight_decay"]


def test_a_float_without_a_fraction_is_no_integer() -> None:
    (problem,) = problems(dataset={"name": "digits", "options": {"image_px": 16.0}})
    assert problem.message == "image_px must be an integer"


def test_an_option_out_of_bounds_names_the_bound() -> None:
    (problem,) = problems(dataset={"name": "digits", "options": {"image_px": 500}})
    assert (problem.message, problem.limit, problem.actual) == ("image_px must be at most 224", 224, 500)


def test_an_even_window_is_told_to_be_odd() -> None:
    (problem,) = problems(swaps=[{"layers": "*", "mixer": {"name": "acmix", "options": {"kernel_att": 6}}}])
    assert problem.message == "kernel_att must be odd"


def test_an_option_of_several_types_is_told_all_of_them() -> None:
    (problem,) = problems(training={"augment": {"name": "crop", "fill": []}})
    assert problem.message == "fill must be one of mean, edge or an integer or null"
    (problem,) = problems(training={"augment": {"name": "crop", "fill": -1}})
    assert problem.message == "fill must be at least 0"


def test_a_glob_that_matches_nothing_lists_the_slots() -> None:
    (problem,) = problems(swaps=[{"layers": ["layer1.*", "layer7.*"]}])
    assert problem.pointer == "/swaps/0/layers"
    assert problem.allowed is not None
    assert "layer4.0.conv2" in problem.allowed


def test_depths_move_the_slots_that_a_glob_can_match() -> None:
    deep = {"name": "resnet", "options": {"depths": [1, 1, 1, 9]}}
    assert problems(backbone=deep, swaps=[{"layers": "layer4.8.conv2"}]) == []
    assert problems(backbone=deep, swaps=[{"layers": "layer1.1.conv2"}]) != []


def test_stages_may_vary_up_to_those_that_the_pattern_knows() -> None:
    plain = next(each for each in catalog().backbones if each.name == "resnet")
    assert plain.slot_pattern is not None
    varying = plain.slot_pattern.model_copy(update={"stages_vary": True})
    menu = catalog().model_copy(update={"backbones": [plain.model_copy(update={"slot_pattern": varying})]})

    def deep(*depths: int) -> dict[str, Any]:
        return {"name": "resnet", "options": {"depths": list(depths)}}

    assert problems(menu, backbone=deep(1, 2), swaps=[{"layers": "layer2.1.conv2"}]) == []
    (problem,) = problems(menu, backbone=deep(1, 1, 1, 1, 1))
    assert (problem.message, problem.limit) == ("depths must hold at most 4 numbers", 4)
    (problem,) = problems(backbone=deep(1, 1))
    assert problem.message == "depths must hold 4 numbers"


def test_heads_that_do_not_divide_the_channels_are_told_those_that_do() -> None:
    swaps = [{"layers": "layer3.0.*", "mixer": {"name": "acmix", "options": {"heads": 4}}}]
    (problem,) = problems(backbone={"name": "resnet26", "options": {"width": 30 / 256}}, swaps=swaps)
    sentence = "heads=4 does not divide 30 channels of layer3.0.conv2; 1, 2, 3, 5, 6, 10, 15 and 30 do"
    assert problem.message == sentence
    assert problem.pointer == "/swaps/0/mixer/options/heads"
    assert problem.fixes == [3, 5, 2]


def test_heads_are_checked_where_the_spec_leaves_them_to_the_default() -> None:
    (problem,) = problems(
        backbone={"name": "resnet26", "options": {"width": 30 / 256}}, swaps=[{"layers": "layer3.0.*"}]
    )
    assert problem.pointer == "/swaps/0/mixer/options/heads"


def test_what_is_offered_divides_every_layer_of_the_swap() -> None:
    narrow = {"name": "resnet26", "options": {"width": 45 / 512}}  # 6, 11, 22 and 45 channels
    swaps = [{"layers": ["layer1.*", "layer4.*"], "mixer": {"name": "acmix", "options": {"heads": 2}}}]
    (problem,) = problems(backbone=narrow, swaps=swaps)
    assert problem.allowed == [1, 3]


def test_a_mixer_without_a_form_for_the_slot_names_those_that_have_one() -> None:
    (problem,) = problems(swaps=[{"layers": "*", "mixer": {"name": "rolling"}}])
    assert (problem.pointer, problem.allowed) == ("/swaps/0/mixer/name", ["acmix"])


def test_a_data_set_of_another_task_is_refused() -> None:
    (problem,) = problems(dataset={"name": "boxes"})
    assert (problem.pointer, problem.allowed) == ("/dataset/name", ["digits", "image_folder"])


def _with_boxes(*, has_masks: bool | None = False, **of_task: Any) -> Catalog:
    """The catalog, with a task of heads, one of which needs masks, and a data set of boxes."""
    menu = catalog()
    heads = {"type": "object", "properties": {"head": {"enum": ["boxes", "masks"], "default": "boxes"}}}
    changes = {"options": heads, "masks_for": {"head": ["masks"]}, "label_smoothing": None, "mixes": False, **of_task}
    tasks = [each.model_copy(update=changes) if each.name == "detection" else each for each in menu.tasks]
    sets = [
        each.model_copy(update={"has_masks": has_masks}) if each.name == "boxes" else each for each in menu.datasets
    ]
    augments = [each.model_copy(update={"tasks": ["classification", "detection"]}) for each in menu.augments[:1]]
    return menu.model_copy(update={"tasks": tasks, "datasets": sets, "augments": [*augments, *menu.augments[1:]]})


def _of_boxes(menu: Catalog, *, head: str = "boxes", **changes: Any) -> list[Problem]:
    task = {"name": "detection", "options": {"head": head}}
    return problems(menu, task=task, dataset={"name": "boxes"}, **changes)


def test_a_head_of_masks_is_refused_where_the_data_set_has_none() -> None:
    assert _of_boxes(_with_boxes()) == []
    (problem,) = _of_boxes(_with_boxes(), head="masks")
    assert (problem.pointer, problem.code, problem.allowed) == ("/task/options/head", "no_masks", ["boxes"])
    assert problem.message == "head=masks needs masks, and boxes has none; boxes would do"
    for has_masks in (True, None):
        assert _of_boxes(_with_boxes(has_masks=has_masks), head="masks") == []


def test_what_only_other_tasks_train_with_is_refused() -> None:
    menu = _with_boxes()
    training = {"mixup": 0.2, "label_smoothing": 0.1, "augment": {"name": "crop"}}
    found = {each.pointer: each for each in _of_boxes(menu, training=training)}
    assert set(found) == {"/training/mixup", "/training/label_smoothing", "/training/augment/name"}
    assert found["/training/augment/name"].allowed == ["default"]
    assert found["/training/label_smoothing"].fixes == ["auto", 0]
    assert _of_boxes(menu, training={"label_smoothing": 0}) == []


@pytest.mark.parametrize(("of_task", "smoothing"), [(None, 0.0), (0.0, 0.0), (0.2, 0.2)])
def test_the_label_smoothing_that_auto_stands_for_is_the_tasks(of_task: float | None, smoothing: float) -> None:
    job = spec.parse({**LEAST, "task": {"name": "detection"}, "dataset": {"name": "boxes"}})
    full = resolve.resolve(job, _with_boxes(label_smoothing=of_task))
    assert full.training.label_smoothing == smoothing
    assert resolve.resolve(full, _with_boxes(label_smoothing=of_task)) == full


def test_a_warm_up_longer_than_the_training_is_refused() -> None:
    training = {"epochs": 2, "schedule": {"name": "cosine", "warmup_epochs": 3}}
    (problem,) = problems(training=training)
    assert (problem.pointer, problem.limit) == ("/training/schedule/warmup_epochs", 2)


def test_more_gpus_than_any_worker_has_are_refused() -> None:
    assert problems(fleet=[machine(4), machine(1)], resources={"gpus": 4}) == []
    (problem,) = problems(fleet=[machine(4), machine(4)], resources={"gpus": 5})
    assert (problem.pointer, problem.limit) == ("/resources/gpus", 4)


def test_where_the_fleet_is_unknown_any_number_of_gpus_will_do() -> None:
    assert resolve.problems(spec.parse({**LEAST, "resources": {"gpus": 64}}), catalog()) == []


@pytest.mark.parametrize(
    ("resources", "at"),
    [
        ({"gpus": 2, "processes": 2}, "/resources/processes"),
        ({"gpus": 0, "gpu_kind": "A100"}, "/resources/gpu_kind"),
        ({"processes": 2, "memory_bytes": 1}, "/resources/memory_bytes"),
        ({"gpu_kind": "A10"}, "/resources/gpu_kind"),
        ({"memory_bytes": 81 * 2**30}, "/resources/memory_bytes"),
        ({"labels": ["fast", "fsat"]}, "/resources/labels/1"),
    ],
)
def test_what_no_worker_could_give_is_refused(resources: dict[str, Any], at: str) -> None:
    (problem,) = problems(fleet=[machine(2, labels=["fast"])], resources=resources)
    assert problem.pointer == at


def test_what_no_single_worker_has_together_is_refused() -> None:
    """Four GPUs has one, and an A100 the other."""
    fleet = [machine(4, "Tesla T4"), machine(1)]
    (problem,) = problems(fleet=fleet, resources={"gpus": 4, "gpu_kind": "A100"})
    assert (problem.pointer, problem.code) == ("/resources", "no_worker")
    assert problem.message.endswith("of the last, it has 1 GPU and 4 are asked for")


@pytest.mark.parametrize(
    ("training", "resources"), [({"sync_batch_norm": True}, {}), ({}, {"gpu_kind": "A100"}), ({}, {"memory_bytes": 1})]
)
def test_what_needs_a_gpu_is_asked_of_a_worker_with_one(training: dict[str, Any], resources: dict[str, Any]) -> None:
    """The one with a GPU has not the label, the one with the label has no GPU: such a job would wait for ever."""
    fleet = [machine(1), machine(0, labels=["fast"])]
    asked: dict[str, Any] = {"training": training, "resources": {**resources, "labels": ["fast"]}}
    (problem,) = problems(fleet=fleet, **asked)
    assert (problem.pointer, problem.code) == ("/resources", "no_worker")
    assert problem.message.endswith("of the last, it has 0 GPUs and 1 are asked for")
    assert resolve.problems(resolved(**asked), catalog(), fleet=fleet)[0].pointer == "/resources"
    assert problems(fleet=[machine(1, labels=["fast"])], **asked) == []


def test_memory_of_gpus_that_nobody_has_is_refused_as_that_of_gpus() -> None:
    (problem,) = problems(fleet=[machine(0)], resources={"memory_bytes": 1})
    assert (problem.pointer, problem.code, problem.fixes) == ("/resources/memory_bytes", "needs_gpu", [None])
    assert "no worker of the last 7 days had any" in problem.message


def test_a_fleet_of_shared_gpus_takes_only_jobs_that_agree_to_meet_others() -> None:
    shared = [machine(2, labels=["shared"])]
    assert [each.pointer for each in problems(fleet=shared)] == ["/resources"]
    assert problems(fleet=shared, resources={"labels": ["shared"]}) == []


def test_a_mistyped_label_is_told_the_nearest() -> None:
    (problem,) = problems(
        fleet=[machine(1, labels=["fast"]), machine(1, labels=["slow"])], resources={"labels": ["fsat"]}
    )
    assert (problem.allowed, problem.fixes) == (["fast", "slow"], ["fast"])


@pytest.mark.parametrize("resources", [{"gpus": 0}, {"processes": 2}, {}])
def test_synchronised_batch_norm_is_refused_on_the_cpu(resources: dict[str, Any]) -> None:
    (problem,) = problems(training={"sync_batch_norm": True}, resources=resources)
    assert (problem.pointer, problem.code) == ("/training/sync_batch_norm", "needs_gpu")
    assert problems(fleet=[machine(2)], training={"sync_batch_norm": True}, resources={"gpus": 2}) == []


@pytest.mark.parametrize(
    ("training", "resources", "gpus"),
    [
        ({}, {}, "auto"),
        ({}, {"processes": 2}, 0),
        ({}, {"gpu_kind": "A100"}, 1),
        ({}, {"memory_bytes": 1}, 1),
        ({"sync_batch_norm": True}, {}, 1),
        ({}, {"gpus": 3}, 3),
    ],
)
def test_auto_is_settled_where_the_rest_of_the_spec_decides(
    training: dict[str, Any], resources: dict[str, Any], gpus: Any
) -> None:
    job = spec.parse({**LEAST, "training": training, "resources": resources})
    assert resolve.resolve(job, catalog()).resources.gpus == gpus


def test_an_unknown_metric_is_told_the_known_ones() -> None:
    (problem,) = problems(evaluation={"metric": "acuracy"})
    assert problem.pointer == "/evaluation/metric"
    assert problem.fixes is not None
    assert problem.fixes[0] == "accuracy"


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        backbone={"name": "resnet26", "options": {"width": 9, "colour": 1}},
        dataset={"name": "digit"},
        training={"optimizer": {"name": "sgd", "lr": 0}},
        resources={"gpus": 8},
    )
    assert {problem.pointer for problem in found} == {
        "/backbone/options/width",
        "/backbone/options/colour",
        "/dataset/name",
        "/training/optimizer/lr",
        "/resources/gpus",
    }


def test_resolving_writes_out_every_default() -> None:
    found = resolved(swaps=EVERY_LAYER, training={"optimizer": {"name": "sgd", "lr": 0.5}})
    assert found.backbone.options == {"stem": "imagenet", "width": 1.0}
    assert found.dataset.options == {"image_px": 8}
    assert found.training.optimizer.options == {"lr": 0.5, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": False}
    assert found.swaps[0].mixer.options == {"heads": 4, "kernel_att": 7, "kernel_conv": 3, "combine": "alpha_beta"}
    assert found.evaluation.metric == "accuracy"
    assert found.resources.gpus == "auto"


def test_a_swap_of_several_forms_keeps_its_options_since_no_form_takes_those_of_another() -> None:
    two_kinds = Catalog(
        backbones=[BackboneEntry(name="both", description="", options={}, slots=[_slot("a", "x"), _slot("b", "y")])],
        mixers=[MixerEntry(name="acmix", description="", forms=[_form("x", heads=4), _form("y", window=7)])],
        datasets=catalog().datasets,
        tasks=catalog().tasks,
    )
    raw = spec.parse({**LEAST, "backbone": {"name": "both"}, "swaps": EVERY_LAYER})
    assert resolve.resolve(raw, two_kinds).swaps[0].mixer.options == {}


def test_a_spec_against_an_empty_catalog_has_problems_and_no_crash() -> None:
    pointers = {problem.pointer for problem in problems(Catalog(), swaps=EVERY_LAYER)}
    assert {"/backbone/name", "/dataset/name", "/task/name", "/swaps/0/mixer/name"} <= pointers


def test_a_task_may_list_metrics_of_its_own() -> None:
    menu = catalog().model_copy(
        update={
            "tasks": [
                TaskEntry(name="classification", description="", options={"type": "object"}, metrics=["map", "loss"])
            ]
        }
    )
    assert problems(menu, evaluation={"metric": "map"}) == []
    assert resolve.resolve(spec.parse(LEAST), menu).evaluation.metric == "map"


options = st.fixed_dictionaries(
    {},
    optional={
        "backbone": st.sampled_from(
            [{"name": "resnet50"}, {"name": "resnet", "options": {"depths": [1, 1, 2, 1], "width": 0.5}}]
        ),
        "swaps": st.sampled_from([EVERY_LAYER, [{"layers": "layer1.*"}, {"layers": ["layer2.*", "layer4.*"]}]]),
        "training": st.sampled_from(
            [
                {"optimizer": {"name": "adamw"}},
                {"schedule": {"name": "milestones", "at_epochs": [3, 5]}},
                {"augment": {"name": "crop", "fill": "edge"}, "loader_workers": 2},
            ]
        ),
        "evaluation": st.sampled_from([{"metric": "auto"}, {"metric": "loss"}]),
        "resources": st.sampled_from([{"gpus": "auto"}, {"gpus": 0}]),
    },
)


@given(options)
@settings(max_examples=50)
def test_resolving_a_resolved_spec_changes_nothing(changes: dict[str, Any]) -> None:
    once = resolved(**changes)
    assert resolve.problems(once, catalog()) == []
    assert resolve.resolve(once, catalog()) == once
    assert spec.parse(once.dump()) == once


@pytest.mark.parametrize("field", ["optimizer", "schedule", "augment"])
def test_resolving_leaves_the_given_spec_as_it_was(field: str) -> None:
    given_spec = spec.parse({**LEAST, "swaps": EVERY_LAYER})
    before = given_spec.dump()
    resolve.resolve(given_spec, catalog())
    assert given_spec.dump()["training"][field] == before["training"][field]


def test_synchronised_batch_norm_is_refused_with_patchwise_attention() -> None:
    """Swapped or not, and beside slots of another kind."""
    slots = [_slot("a", "conv2d"), _slot("b", "patchwise")]
    menu = catalog().model_copy(
        update={
            "backbones": [BackboneEntry(name="san", description="", options={}, slots=slots)],
            "mixers": [MixerEntry(name="acmix", description="", forms=[_form("conv2d"), _form("patchwise")])],
        }
    )
    job: dict[str, Any] = {"backbone": {"name": "san"}, "training": {"sync_batch_norm": True}}
    for swaps in ([], EVERY_LAYER, [{"layers": "a"}]):
        (problem,) = problems(menu, fleet=[machine(2)], swaps=swaps, **job)
        assert (problem.pointer, problem.code) == ("/training/sync_batch_norm", "wrong_backbone")
        assert "patchwise attention of san" in problem.message
        assert "false would do" in problem.message
        assert problem.fixes == [False]
    assert problems(menu, fleet=[machine(2)], backbone={"name": "san"}) == []


def _slot(name: str, kind: str) -> Slot:
    return Slot(name=name, kind=kind, channels=8, stride=1)


def _form(kind: str, **defaults: Any) -> MixerForm:
    properties = {name: {"type": "integer", "default": value} for name, value in defaults.items()}
    return MixerForm(kind=kind, description="", options={"type": "object", "properties": properties})
