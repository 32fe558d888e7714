"""The pictures of traces: whole SVG documents, whatever the traces hold."""

import math
from xml.etree import ElementTree

import pytest

from service.figures import log_ratio, traces_svg
from service.store.rows import LayerTrace

SVG = "{http://www.w3.org/2000/svg}"


def _trace(depth: int, *, alpha: list[float | None], beta: list[float | None]) -> LayerTrace:
    steps = list(range(len(alpha)))
    return LayerTrace(f"layer{depth}", depth, steps, alpha, beta, list(alpha), list(beta))  # type: ignore[arg-type]  # null stands for not finite


@pytest.mark.parametrize("style", ["depth", "trajectory"])
@pytest.mark.parametrize(
    "traces",
    [
        [],
        [_trace(0, alpha=[0.5], beta=[0.5])],
        [_trace(0, alpha=[0.5, None], beta=[0.5, 0.0]), _trace(1, alpha=[0.5, -0.2], beta=[0.5, 0.9])],
        [_trace(depth, alpha=[0.5, 0.1 * depth], beta=[0.5, 0.5]) for depth in range(53)],
    ],
    ids=["no trace yet", "one step", "null, zero and negative", "a deep network"],
)
def test_every_trace_makes_a_whole_picture(traces: list[LayerTrace], style: str) -> None:
    document = traces_svg(traces, style, title="a <title> & more")  # type: ignore[arg-type]  # parametrized
    root = ElementTree.fromstring(document)
    assert root.tag == f"{SVG}svg"
    assert len(root.findall(f".//{SVG}path")) > len(traces)


def test_the_ratio_is_of_sizes_and_never_infinite() -> None:
    assert log_ratio(0.5, 0.5) == 0
    assert log_ratio(-1.0, 0.1) == pytest.approx(1)
    assert log_ratio(0.1, -1.0) == pytest.approx(-1)
    assert log_ratio(1.0, 0.0) == pytest.approx(6)
    assert math.isnan(log_ratio(None, 0.5))
