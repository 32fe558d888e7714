"""Each alert, made to fire and kept from firing, by Prometheus' own tester of rules."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.promtool import MONITORING, needs_promtool, promtool

RULES = MONITORING / "alerts.yml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
Series = Mapping[str, str]  # values as promtool writes them: a start, what is added each minute, how often

REQUEST = "acmix_http_request_seconds_bucket"
JOB = '{method="GET", route="/v1/jobs/{job_id}", le="%s"}'
DISK = '{job="acmix-worker", instance="w:9400"}'


@dataclass(frozen=True)
class Case:
    """What is told when all is well and when it is not, and after how many minutes the latter is called out."""

    well: Series
    ill: Series
    minutes: int


CASES = {
    "AcmixApiDown": Case({'up{job="acmix-api"}': "1x60"}, {'up{job="acmix-api"}': "0x60"}, 3),
    "AcmixDatabaseDown": Case({"acmix_database_up": "1x60"}, {"acmix_database_up": "0x60"}, 2),
    "AcmixErrorRate": Case(
        {
            'acmix_http_requests_total{route="/v1/jobs", status="200"}': "0+100x60",
            'acmix_http_requests_total{route="/v1/jobs", status="500"}': "0+2x60",
            'acmix_http_requests_total{route="/readyz", status="503"}': "0+60x60",
        },
        {
            'acmix_http_requests_total{route="/v1/jobs", status="200"}': "0+100x60",
            'acmix_http_requests_total{route="/v1/jobs", status="503"}': "0+10x60",
        },
        12,
    ),
    "AcmixSlow": Case(
        {
            REQUEST + JOB % "0.5": "0+100x60",
            REQUEST + JOB % "+Inf": "0+101x60",
            REQUEST + '{route="/v1/weights", le="0.5"}': "0+0x60",
            REQUEST + '{route="/v1/weights", le="+Inf"}': "0+100x60",
        },
        {REQUEST + JOB % "0.5": "0+50x60", REQUEST + JOB % "2.5": "0+100x60", REQUEST + JOB % "+Inf": "0+100x60"},
        20,
    ),
    "AcmixHousekeeperSilent": Case(
        {"acmix_housekeeping_last_round_timestamp_seconds": "0+60x60"},
        {"acmix_housekeeping_last_round_timestamp_seconds": "0+60x5 300x60"},
        12,
    ),
    "AcmixTargetDown": Case({'up{job="acmix-worker"}': "1x60"}, {'up{job="acmix-worker"}': "0x60"}, 6),
    "AcmixNoWorkerAlive": Case(
        {"acmix_workers_alive": "2 1 0x60", "acmix_workers_drained": "0 0 1x60", "acmix_workers_lost": "0x60"},
        {"acmix_workers_alive": "2 1 0x60", "acmix_workers_drained": "0 1x60", "acmix_workers_lost": "0 0 1x15 0x60"},
        6,
    ),
    "AcmixWorkerLost": Case({"acmix_workers_lost": "0x60"}, {"acmix_workers_lost": "0 1x60"}, 3),
    "AcmixQueueStuck": Case(
        {"acmix_queue_oldest_due_seconds": "4000x60", "acmix_queue_oldest_fitting_seconds": "0 0 4000 0x60"},
        {"acmix_queue_oldest_due_seconds": "4000x60", "acmix_queue_oldest_fitting_seconds": "400x60"},
        7,
    ),
    "AcmixQueueLong": Case(
        {"acmix_queue_oldest_due_seconds": "20000x60", "acmix_slots": "0x60"},
        {
            "acmix_queue_oldest_due_seconds": "20000x60",
            "acmix_queue_oldest_fitting_seconds": "0x60",
            "acmix_slots": "2x60",
        },
        17,
    ),
    "AcmixGpuPutAside": Case({"acmix_slots_aside": "0 1x8 0x60"}, {"acmix_slots_aside": "0 1x60"}, 13),
    "AcmixAttemptsFailing": Case(
        {
            'acmix_attempts_ended_total{outcome="succeeded", reason="none"}': "0+1x60",
            'acmix_attempts_ended_total{outcome="failed", reason="diverged"}': "0+1x60",
        },
        {
            'acmix_attempts_ended_total{outcome="succeeded", reason="none"}': "0+1x60",
            'acmix_attempts_ended_total{outcome="lost", reason="worker_lost"}': "0+1x60",
        },
        40,
    ),
    "AcmixLeaseRenewalsFailing": Case(
        {
            'acmix_lease_renewals_total{instance="w:9400", result="ok"}': "0+12x60",
            'acmix_lease_renewals_total{instance="w:9400", result="failed"}': "0+1x60",
        },
        {
            'acmix_lease_renewals_total{instance="w:9400", result="ok"}': "0x60",
            'acmix_lease_renewals_total{instance="w:9400", result="failed"}': "0+12x60",
        },
        5,
    ),
    "AcmixEventsUnrecorded": Case({"acmix_events_unrecorded": "500x60"}, {"acmix_events_unrecorded": "5000x60"}, 6),
    "AcmixDeliveriesDying": Case(
        {'acmix_deliveries_total{outcome="dead"}': "0x60", 'acmix_deliveries_total{outcome="failed"}': "0+9x60"},
        {'acmix_deliveries_total{outcome="dead"}': "0x10 1x50"},
        15,
    ),
    "AcmixDeliveriesLate": Case(
        {"acmix_deliveries_oldest_due_seconds": "60x60"}, {"acmix_deliveries_oldest_due_seconds": "900x60"}, 6
    ),
    "AcmixDiskFilling": Case(
        {"acmix_disk_free_bytes" + DISK: "400-1x60", "acmix_disk_size_bytes" + DISK: "1000x60"},  # a first hour
        {"acmix_disk_free_bytes" + DISK: "900-2x300", "acmix_disk_size_bytes" + DISK: "1000x300"},
        260,
    ),
    "AcmixDiskFull": Case(
        {"acmix_disk_free_bytes" + DISK: "50x60", "acmix_disk_size_bytes" + DISK: "1000x60"},
        {"acmix_disk_free_bytes" + DISK: "20x60", "acmix_disk_size_bytes" + DISK: "1000x60"},
        3,
    ),
}


def test_every_alert_has_a_case_and_says_what_is_wrong_how_bad_and_what_to_do() -> None:
    assert [rule["alert"] for rule in ALERTS] == list(dict.fromkeys(rule["alert"] for rule in ALERTS))
    assert set(CASES) == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


@needs_promtool
def test_the_rules_and_the_configuration_are_right(tmp_path: Path) -> None:
    promtool("check", "rules", RULES)
    token = tmp_path / "token"
    token.touch()
    config = (MONITORING / "prometheus.yml").read_text()
    assert "/run/secrets/metrics_token" in config
    (tmp_path / "prometheus.yml").write_text(config.replace("/run/secrets/metrics_token", str(token)))
    (tmp_path / "alerts.yml").write_text(RULES.read_text())
    promtool("check", "config", tmp_path / "prometheus.yml")


@needs_promtool
@pytest.mark.parametrize("state", ["well", "ill"])
def test_an_alert_fires_when_it_should_and_not_when_all_is_well(state: str, tmp_path: Path) -> None:
    cases = [_as_promtool_has_it(name, case, is_ill=state == "ill") for name, case in CASES.items()]
    file = tmp_path / "alerts_test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}))
    promtool("test", "rules", file)


@needs_promtool
def test_no_alert_fires_where_everything_is_well(tmp_path: Path) -> None:
    series = {name: values for case in CASES.values() for name, values in case.well.items()}
    quiet = {**series, "acmix_queue_oldest_due_seconds": "0x60", "acmix_disk_free_bytes" + DISK: "400x60"}
    firing = {"expr": 'count(ALERTS{alertstate="firing"})', "eval_time": "50m", "exp_samples": []}
    test = {"interval": "1m", "input_series": _input(quiet), "promql_expr_test": [firing]}
    file = tmp_path / "alerts_test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", file)


def _as_promtool_has_it(name: str, case: Case, *, is_ill: bool) -> dict[str, Any]:
    at = f"{case.minutes if is_ill else 50}m"
    fires = {"labels": "{}", "value": 1}
    question = f'count by () (ALERTS{{alertname="{name}", alertstate="firing"}})'
    test = {"expr": question, "eval_time": at, "exp_samples": [fires] if is_ill else []}
    return {"interval": "1m", "input_series": _input(case.ill if is_ill else case.well), "promql_expr_test": [test]}


def _input(series: Series) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series.items()]
