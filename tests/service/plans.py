"""How PostgreSQL goes about each statement of a call: EXPLAIN ANALYZE at the very moment at which it is executed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event

Json = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """A step of a plan. `read` is how many rows it looked at in all, where that can be told."""

    kind: str
    table: str | None
    index: str | None
    read: float
    statement: str


def nodes_of(engine: Engine, call: Callable[[], object]) -> list[Node]:
    """The steps of all statements that the call executes. Those that change rows are planned and not timed twice."""
    found: list[Node] = []

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if many or statement.lstrip().upper().startswith(("EXPLAIN", "SHOW", "SET")):
            return
        changes = not statement.lstrip().upper().startswith(("SELECT", "WITH"))
        options = "FORMAT JSON" if changes else "ANALYZE, TIMING OFF, FORMAT JSON"
        with connection.connection.driver_connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN ({options}) {statement}", parameters)
            [answer] = cursor.fetchone()
        plan = json.loads(answer) if isinstance(answer, str) else answer
        found.extend(_walk(plan[0]["Plan"], statement))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        call()
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    return found


def _walk(plan: Json, statement: str) -> Iterator[Node]:
    loops = plan.get("Actual Loops", 1)
    rows = plan.get("Actual Rows", plan["Plan Rows"])
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
    yield Node(
        plan["Node Type"], plan.get("Relation Name"), plan.get("Index Name"), (rows + removed) * loops, statement
    )
    for below in plan.get("Plans", ()):
        yield from _walk(below, statement)
