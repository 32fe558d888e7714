"""`acmix plan`: figures as a table, as JSON, and problems as sentences."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service.cli import main, plan_table

SPEC = {
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.125}},
    "swaps": [{"layers": "layer4.*"}],
    "training": {"batch_size": 4},
}
KEPT = {"params": 36_864, "macs": 115_605_504, "activation_bytes": 6_422_528}
PLAN: dict[str, Any] = {
    "layers": [
        {"layer": "layer1.0.conv2", "mixer": None, "before": KEPT, "after": KEPT, "notes": []},
        {
            "layer": "layer2.0.conv2",
            "mixer": "acmix",
            "before": KEPT,
            "after": {**KEPT, "params": 23_000, "activation_bytes": 2**31},
            "notes": ["window 7 covers the whole 4x4 map from everywhere: attention is global"],
        },
    ],
    "totals": {
        "before": {"params": 13_700_000, "macs": 2_400_000_000, "peak_memory_bytes": 2**30},
        "after": {"params": 10_500_000, "macs": 2_400_000_000, "peak_memory_bytes": 3 * 2**30},
    },
    "warnings": ["layer2 swaps take 61 % of the activation memory for 4 % of the MACs [all of them]"],
}


def run(path: Path, spec: Any, *arguments: str) -> Result:
    path.write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return CliRunner().invoke(main, ["plan", str(path), *arguments])


def lines(plan: dict[str, Any]) -> list[str]:
    text = io.StringIO()
    plan_table.show(Console(file=text, width=120), plan)
    return text.getvalue().splitlines()


def test_each_layer_is_a_row_before_and_after_and_the_whole_and_the_warnings_follow() -> None:
    shown = [" ".join(line.split()) for line in lines(PLAN)]
    assert shown == [
        "layer mixer params MACs kept for backward",
        "layer1.0.conv2 - 36.9 k 116 M 6.12 MiB",
        "layer2.0.conv2 acmix 36.9 k -> 23 k 116 M 6.12 MiB -> 2 GiB",
        "params MACs peak of a step",
        "whole model 13.7 M -> 10.5 M 2.4 G 1 GiB -> 3 GiB",
        "- layer2.0.conv2: window 7 covers the whole 4x4 map from everywhere: attention is global",
        "- layer2 swaps take 61 % of the activation memory for 4 % of the MACs [all of them]",
    ]


@pytest.mark.parametrize(
    ("value", "figure", "shown"),
    [
        (0, "params", "0"),
        (999, "params", "999"),
        (1000, "macs", "1 k"),
        (999_999, "macs", "1 M"),
        (25_557_032, "params", "25.6 M"),
        (4_089_000_000, "macs", "4.09 G"),
        (1023, "activation_bytes", "0.999 KiB"),
        (8 * 2**20, "activation_bytes", "8 MiB"),
        (3 * 2**60, "peak_memory_bytes", "3.07e+03 PiB"),
    ],
)
def test_figures_have_three_digits_and_a_unit(value: int, figure: str, shown: str) -> None:
    assert plan_table.shown(value, figure) == shown


def test_the_command_prints_the_librarys_figures(tmp_path: Path) -> None:
    done = run(tmp_path / "job.json", SPEC, "--num-classes", "10", "--image-px", "16", "--json")
    assert done.exit_code == 0, done.output
    planned = json.loads(done.stdout)
    assert [layer["layer"] for layer in planned["layers"] if layer["mixer"]] == ["layer4.0.conv2"]
    assert "layer4.0.conv2" in "\n".join(lines(planned))


def test_problems_are_sentences_and_the_exit_status_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "job.json", SPEC)
    assert done.exit_code == 1
    assert done.stderr.startswith("acmix: /dataset: dataset is required")
    done = run(tmp_path / "job.json", "{")
    assert done.exit_code == 1
    assert "cannot be read as JSON" in done.stderr
    assert "Traceback" not in done.stderr
