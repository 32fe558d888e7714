"""Pictures of traces: what each layer leans on, by depth and over time."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from service.store.rows import LayerTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTENTION, CONVOLUTION, INK, GRID = "#c2410c", "#1d4ed8", "#27272a", "#e4e4e7"
SMALLEST = 1e-6  # below it a ratio of alpha and beta says nothing


def traces_svg(traces: Sequence[LayerTrace], style: Literal["depth", "trajectory"], *, title: str = "") -> str:
    """An SVG document of the traces.

    `depth` plots log10 of abs(alpha / beta) at the last traced step by layer, in depth order: above zero a layer
    leans on attention, below on convolution. `trajectory` plots alpha and beta of every layer over the steps.
    """
    figure = _by_depth(traces) if style == "depth" else _over_steps(traces)
    if title:
        # a user wrote it: dollars are no formula
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "acmix-service"})
    return out.getvalue()


def log_ratio(alpha: float | None, beta: float | None) -> float:
    """log10 of abs(alpha / beta), both taken as at least 1e-6; NaN where either is missing."""
    if alpha is None or beta is None:
        return math.nan
    return math.log10(max(abs(alpha), SMALLEST) / max(abs(beta), SMALLEST))


def _by_depth(traces: Sequence[LayerTrace]) -> "Figure":
    figure, (axes,) = _canvas(max(6.0, 2.2 + 0.42 * len(traces)), 4.4, panels=1)
    names = [trace.layer for trace in traces]
    first = [log_ratio(trace.alpha[0], trace.beta[0]) for trace in traces if trace.step]
    last = [log_ratio(trace.alpha[-1], trace.beta[-1]) for trace in traces if trace.step]
    places = range(len(last))
    axes.axhline(0, color=INK, linewidth=0.8)
    colors = [ATTENTION if value > 0 else CONVOLUTION for value in last]
    axes.bar(places, last, width=0.55, color=colors, alpha=0.85, zorder=2)
    axes.plot(places, first, "_", color=INK, markersize=9, alpha=0.6, zorder=3)
    reach = max([0.1, *(abs(value) for value in [*first, *last] if math.isfinite(value))]) * 1.25
    axes.set_ylim(-reach, reach)
    axes.set_xticks(list(places), names[: len(last)], rotation=60, ha="right", fontsize=7.5)
    axes.set_ylabel("log10 |alpha / beta|")
    axes.text(0.01, 0.97, "attention", transform=axes.transAxes, ha="left", va="top", color=ATTENTION)
    axes.text(0.995, 0.03, "convolution", transform=axes.transAxes, ha="right", va="bottom", color=CONVOLUTION)
    if last:
        axes.set_title(f"step {traces[0].step[-1]}; dashes: step {traces[0].step[0]}", fontsize=8.5, loc="right")
    else:
        _say_nothing_yet(axes)
    return figure


def _over_steps(traces: Sequence[LayerTrace]) -> "Figure":
    from matplotlib import colormaps

    figure, panels = _canvas(9.0, 3.8, panels=2)
    shades = colormaps["viridis"]
    for panel, name, path in zip(panels, ("alpha", "beta"), ("attention", "convolution"), strict=True):
        panel.set_title(f"{name} ({path})", fontsize=10, loc="left")
        panel.set_xlabel("step")
        for trace in traces:
            values = [math.nan if value is None else value for value in getattr(trace, name)]
            color = shades(trace.depth / max(1, len(traces) - 1) * 0.92)
            panel.plot(trace.step, values, color=color, linewidth=1.3, label=trace.layer)
        if not traces:
            _say_nothing_yet(panel)
    if traces:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=6.5, frameon=False, title="by depth")
    return figure


def _canvas(width: float, height: float, *, panels: int) -> "tuple[Figure, list[Axes]]":
    """A figure that touches no global state of matplotlib: safe in threads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for panel in axes:
        panel.grid(axis="y", color=GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8, color=GRID)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            panel.spines[side].set_color(GRID)
    return figure, axes


def _say_nothing_yet(axes: "Axes") -> None:
    axes.text(0.5, 0.5, "no traced step yet", transform=axes.transAxes, ha="center", va="center", color=INK)
    axes.set_xticks([])
