"""Specs that nobody can run: each is refused with a 4xx that points at the field, and no job comes of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.deployed import SPEC, Deployed, deployed, spec
from tests.service.spec_contract import OBJECTS

LEFT_OUT = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The right spec with the value at a pointer replaced, added or left out."""
    body = spec()
    *parents, last = path.removeprefix("/").split("/")
    here: Any = body
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
    key: Any = int(last) if isinstance(here, list) else last
    if value is LEFT_OUT:
        del here[key]
    else:
        here[key] = value
    return body


def written(path: str, text: str) -> str:
    """The right spec as JSON with a value that only text can hold."""
    return json.dumps(changed(path, "HERE")).replace('"HERE"', text)


def nested(depth: int, inner: str = "0") -> str:
    return "[" * depth + inner + "]" * depth


NUMBERS = [
    "/training/epochs",
    "/training/batch_size",
    "/training/accumulate_batches",
    "/training/seed",
    "/training/limit_train_batches",
    "/evaluation/every_epochs",
    "/checkpoints/every_epochs",
    "/checkpoints/keep_best",
    "/checkpoints/keep_latest",
    "/trace/every_steps",
    "/resources/gpus",
    "/priority",
    "/training/loader_workers",
]
FRACTIONS = [
    "/training/label_smoothing",
    "/training/clip_norm",
    "/checkpoints/every_seconds",
    "/resources/max_runtime_seconds",
    "/training/ema/decay",
    "/training/optimizer/lr",
    "/training/optimizer/momentum",
    "/training/schedule/warmup_epochs",
    "/backbone/options/width",
]
STRINGS = [
    "/name",
    "/metadata/study",
    "/task/name",
    "/backbone/name",
    "/swaps/0/layers",
    "/swaps/0/mixer/name",
    "/dataset/name",
    "/training/optimizer/name",
    "/training/schedule/name",
    "/training/augment/name",
    "/evaluation/metric",
    "/kind",
    "/training/precision",
    "/training/weight_decay_on",
    "/backbone/options/stem",
    "/swaps/0/mixer/options/combine",
]
NAMED = {
    "/training/schedule": {"name": "cosine"},
    "/training/augment": {"name": "default"},
    "/task": {"name": "classification"},
}


def unknown_fields() -> Iterator[tuple[str, Any]]:
    yield "/epochs", changed("/epochs", 3)
    yield "/swap", changed("/swap", [])
    yield "/training/learning_rate", changed("/training/learning_rate", 0.1)
    for place in OBJECTS:
        if place == "/metadata":
            continue
        body = changed(place, NAMED[place]) if place in NAMED else spec()
        here: Any = body
        for part in place.removeprefix("/").split("/"):
            here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
        here["colour"] = "green"
        yield f"{place}/colour", body


def wrong_types() -> Iterator[tuple[str, Any]]:
    for path in NUMBERS:
        yield from ((path, changed(path, value)) for value in ("3", True, 4.0, 2.5, [1], {"a": 1}))
    for path in FRACTIONS:
        place = path if "schedule" not in path else "/training/schedule"
        for value in ("0.1", True, [0.1], {}):
            body = changed(place, {"name": "cosine", "warmup_epochs": value} if place != path else value)
            yield path, body
    for path in STRINGS:
        parent = path.removesuffix("/name")
        named = path.endswith("/name") and parent in NAMED
        for value in (7, True, {"a": 1}):
            yield path, changed(parent, {"name": value}) if named else changed(path, value)
    for path in OBJECTS:
        yield from ((path, changed(path, value)) for value in ("text", 3, []))
    yield "/swaps", changed("/swaps", {})
    yield "/swaps/0/layers/1", changed("/swaps/0/layers", ["layer1.*", 5])
    yield "/backbone/weights", changed("/backbone/weights", "resnet26.pt")
    yield "/training/optimizer/nesterov", changed("/training/optimizer/nesterov", 1)
    yield "", [SPEC]
    yield "", "a spec"
    yield "", None
    yield "", 12


def out_of_bounds() -> Iterator[tuple[str, Any]]:
    for path in NUMBERS:
        yield path, changed(path, -(10**6))
        yield path, changed(path, 10**30)
    for path in FRACTIONS:
        if path != "/training/schedule/warmup_epochs":
            yield path, changed(path, -1.5)
            yield path, changed(path, 1e300)
    yield "/training/schedule/warmup_epochs", changed("/training/schedule", {"name": "cosine", "warmup_epochs": -1})
    yield "/training/schedule/warmup_epochs", changed("/training/schedule", {"name": "cosine", "warmup_epochs": 4})
    yield "/training/epochs", changed("/training/epochs", 0)
    yield "/training/optimizer/lr", changed("/training/optimizer/lr", 0)
    yield "/training/optimizer/momentum", changed("/training/optimizer/momentum", 1)
    yield "/resources/gpus", changed("/resources/gpus", 3)
    yield "/swaps/0/layers", changed("/swaps/0/layers", [])
    yield "/swaps", changed("/swaps", [{"layers": "layer1.*"}] * 201)
    yield "/metadata", changed("/metadata", {f"label {number}": "x" for number in range(51)})
    yield "/dataset/options/image_px", changed("/dataset/options/image_px", 7)


def unknown_names() -> Iterator[tuple[str, Any]]:
    yield "/task/name", changed("/task", {"name": "classificaton"})
    yield "/backbone/name", changed("/backbone/name", "resnet27")
    yield "/swaps/0/mixer/name", changed("/swaps/0/mixer/name", "acmx")
    yield "/dataset/name", changed("/dataset/name", "digit")
    yield "/training/optimizer/name", changed("/training/optimizer/name", "sdg")
    yield "/training/schedule/name", changed("/training/schedule", {"name": "cosinus"})
    yield "/training/augment/name", changed("/training/augment", {"name": "defaults"})
    yield "/evaluation/metric", changed("/evaluation", {"metric": "acuracy"})
    yield "/kind", changed("/kind", "training")
    yield "/training/precision", changed("/training/precision", "float16")
    yield "/backbone/options/stem", changed("/backbone/options/stem", "tiny")
    yield "/dataset/name", changed("/dataset/name", "boxes")
    yield "/swaps/0/mixer/name", changed("/swaps/0/mixer", {"name": "rolling"})


def wrong_options() -> Iterator[tuple[str, Any]]:
    heads, window = "/swaps/0/mixer/options/heads", "/swaps/0/mixer/options/kernel_att"
    yield from ((heads, changed(heads, value)) for value in (0, -1, 5, 7, 1025, 10**12, 4.0, True, "4", None))
    yield from ((window, changed(window, value)) for value in (0, 2, 8, 65, 7.0, "7", None, [7]))
    yield "/training/optimizer/momentun", changed("/training/optimizer/momentun", 0.9)
    yield "/training/optimizer/betas", changed("/training/optimizer", {"name": "adamw", "betas": [0.9]})
    yield "/training/optimizer/betas/1", changed("/training/optimizer", {"name": "adamw", "betas": [0.9, "x"]})
    yield "/training/optimizer/betas", changed("/training/optimizer", {"name": "sgd", "betas": [0.9, 0.9]})
    yield "/training/schedule/at_epochs", changed("/training/schedule", {"name": "milestones"})
    yield "/training/schedule/at_epochs/0", changed("/training/schedule", {"name": "milestones", "at_epochs": ["x"]})
    yield "/training/augment/fill", changed("/training/augment", {"name": "crop", "fill": "black"})
    yield "/training/augment/fill", changed("/training/augment", {"name": "crop", "fill": -1})
    yield "/dataset/options/folder", changed("/dataset", {"name": "image_folder"})
    yield "/backbone/options/depths", changed("/backbone/options/depths", [1, 1, 1, 1])
    for depths in ([1, 1], [], [1] * 5, "1111", {"a": 1}):
        yield "/backbone/options/depths", changed("/backbone", {"name": "resnet", "options": {"depths": depths}})
    for block in (0, 65, 1.0, None):
        body = changed("/backbone", {"name": "resnet", "options": {"depths": [1, block, 1, 1]}})
        yield "/backbone/options/depths/1", body
    yield "/training/optimizer/lr", changed("/training/optimizer/lr", None)
    yield "/dataset/options/a~1b~0c", changed("/dataset", {"name": "digits", "options": {"a/b~c": 1}})


def wrong_swaps() -> Iterator[tuple[str, Any]]:
    for glob in ("layer5.*", "layer3", "*.conv1", "layer[5-9].*", "LAYER3.*", "(a+)+$", ".*", "../layer3"):
        yield "/swaps/0/layers", changed("/swaps/0/layers", glob)
    yield "/swaps/0/layers", changed("/swaps/0/layers", ["layer3.*", "layer9.*"])
    yield "/swaps/1/layers", changed("/swaps", [{"layers": "layer3.*"}, {"layers": "layer3.0.conv2"}])
    yield "/swaps/1/layers", changed("/swaps", [{"layers": "*"}, {"layers": "*"}])
    yield "/swaps/0/layers", changed("/swaps/0/layers", "")
    yield "/swaps/0/layers", changed("/swaps/0", {"mixer": {"name": "acmix"}})
    yield "/swaps/0/mixer/name", changed("/swaps/0/mixer", {"options": {"heads": 4}})


def left_out() -> Iterator[tuple[str, Any]]:
    for path in ("/backbone", "/dataset", "/backbone/name", "/dataset/name", "/swaps/0/layers"):
        yield path, changed(path, LEFT_OUT)
    yield "/training/optimizer/name", changed("/training/optimizer", {"lr": 0.1})
    yield "/backbone", {}


def bad_text() -> Iterator[tuple[str, Any]]:
    for path in ("/name", "/backbone/name", "/metadata/study", "/swaps/0/layers", "/backbone/options/stem"):
        yield path, written(path, r'"a\u0000b"')
        yield path, written(path, r'"\ud800"')
        yield path, written(path, r'"\udc00\ud800"')
        yield path, changed(path, "x" * 1_000_000)
        yield path, changed(path, "line\nbreak")
    yield "/metadata/?", json.dumps(changed("/metadata", {"HERE": "x"})).replace("HERE", r"\ud83d")
    yield "/metadata/?", json.dumps(changed("/metadata", {"HERE": "x"})).replace("HERE", r"\u0000")
    yield "/metadata/" + "k" * 200, changed("/metadata", {"k" * 100_000: "x"})
    yield "/dataset/options/" + "k" * 200, changed("/dataset/options", {"k" * 100_000: 1})
    yield "/" + "k" * 200, changed("/" + "k" * 100_000, 1)


def bad_json() -> Iterator[tuple[str, Any]]:
    for path in ("/training/epochs", "/training/optimizer/lr", "/swaps/0/mixer/options/heads", "/backbone/options/x"):
        for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000):
            yield path, written(path, text)
        deepest = path + "/0" * (33 - path.count("/"))
        yield from ((deepest, written(path, nested(depth))) for depth in (40, 400))
    yield "", written("/name", nested(100_000))
    yield "/name", '{"name": "a", "name": "b", "backbone": {"name": "resnet26"}, "dataset": {"name": "digits"}}'
    yield "/backbone/name", '{"backbone": {"name": "resnet26", "name": "resnet50"}, "dataset": {"name": "digits"}}'
    yield "/training/optimizer/lr", written("/training/optimizer", '{"name": "sgd", "lr": 1, "lr": 2}')
    for text in ("", "{", "}", "{'name': 1}", '{"name": "a",}', "// spec", "\ufeff{}", '{"name" "a"}', "{}{}", "01"):
        yield "", text


CASES = [
    case
    for family in (
        unknown_fields,
        wrong_types,
        out_of_bounds,
        unknown_names,
        wrong_options,
        wrong_swaps,
        left_out,
        bad_text,
        bad_json,
    )
    for case in family()
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("malformed")
    with deployed(f"sqlite:///{folder / 'acmix.db'}", f"redis+socket://{folder / 'none.sock'}", folder) as api:
        api.enrol(gpus=2)
        yield api


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_malformed_spec_is_refused_with_a_pointer_to_its_field(api: Deployed, number: int) -> None:
    assert_refused(api, "/v1/jobs", number)
    assert api.get("/v1/jobs")["data"] == []


def test_it_is_refused_as_a_plan_too_and_no_housekeeper_is_asked(api: Deployed) -> None:
    for number in range(len(CASES)):
        assert_refused(api, "/v1/plans", number)
    assert api.plans.claim() is None


def assert_refused(api: Deployed, path: str, number: int) -> None:
    pointer, body = CASES[number]
    text = body if isinstance(body, str) and not body.startswith("a spec") else json.dumps(body)
    response = api.http.post(path, content=text.encode(), headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422), response.text[:500]
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert pointer in [fault["pointer"] for fault in problem["errors"]]
    assert all(fault["message"] for fault in problem["errors"])
    assert len(response.content) < 20_000, "what was sent is not repeated"


def test_there_are_at_least_two_hundred_of_them_and_no_two_are_alike() -> None:
    texts = {body if isinstance(body, str) else json.dumps(body) for _, body in CASES}
    assert len(texts) >= 200
    assert len(texts) == len(CASES)


def test_the_spec_that_they_were_made_from_is_taken(tmp_path: Path) -> None:
    with deployed(f"sqlite:///{tmp_path / 'acmix.db'}", f"redis+socket://{tmp_path / 'none.sock'}", tmp_path) as api:
        api.enrol()
        assert api.post(spec()).status_code == 201


def test_a_body_over_the_limit_is_refused_before_it_is_read(api: Deployed) -> None:
    response = api.http.post("/v1/jobs", content=b" " * (4 * 2**20 + 1), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json()["errors"][0]["limit"] == 4 * 2**20


def test_a_body_that_never_says_how_long_it_is_is_cut_off_too(api: Deployed) -> None:
    chunks = (b" " * 2**20 for _ in range(64))
    response = api.http.post("/v1/jobs", content=chunks, headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", "application/xml", "multipart/form-data", "application/jsonl"]
)
def test_another_content_type_is_refused(api: Deployed, media_type: str) -> None:
    response = api.http.post("/v1/jobs", content=json.dumps(spec()), headers={"Content-Type": media_type})
    assert response.status_code == 415


def test_bytes_that_are_no_utf8_are_refused(api: Deployed) -> None:
    for encoding in ("utf-16", "latin-1"):
        body = '{"name": "ü"}'.encode(encoding)
        response = api.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400


def test_very_many_faults_are_answered_quickly_and_briefly(api: Deployed) -> None:
    for body in (
        {f"field{number}": 1 for number in range(40_000)},
        changed("/dataset", {"name": "digits", "options": {f"option{number}": 1 for number in range(40_000)}}),
        changed("/swaps", [{"layers": f"nothing{number}"} for number in range(200)]),
        changed("/swaps", [{"layers": [f"nothing{number}" for number in range(200)]}] * 200),
        changed("/swaps", [{"layers": "*"}] * 200),
    ):
        response = api.post(body)
        assert response.status_code == 422
        assert response.elapsed.total_seconds() < 5
        assert len(response.content) < 200_000
