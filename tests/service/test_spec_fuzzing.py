"""P12: whatever is posted in the place of a spec is refused with its reason or is a spec; nothing fails.

The judge asks the product for nothing but the answer: what must become of a body follows from how it was made.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response

from acmix import resolve
from service import json_body
from service.store.errors import JobNotFound
from tests.service.deployed import Deployed, deployed
from tests.service.mutated_specs import KINDS, Case, cases
from tests.service.spec_contract import flaw

SHORT, LONG = 12 * len(KINDS), 10_000
MOST_BODY_BYTES = 4 * 2**20
MOST_ANSWER_BYTES = 200_000
Counts = Counter[tuple[str, int]]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Deployed]:
    with deployed(f"sqlite:///{tmp_path / 'acmix.db'}", f"redis+socket://{tmp_path / 'none.sock'}", tmp_path) as api:
        api.enrol(gpus=2)
        yield api


def test_no_malformed_spec_is_taken_and_none_breaks_the_service(api: Deployed) -> None:
    counts, broken = judged(api, cases(seed=1, count=SHORT))
    assert broken == []
    assert {kind for kind, _ in counts} == {case.kind for case in cases(seed=1, count=len(KINDS))}


@pytest.mark.release
def test_nor_are_any_of_ten_thousand(api: Deployed) -> None:
    counts, broken = judged(api, cases(seed=2, count=LONG))
    tell(counts)
    assert broken == []
    assert sum(counts.values()) == LONG
    assert len({case.body for case in cases(seed=2, count=LONG)}) > 0.95 * LONG


def test_the_judge_finds_a_reader_of_json_that_is_not_strict(api: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "loads", json.loads)
    _, broken = judged(api, (case for case in cases(seed=1, count=SHORT) if case.kind == "a field twice"))
    assert broken
    assert all("taken" in each for each in broken)


def test_the_judge_finds_a_catalog_that_nobody_asks(api: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "problems", lambda *_, **__: [])
    of_names = ("unknown name", "wrong glob", "contradiction")
    _, broken = judged(api, (case for case in cases(seed=1, count=SHORT) if case.kind in of_names))
    assert {each.partition(":")[0] for each in broken} == {*of_names}


def judged(api: Deployed, posted: Iterable[Case]) -> tuple[Counts, list[str]]:
    """Statuses by kind, and a line for each answer that must not be."""
    counts: Counts = Counter()
    broken: list[str] = []
    for case in posted:
        answer = api.http.post("/v1/jobs", content=case.body, headers={"Content-Type": "application/json"})
        counts[case.kind, answer.status_code] += 1
        told = wrong(case, answer)
        if told:
            broken.append(f"{case.kind}: {told}: {case.body[:1000]!r} was answered {answer.text[:1000]}")
        if answer.status_code == 201:
            forget(api, answer.json()["id"])
    if kept := api.get("/v1/jobs")["data"]:
        broken.append(f"jobs of refused specs: {kept}")
    return counts, broken


def wrong(case: Case, answer: Response) -> str | None:
    """What about an answer must not be."""
    if answer.status_code == 201:
        if case.must == "refused":
            return "taken"
        told = flaw(case.body)
        if told:
            return f"taken, and {told}"
        return None if answer.json()["spec"] == json.loads(case.body) else "taken as something else"
    if answer.status_code not in ((400, 422) if len(case.body) <= MOST_BODY_BYTES else (413,)):
        return f"answered {answer.status_code}"
    if case.must == "taken":
        return "refused"
    return wrong_problem(case, answer)


def wrong_problem(case: Case, answer: Response) -> str | None:
    if answer.headers["Content-Type"] != "application/problem+json":
        return "no problem+json"
    if len(answer.content) > MOST_ANSWER_BYTES:
        return f"an answer of {len(answer.content)} bytes"
    problem = answer.json()
    pointers = [fault["pointer"] for fault in problem["errors"]]
    if problem["status"] != answer.status_code or not pointers or not problem["errors"][0]["message"]:
        return "no reason"
    astray = [pointer for pointer in pointers if not leads_into(case.body, pointer)]
    if astray:
        return f"{astray[0]!r} leads nowhere"
    if case.pointer and answer.status_code != 413 and not any(is_near(pointer, case.pointer) for pointer in pointers):
        return f"none of {pointers} leads to {case.pointer}"
    return None


def leads_into(body: bytes, pointer: str) -> bool:
    """Whether a pointer is to a value of the body, or to a field that an object of it lacks; of no JSON, to all."""
    if pointer == "":
        return True
    try:
        here: Any = json.loads(body.decode(errors="replace"), parse_int=str)
    except (ValueError, RecursionError):
        return False
    for part in pointer.removeprefix("/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict):
            if (found := next((key for key in here if shown(key) == name), None)) is None:
                return True
            here = here[found]
        elif isinstance(here, list) and name.isdigit() and int(name) < len(here):
            here = here[int(name)]
        else:
            return False
    return True


def shown(key: str) -> str:
    """A field's name as an answer may tell it: cut, and without what cannot be sent."""
    return key[:200].encode(errors="replace").decode().replace("\0", "?")


def is_near(pointer: str, expected: str) -> bool:
    """Whether one of the two is the other or leads to it."""
    one, other = f"{pointer}/", f"{expected}/"
    return one.startswith(other) or other.startswith(one)


def forget(api: Deployed, job_id: str) -> None:
    """No queue builds up."""
    api.ledger.request_cancel(job_id)
    api.ledger.delete(job_id)
    with pytest.raises(JobNotFound):
        api.reader.job(job_id)


def tell(counts: Counts) -> None:
    print()
    for kind in dict.fromkeys(kind for kind, _ in counts):
        statuses = {status: count for (of, status), count in sorted(counts.items()) if of == kind}
        print(f"P12 {kind}: {', '.join(f'{count} x {status}' for status, count in statuses.items())}")
    by_status = Counter[int]()
    for (_, status), count in counts.items():
        by_status[status] += count
    print(f"P12 {sum(counts.values())} specs: {dict(sorted(by_status.items()))}", flush=True)
