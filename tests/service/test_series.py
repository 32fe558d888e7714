"""Curves and traces as they are served: cut first, then thinned out."""

import itertools
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from acmix.events import Event
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Job
from service.store.tables import metric_blocks, metric_points
from tests.service.work import claim, let_lease_run_out, save, submit, trace


@pytest.fixture
def job(ledger: Ledger) -> Job:
    submit(ledger)
    return claim(ledger).job


def curve(name: str, values: dict[int, float]) -> Event:
    return Event("metrics", "", {"step": list(values), "values": {name: list(values.values())}})


def test_a_range_includes_both_its_ends(job: Job, ledger: Ledger, reader: Reader) -> None:
    ledger.record(
        job.id, 1, [curve("train/loss", {step: step / 2 for step in range(10)}), trace(3), trace(4), trace(5)]
    )
    [series] = reader.metrics(job.id, x_from=3, x_to=5)
    assert (series.step, series.value) == ([3, 4, 5], [1.5, 2.0, 2.5])
    assert reader.traces(job.id, x_from=4, x_to=4)[0].step == [4]
    assert reader.metrics(job.id, x_from=100) == []


def test_curves_are_chosen_by_name_and_listed_by_name(job: Job, ledger: Ledger, reader: Reader) -> None:
    for name in ("val/loss", "train/lr", "train/loss"):
        ledger.record(job.id, 1, [curve(name, {1: 0.5})])
    assert [series.name for series in reader.metrics(job.id)] == ["train/loss", "train/lr", "val/loss"]
    assert [series.name for series in reader.metrics(job.id, names=["val/loss", "none"])] == ["val/loss"]


@pytest.mark.parametrize("max_points", [4, 5, 50, 51, 999, 1000, 5000])
def test_thinning_keeps_first_last_least_and_greatest(
    max_points: int, job: Job, ledger: Ledger, reader: Reader
) -> None:
    rng = random.Random(0)
    values = {step: rng.gauss(0, 1) for step in range(1, 1001)}
    values[123], values[877] = -100.0, 100.0
    ledger.record(job.id, 1, [curve("train/loss", values), curve("train/lr", {1: 0.1, 2: 0.2})])
    loss, rate = reader.metrics(job.id, max_points=max_points)
    found = dict(zip(loss.step, loss.value, strict=True))
    assert len(found) <= max_points
    assert found.items() <= values.items()
    assert loss.step == sorted(loss.step)
    assert {1, 123, 877, 1000} <= found.keys()
    assert rate.step == [1, 2]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
    max_points=st.integers(4, 70),
    stride=st.integers(1, 1000),
)
def test_thinning_keeps_the_extremes_of_any_curve(
    values: list[float], max_points: int, stride: int, ledger: Ledger, reader: Reader
) -> None:
    submit(ledger)
    job = claim(ledger).job
    points = {place * stride: value for place, value in enumerate(values)}
    ledger.record(job.id, 1, [curve("x", points)])
    [series] = reader.metrics(job.id, max_points=max_points)
    assert len(series.step) <= max(max_points, 0)
    assert dict(zip(series.step, series.value, strict=True)).items() <= points.items()
    assert (series.step[0], series.step[-1]) == (0, (len(values) - 1) * stride)
    assert (min(series.value), max(series.value)) == (min(values), max(values))
    if len(values) <= max_points:
        assert series.value == values


@pytest.mark.parametrize(
    ("x_from", "x_to"), [(None, None), (1, 5000), (127, 4096), (128, 4095), (130, 3000), (900, None)]
)
def test_a_long_curve_that_is_thinned_from_its_blocks_loses_no_peak(
    x_from: int | None, x_to: int | None, job: Job, ledger: Ledger, reader: Reader
) -> None:
    rng = random.Random(0)
    values = {step: rng.gauss(0, 1) for step in range(3, 4500) if step % 700}
    for first in range(0, 4500, 300):
        part = {step: value for step, value in values.items() if first <= step < first + 300}
        ledger.record(job.id, 1, [curve("x", part), curve("rare", {first: 0.5})])
    seen = {step: value for step, value in values.items() if (x_from or 0) <= step <= (x_to or 9999)}
    series = next(each for each in reader.metrics(job.id, x_from=x_from, x_to=x_to, max_points=30) if each.name == "x")
    found = dict(zip(series.step, series.value, strict=True))
    assert len(found) <= 30
    assert found.items() <= seen.items()
    assert (series.step[0], series.step[-1]) == (min(seen), max(seen))
    assert (min(found.values()), max(found.values())) == (min(seen.values()), max(seen.values()))
    assert len(found) > 20, "as many as are asked for, nearly"


def test_blocks_are_what_their_points_are(job: Job, ledger: Ledger, engine: Engine) -> None:
    """Whatever is written, said again otherwise, gone back behind and written anew."""
    rng = random.Random(0)

    def say(attempt: int, *steps: int) -> None:
        ledger.record(job.id, attempt, [curve(name, {step: rng.gauss(0, 1) for step in steps}) for name in "ab"])

    say(1, *range(300))
    say(1, *range(250, 600, 3))
    say(1, 127, 128, 5000)
    _check_blocks(engine)
    save(ledger, job, 260)
    say(1, *range(260, 900))
    let_lease_run_out(engine, job.id)
    ledger.sweep()
    claim(ledger)
    _check_blocks(engine)
    say(2, *range(261, 400))
    _check_blocks(engine)
    ledger.rewind(job.id, 2, None, why="none can be read")
    _check_blocks(engine, count=0)


def _check_blocks(engine: Engine, count: int | None = None) -> None:
    blocks: dict[tuple[str, int], list[tuple[float, int]]] = {}
    with engine.connect() as connection:
        for row in connection.execute(select(metric_points)):
            blocks.setdefault((row.name, row.step // 128), []).append((row.value, row.step))
        rows = connection.execute(select(metric_blocks)).all()
    expected = {
        key: (len(points), *min(points), max(points)[0], min(step for value, step in points if value == max(points)[0]))
        for key, points in blocks.items()
    }
    told = ("points", "least", "least_step", "greatest", "greatest_step")
    assert {(row.name, row.block): tuple(getattr(row, name) for name in told) for row in rows} == expected
    assert count is None or len(rows) == count


def test_the_range_comes_before_the_thinning(job: Job, ledger: Ledger, reader: Reader) -> None:
    ledger.record(job.id, 1, [curve("x", {step: math.sin(step) for step in range(1000)})])
    [series] = reader.metrics(job.id, x_from=100, x_to=119, max_points=20)
    assert series.step == list(range(100, 120))


def test_traces_come_layer_by_layer_in_depth_order(job: Job, ledger: Ledger, reader: Reader) -> None:
    layers = ["layer1.0.conv2", "layer2.0.conv2", "layer10.0.conv2"]
    ledger.record(job.id, 1, [trace(0, layers), trace(10, layers)])
    found = reader.traces(job.id)
    assert [(found.layer, found.depth) for found in found] == [(layer, depth) for depth, layer in enumerate(layers)]
    assert (found[1].step, found[1].alpha, found[1].convolution_rms) == ([0, 10], [0.1, 10.1], [0.1, 10.1])
    chosen = reader.traces(job.id, layers=["layer2*", "layer10.0.*"])
    assert [(trace.layer, trace.depth) for trace in chosen] == [(layers[1], 1), (layers[2], 2)]


@pytest.mark.parametrize(("count", "max_points"), [(1, 4), (2, 2), (100, 10), (101, 7), (10, 10), (9, 10), (500, 499)])
def test_traces_are_thinned_out_evenly(count: int, max_points: int, job: Job, ledger: Ledger, reader: Reader) -> None:
    ledger.record(job.id, 1, [trace(step) for step in range(count)])
    steps = reader.traces(job.id, max_points=max_points)[0].step
    assert len(steps) == min(count, max_points)
    assert (steps[0], steps[-1]) == (0, count - 1)
    gaps = {later - earlier for earlier, later in itertools.pairwise(steps)}
    assert not gaps or max(gaps) - min(gaps) <= 1
