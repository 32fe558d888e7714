import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acmix import spec
from acmix.errors import Problem, SpecInvalid

LEAST = {"backbone": {"name": "resnet26"}, "dataset": {"name": "digits"}}


def problems(raw: object) -> list[Problem]:
    with pytest.raises(SpecInvalid) as caught:
        spec.parse(raw)
    return caught.value.problems


def test_backbone_and_data_set_are_enough() -> None:
    found = spec.parse(LEAST)
    assert found.task.name == "classification"
    assert found.training.optimizer.options == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    assert found.resources.gpus == "auto"


def test_a_dumped_spec_is_read_back_as_it_was() -> None:
    found = spec.parse({**LEAST, "training": {"optimizer": {"name": "adamw", "betas": [0.9, 0.99]}}})
    assert spec.parse(json.loads(json.dumps(found.dump()))) == found


def test_an_unknown_field_is_refused_with_the_nearest_ones() -> None:
    (problem,) = problems({**LEAST, "training": {"epoch": 3}})
    assert problem.pointer == "/training/epoch"
    assert problem.code == "unknown_field"
    assert problem.fixes is not None
    assert "epochs" in problem.fixes


def test_a_number_out_of_bounds_names_the_bound() -> None:
    (problem,) = problems({**LEAST, "priority": 101})
    assert (problem.pointer, problem.limit) == ("/priority", 100)


def test_all_faults_are_told_at_once() -> None:
    found = problems({"backbone": {}, "dataset": {"name": 3}, "training": {"epochs": 1.0}})
    assert {problem.pointer for problem in found} == {"/backbone/name", "/dataset/name", "/training/epochs"}


def test_at_most_a_hundred_faults_are_told() -> None:
    assert len(problems({f"field{number}": 1 for number in range(1000)})) == 100


def test_what_was_sent_is_not_repeated() -> None:
    secret = "s3cret" * 1000
    told = "".join(str(problem.as_json()) for problem in problems({"backbone": secret, "dataset": {"name": secret}}))
    assert secret not in told


def test_no_value_is_turned_into_another_type() -> None:
    for epochs in ("3", 3.0, True):
        assert problems({**LEAST, "training": {"epochs": epochs}})[0].pointer == "/training/epochs"


def test_a_glob_or_a_list_of_globs_names_layers() -> None:
    found = spec.parse({**LEAST, "swaps": [{"layers": "*"}, {"layers": ["layer1.*", "layer2.*"]}]})
    assert [swap.globs for swap in found.swaps] == [["*"], ["layer1.*", "layer2.*"]]


def test_a_pointer_escapes_what_json_pointers_escape() -> None:
    assert spec.pointer(["a/b", 0, "c~d"]) == "/a~1b/0/c~0d"


def test_a_file_that_is_no_json_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text("{")
    with pytest.raises(SpecInvalid, match="is not JSON"):
        spec.read(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*spec.JobSpec.model_fields])


@given(st.dictionaries(fields, json_values), json_values)
def test_any_json_is_a_spec_or_refused(changes: dict[str, object], whole: object) -> None:
    for raw in (changes, {**LEAST, **changes}, whole):
        with suppress(SpecInvalid):
            spec.parse(raw)
