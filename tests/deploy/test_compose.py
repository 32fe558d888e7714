"""What docker-compose.yml says, as Compose itself reads it."""

import ast
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service import settings
from service.store.tenants import KEY
from tests.deploy.composed import ONE_SHOTS, ROOT, compose, config

WORKER_ONLY = "docker/compose.worker.yml"
OF_CLIENTS = {"ACMIX_API_KEY_FILE"}  # no process of the service reads it
SET_WITHIN = {"PROMETHEUS_MULTIPROC_DIR"}  # by the API for its own children
STORES = ("postgres", "redis", "s3")
ELSEWHERE = {  # a second node's
    "DATABASE_URL": "postgresql://acmix@10.0.0.1:5432/acmix",
    "BROKER_URL": "redis://10.0.0.1:6379/0",
    "ARTIFACTS_URL": "s3://acmix",
}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    make_secrets(folder)
    return folder


@pytest.fixture(scope="module")
def environment(secrets: Path) -> dict[str, str]:
    return {"SECRETS": str(secrets)}


@pytest.fixture(scope="module")
def services(environment: dict[str, str]) -> dict[str, Any]:
    """All of them, of every profile."""
    return dict(config("*", environment=environment)["services"])


@pytest.fixture(scope="module")
def lasting(services: dict[str, Any]) -> dict[str, Any]:
    """Those that are to stay up."""
    return {name: service for name, service in services.items() if name not in ONE_SHOTS}


def make_secrets(folder: Path) -> str:
    command = ["sh", str(ROOT / "docker" / "secrets.sh"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# How the services are run


def test_every_service_is_shut_in(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert "/tmp" in service["tmpfs"], name


def test_whatever_stays_up_tells_its_health_and_comes_back(lasting: dict[str, Any]) -> None:
    for name, service in lasting.items():
        assert service["healthcheck"]["test"][0] == "CMD-SHELL", name
        assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"]), name
        assert service["restart"] == "unless-stopped", name


def test_images_are_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+", service["image"]), name


def test_only_this_machine_reaches_what_is_published(environment: dict[str, str], services: dict[str, Any]) -> None:
    published = {(name, port["host_ip"]) for name, service in services.items() for port in service.get("ports", ())}
    assert published == {("api", "127.0.0.1"), ("prometheus", "127.0.0.1"), ("grafana", "127.0.0.1")}
    chosen = config(environment={**environment, "ACMIX_BIND": "10.0.0.1", "ACMIX_PORT": "443"})["services"]["api"]
    assert [(port["host_ip"], port["published"]) for port in chosen["ports"]] == [("10.0.0.1", "443")]


def test_stores_reach_nothing_outside(environment: dict[str, str], services: dict[str, Any]) -> None:
    assert config(environment=environment)["networks"]["inside"]["internal"] is True
    for name in (*STORES, "migrate"):
        assert set(services[name]["networks"]) == {"inside"}, name


def test_a_worker_has_the_time_that_its_runs_need_to_save(services: dict[str, Any]) -> None:
    for name in ("worker", "worker-cpu"):
        worker = services[name]
        grace = re.fullmatch(r"(?:(\d+)m)?(\d+)s", worker["stop_grace_period"])
        assert grace is not None
        assert 60 * int(grace[1] or 0) + int(grace[2]) > int(worker["environment"]["STOP_GRACE_SECONDS"]) == 150
        assert worker["init"] is True
        assert int(worker["shm_size"]) >= 2**32


def test_the_gpu_worker_has_all_gpus_and_the_other_none(services: dict[str, Any]) -> None:
    [reserved] = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (reserved["driver"], reserved["count"], reserved["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert "deploy" not in services["worker-cpu"]
    assert services["housekeeper"]["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"


@pytest.mark.parametrize(("profile", "worker"), [("gpu", "worker"), ("cpu", "worker-cpu")])
def test_a_profile_starts_its_own_worker_whatever_is_the_default(
    environment: dict[str, str], profile: str, worker: str
) -> None:
    names = {"api", "housekeeper", "migrate", "postgres", "redis", worker}
    for default in ("gpu", "cpu"):
        assert set(config(profile, environment={**environment, "COMPOSE_PROFILES": default})["services"]) == names
    assert set(config(environment={**environment, "COMPOSE_PROFILES": profile})["services"]) == names


def test_nobody_begins_before_the_tables_are_there(services: dict[str, Any]) -> None:
    for name in ("api", "worker", "worker-cpu", "housekeeper"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully", name
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_files_are_shared_and_data_sets_only_read(services: dict[str, Any]) -> None:
    for name in ("api", "worker", "worker-cpu", "housekeeper"):
        mounts = {mount["target"]: mount for mount in services[name]["volumes"]}
        assert mounts["/artifacts"]["source"] == "artifacts", name
        assert mounts["/datasets"]["read_only"] is True, name
        assert services[name]["environment"]["ARTIFACTS_URL"] == "file:///artifacts", name
    own = [services[name]["volumes"][0]["source"] for name in ("api", "worker", "housekeeper")]
    assert own == ["api-data", "worker-data", "housekeeper-data"]


def test_the_broker_drops_nothing_and_forgets_nothing() -> None:
    script = (ROOT / "docker" / "redis.sh").read_text()
    assert "--appendonly yes" in script
    assert "--maxmemory-policy noeviction" in script


# Secrets


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_what_compose_prints_holds_no_secret(environment: dict[str, str], secrets: Path, form: str) -> None:
    printed = compose("--profile", "*", "config", "--format", form, environment=environment)
    assert str(secrets) in printed
    for file in secrets.iterdir():
        assert file.read_text().strip() not in printed, file.name


def test_every_secret_is_made_and_only_they_are(environment: dict[str, str], secrets: Path) -> None:
    named = config("*", environment=environment)["secrets"]
    assert {Path(secret["file"]) for secret in named.values()} == set(secrets.iterdir())


def test_secrets_are_made_once_and_reached_by_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "made here"
    make_secrets(folder)
    before = {file.name: file.read_text() for file in folder.iterdir()}
    (folder / "broker_password").unlink()
    told = make_secrets(folder)
    after = {file.name: file.read_text() for file in folder.iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["broker_password"]
    assert told.count("is there and stays") == len(before) - 1
    assert folder.stat().st_mode & 0o777 == 0o700
    # users in containers have numbers of their own, and see the file alone
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o444}


def test_secrets_are_long_and_of_their_form(secrets: Path, tmp_path: Path) -> None:
    make_secrets(tmp_path)
    text = {file.name: file.read_text().rstrip("\n") for file in secrets.iterdir()}
    assert KEY.fullmatch(text["admin_key"])
    for name in ("database_password", "broker_password", "metrics_token", "s3_secret_key"):
        assert re.fullmatch(r"[0-9A-Za-z_-]{43}", text[name]), name
    [identity] = json.loads(text["s3_config"])["identities"]
    assert identity["credentials"] == [{"accessKey": text["s3_access_key"], "secretKey": text["s3_secret_key"]}]
    assert not any((tmp_path / name).read_text().strip() == made for name, made in text.items())


def test_only_who_needs_a_secret_has_it(services: dict[str, Any]) -> None:
    holders: dict[str, set[str]] = {}
    for name, service in services.items():
        for secret in service["secrets"]:
            holders.setdefault(secret["source"], set()).add(name)
    assert holders["admin_key"] == {"migrate"}
    assert holders["grafana_password"] == {"grafana"}
    assert holders["s3_config"] == {"s3"}
    assert "postgres" in holders["database_password"]
    assert "redis" in holders["broker_password"]
    assert not holders["database_password"] & {"redis", "s3", "prometheus", "grafana"}


# Variables


def explained() -> set[str]:
    """Those that .env.example sets, or shows the default of."""
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def read_by_settings() -> set[str]:
    """Every name of a variable in settings.py; a secret by the variable of its file."""
    tree = ast.parse(Path(settings.__file__).read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = {word for word in words if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", word)}
    return {f"{name}_FILE" if name in settings.SECRETS else name for name in names - SET_WITHIN}


def interpolated() -> set[str]:
    return set(re.findall(r"\$\{([A-Z_0-9]+)", (ROOT / "docker-compose.yml").read_text()))


def test_every_variable_is_explained_and_no_other(services: dict[str, Any]) -> None:
    handed_on = set(services["api"]["environment"]) | set(services["migrate"]["environment"])
    assert read_by_settings() | interpolated() | {"COMPOSE_PROFILES"} <= explained()
    assert explained() <= read_by_settings() | interpolated() | handed_on | {"COMPOSE_PROFILES"}


def test_every_setting_reaches_the_processes(services: dict[str, Any]) -> None:
    wanted = read_by_settings() - OF_CLIENTS
    assert wanted <= set(services["migrate"]["environment"])
    for name in ("api", "worker", "worker-cpu", "housekeeper"):
        assert wanted - {"ACMIX_ADMIN_KEY_FILE"} <= set(services[name]["environment"]), name


def test_defaults_that_are_shown_are_those_of_the_settings() -> None:
    shown = dict(re.findall(r"^#([A-Z_]+)=(\S+)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    ours = {name: value for name, value in shown.items() if name in read_by_settings()}
    of_compose = {"DATABASE_URL", "BROKER_URL", "ARTIFACTS_URL", "STOP_GRACE_SECONDS", "DATA_ROOT", "ACMIX_DATA"}
    of_compose |= {name for name in ours if name.startswith(("AWS_", "METRICS_", "LOG_")) or name.endswith("_FILE")}
    plain = {name: value for name, value in ours.items() if name not in of_compose}
    assert plain
    assert settings.load(plain) == settings.load({})


def test_defaults_that_are_shown_are_those_of_compose(environment: dict[str, str]) -> None:
    shown = re.findall(r"^#([A-Z_0-9]+)=(\S+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    given = {name: value for name, value in shown if name in interpolated() and name != "SECRETS"}
    assert config("*", environment={**environment, **given}) == config("*", environment=environment)


def test_a_variable_that_is_set_is_handed_on(environment: dict[str, str]) -> None:
    chosen = config("cpu", environment={**environment, "LEASE_SECONDS": "30"})["services"]
    for name in ("api", "worker-cpu", "housekeeper", "migrate"):
        assert chosen[name]["environment"]["LEASE_SECONDS"] == "30", name


# A second node


def test_a_second_node_has_a_worker_alone_and_three_urls(environment: Mapping[str, str]) -> None:
    found = config("gpu", environment={**environment, **ELSEWHERE}, files=[WORKER_ONLY])["services"]
    assert set(found) == {"worker"}
    for name, value in ELSEWHERE.items():
        assert found["worker"]["environment"][name] == value
    assert "depends_on" not in found["worker"]
    assert found["worker"]["read_only"] is True


def test_a_second_node_asks_for_its_urls(environment: Mapping[str, str]) -> None:
    with pytest.raises(AssertionError, match="DATABASE_URL"):
        config("gpu", environment=environment, files=[WORKER_ONLY])


def test_the_stores_are_shared_at_a_private_address_alone(environment: dict[str, str]) -> None:
    files = ["docker-compose.yml", "docker/compose.shared.yml"]
    found = config("s3", environment={**environment, "SHARED_BIND": "10.0.0.1"}, files=files)["services"]
    for name, port in (("postgres", 5432), ("redis", 6379), ("s3", 8333)):
        [shared] = found[name]["ports"]
        assert (shared["host_ip"], shared["target"], shared["published"]) == ("10.0.0.1", port, str(port))
        assert found[name]["read_only"] is True
    with pytest.raises(AssertionError, match="SHARED_BIND"):
        config("s3", environment=environment, files=files)
