"""A plan as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

LAYER_FIGURES = ("params", "macs", "activation_bytes")
TOTAL_FIGURES = ("params", "macs", "peak_memory_bytes")


def show(console: Console, plan: Mapping[str, Any]) -> None:
    """Every layer that can be swapped, before and after; the whole model; what should be known."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("layer", "mixer"):
        table.add_column(heading, no_wrap=True)
    for heading in ("params", "MACs", "kept for backward"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in plan["layers"]:
        table.add_row(layer["layer"], layer["mixer"] or "-", *_changes(layer, LAYER_FIGURES))
    totals = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "params", "MACs", "peak of a step"):
        totals.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    totals.add_row("whole model", *_changes(plan["totals"], TOTAL_FIGURES))
    console.print(table)
    console.print(totals)
    for sentence in [*_notes(plan), *plan["warnings"]]:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)


def shown(value: int, figure: str) -> str:
    """A figure to three digits, with its unit."""
    step, units = (1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB")) if figure.endswith("_bytes") else (1000, _COUNTS)
    scaled = float(value)
    for unit in units[:-1]:
        if scaled < 999.5:  # else its three digits would need an exponent
            return f"{scaled:.3g} {unit}".rstrip()
        scaled /= step
    return f"{scaled:.3g} {units[-1]}"


_COUNTS = ("", "k", "M", "G", "T", "P")


def _changes(of: Mapping[str, Any], figures: tuple[str, ...]) -> list[str]:
    return [_change(of["before"][figure], of["after"][figure], figure) for figure in figures]


def _change(before: int, after: int, figure: str) -> str:
    return shown(before, figure) if before == after else f"{shown(before, figure)} -> {shown(after, figure)}"


def _notes(plan: Mapping[str, Any]) -> list[str]:
    return [f"{layer['layer']}: {note}" for layer in plan["layers"] for note in layer["notes"]]
