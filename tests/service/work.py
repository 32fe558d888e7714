"""What the tests of the store do again and again: submit, claim, say something, wait."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Engine, Table, event, func, select, text, update

from acmix import spec
from acmix.events import Event
from acmix.fleet import Demand
from service.store.database import clock, writing
from service.store.ids import new_id
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Checkpoint, Claim, Job
from service.store.tables import attempts, holdings, jobs, metadata

T = TypeVar("T")
SLOTS = count()


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Has it done again and again by a thread, until the end of the context."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(0.01):
            act()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is asked of a database within the context, but for where its transactions begin and end."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


def spec_of(**changes: Any) -> dict[str, Any]:
    """A resolved spec."""
    least = {"backbone": {"name": "resnet26"}, "dataset": {"name": "digits"}}
    return spec.parse({**least, **changes}).dump()


def submit(ledger: Ledger, **changes: Any) -> Job:
    resolved = spec_of(**changes)
    job, _ = ledger.submit(resolved, resolved)
    return Reader(ledger._writing).job(job.id)


def claim(ledger: Ledger, worker_id: str = "worker-1") -> Claim:
    """Claim what is next, which must be there."""
    claimed = look(ledger, worker_id)
    assert claimed is not None
    return claimed


def look(
    ledger: Ledger,
    worker_id: str = "worker-1",
    *,
    gpus: int = 0,
    free: Sequence[int] | None = None,
    can_run: Callable[[Demand, dict[str, Any]], bool] = lambda *_: True,
) -> Claim | None:
    """Claim as a worker of so many GPUs does, all of them free unless it is said which; one of none trains on the CPU.

    A slot on the CPU has a number that no other such look had, so that a worker can hold many jobs.
    """
    if free is None:
        free = range(gpus) if gpus else [next(SLOTS)]
    return ledger.claim(worker_id, free=free, slots=max(1, gpus), has_gpus=gpus > 0, can_run=can_run)


def claim_new(ledger: Ledger, **changes: Any) -> Job:
    """A job that was submitted, and claimed at once."""
    submit(ledger, **changes)
    return claim(ledger).job


def metrics(*steps: int, name: str = "train/loss") -> Event:
    return Event("metrics", "", {"epoch": 1, "step": list(steps), "values": {name: [1 / step for step in steps]}})


def trace(step: int, layers: Sequence[str] = ("layer1.0.conv2",)) -> Event:
    column = [step + depth / 10 for depth in range(len(layers))]
    columns = dict.fromkeys(("alpha", "beta", "attention_rms", "convolution_rms"), column)
    return Event("trace", f"step {step}", {"step": step, "layers": list(layers), **columns})


def evaluation(step: int, accuracy: float = 0.5, *, best: bool = False, **more: Any) -> Event:
    data = {"epoch": step // 10, "step": step, "split": "val", "metric": "accuracy", "best": best}
    return Event("evaluation", f"step {step}", {**data, "metrics": {"accuracy": accuracy}, **more})


def save(
    ledger: Ledger,
    job: Job,
    step: int,
    accuracy: float | None = None,
    *,
    best: bool = False,
    keep_best: int = 1,
    keep_latest: int = 100,
    **more: Any,
) -> tuple[Checkpoint, list[Checkpoint]]:
    """Commit a checkpoint; returns it as it was handed in, and what retention dropped."""
    checkpoint_id = new_id("ckpt")
    fields = {"key": f"jobs/{job.id}/{checkpoint_id}", "sha256": "0" * 64, "size_bytes": 5_000_000_000, **more}
    measured = {} if accuracy is None else {"val/accuracy": accuracy}
    given = Checkpoint(checkpoint_id, job.id, job.attempt, step // 10, step, "epoch", measured, **fields)
    removed = ledger.commit_checkpoint(
        job.id,
        job.attempt,
        given,
        Event("checkpoint", f"step {step}", {"step": step, "best": best}),
        keep_best=keep_best,
        keep_latest=keep_latest,
        metric="val/accuracy",
        larger_is_better=True,
    )
    return given, removed


def let_lease_run_out(engine: Engine, job_id: str) -> None:
    """Set the lease back, as if time had passed on the database's clock."""
    _set_to_the_past(engine, "lease_expires_at", job_id)


def let_backoff_pass(engine: Engine, job_id: str) -> None:
    _set_to_the_past(engine, "not_before", job_id)


def let_wait(engine: Engine, job_id: str, *, minutes: float) -> None:
    """As if a queued job had been there for so long already."""
    _set_back(engine, jobs, jobs.c.id == job_id, ("queued_at", "turn_at"), timedelta(minutes=minutes))


def let_run(engine: Engine, job_id: str, *, seconds: float) -> None:
    """As if its newest attempt had begun so much earlier."""
    _set_back(engine, jobs, jobs.c.id == job_id, ("claimed_at",), timedelta(seconds=seconds))
    newest = select(func.max(attempts.c.number)).where(attempts.c.job == job_id).scalar_subquery()
    mine = (attempts.c.job == job_id) & (attempts.c.number == newest)
    _set_back(engine, attempts, mine, ("started_at",), timedelta(seconds=seconds))
    for slot in _slots_of(engine, job_id):
        held = (holdings.c.job == job_id) & (holdings.c.slot == slot)
        _set_back(engine, holdings, held, ("since",), timedelta(seconds=seconds))


def rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, to compare before and after."""
    with engine.connect() as connection:
        tables = metadata.sorted_tables
        return {table.name: sorted(map(tuple, connection.execute(table.select())), key=repr) for table in tables}


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Run the calls in threads that start together; returns their results, or raises what one of them raised."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)
    raised: list[BaseException] = []

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = calls[index]()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return results


def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true within {seconds} s"
        threading.Event().wait(0.01)


def _slots_of(engine: Engine, job_id: str) -> Sequence[int]:
    with engine.connect() as connection:
        return connection.execute(select(holdings.c.slot).where(holdings.c.job == job_id)).scalars().all()


def _set_back(
    engine: Engine, table: Table, which: ColumnElement[bool], columns: Sequence[str], span: timedelta
) -> None:
    with writing(engine).begin() as connection:
        found = connection.execute(select(*(table.c[name] for name in columns)).where(which)).mappings().one()
        earlier = {name: found[name] - span for name in columns}
        connection.execute(update(table).where(which).values(**earlier))


def _set_to_the_past(engine: Engine, column: str, job_id: str) -> None:
    with engine.execution_options(writes=True).begin() as connection:
        long_ago = clock(connection).replace(year=2020)
        as_stored = f"{long_ago:%Y-%m-%dT%H:%M:%S.%fZ}" if engine.dialect.name == "sqlite" else long_ago
        connection.execute(text(f"UPDATE jobs SET {column} = :past WHERE id = :id"), {"past": as_stored, "id": job_id})
