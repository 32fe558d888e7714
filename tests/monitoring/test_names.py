"""Every figure that is told is documented, and every one that is asked for is told."""

import json
import re
from dataclasses import fields
from pathlib import Path

import yaml
from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric

from service.store.census import Census
from service.store.vitals import REGISTRY
from service.vitals import _OfDatabase
from tests.monitoring.promtool import MONITORING, ROOT, expressions_of_the_dashboard, needs_promtool, promtool
from tests.monitoring.test_alerts import ALERTS
from tests.worker.nvml import Nvml
from worker import vitals
from worker.driver import Driver
from worker.gpus import Gpus

DOCS = (ROOT / "docs" / "monitoring.md").read_text()
NAME = re.compile(r"\b(?:acmix|process)_[a-z_]+")
NUMBERS = {each.name: 1 for each in fields(Census) if each.type in (int, float)}
CENSUS = Census(jobs={("a", "queued"): 1}, unanswered={"plans": 1}, gpu_hours={"a": 1.0}, **NUMBERS)
assert vitals  # imported for what it registers


def told() -> dict[str, Metric]:
    """All that any process tells, by the name that stands in the documentation."""
    of_gpus = Gpus(Driver(Nvml())).describe()
    families = [
        *REGISTRY.collect(),
        *of_gpus,
        *_OfDatabase(CENSUS).collect(),
        *ProcessCollector(registry=None).collect(),
    ]
    return {f"{each.name}_total" if each.type == "counter" else each.name: each for each in families}


def samples() -> set[str]:
    """Names as Prometheus stores them."""
    return {
        name + suffix
        for name, family in told().items()
        for suffix in (("_bucket", "_sum", "_count") if family.type == "histogram" else ("",))
    }


def test_every_figure_is_documented_and_every_documented_one_is_told() -> None:
    rows = [line for line in DOCS.splitlines() if re.match(r"\| `(acmix|process)_", line)]
    documented = [name for row in rows for name in NAME.findall(row.split("|")[1])]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(told())


def test_a_histogram_is_documented_as_one() -> None:
    for name, family in told().items():
        [row] = [line for line in DOCS.splitlines() if re.match(rf"\|.*`{name}`.*\|", line)]
        assert ("histogram:" in row) == (family.type == "histogram"), name


def test_names_say_their_unit_and_whether_they_only_rise() -> None:
    for name, family in told().items():
        assert re.fullmatch(r"(acmix|process)_[a-z_]+", name)
        if family.type == "histogram":
            assert name.endswith("_seconds"), name
        assert not re.search(r"_(ms|mb|percent|minutes)$", name), name


def test_alerts_dashboard_and_runbooks_ask_for_what_is_told() -> None:
    asked = {"alerts": " ".join(rule["expr"] for rule in ALERTS), "runbooks": DOCS.partition("## Runbooks")[2]}
    asked |= expressions_of_the_dashboard()
    for where, text in asked.items():
        assert set(NAME.findall(text)) <= samples(), where


def test_every_alert_links_to_its_runbook_and_every_runbook_has_its_alert() -> None:
    headings = re.findall(r"^### (\w+)$", DOCS, flags=re.MULTILINE)
    assert headings == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook_url"] == f"docs/monitoring.md#{rule['alert'].lower()}"


@needs_promtool
def test_every_panel_of_the_dashboard_asks_what_prometheus_understands(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{index}", "expr": expr} for index, expr in enumerate(expressions_of_the_dashboard().values())
    ]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", tmp_path / "panels.yml")


def test_the_dashboard_is_whole() -> None:
    board = json.loads((MONITORING / "grafana" / "dashboards" / "acmix.json").read_text())
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Jobs and queue", "API", "Workers and GPUs", "Training", "Store and housekeeper"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    provisioned = MONITORING / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioned / "datasources" / "prometheus.yml").read_text())["datasources"]
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == source["uid"]
            assert panel["targets"], panel["title"]
    assert yaml.safe_load((provisioned / "dashboards" / "acmix.yml").read_text())["providers"]
