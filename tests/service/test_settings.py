import math
import ssl
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kombu import Connection
from redis import Redis
from sqlalchemy import make_url

from service import settings
from service.settings import SettingInvalid


def test_without_a_variable_everything_lies_in_the_data_folder(tmp_path: Path) -> None:
    found = settings.load({"ACMIX_DATA": str(tmp_path)})
    assert found.database_url == f"sqlite:///{tmp_path}/acmix.db"
    assert found.artifacts_url == f"file://{tmp_path}/artifacts"
    assert found.data_root == tmp_path / "datasets"
    assert (found.lease_seconds, found.cancel_grace_seconds, found.stop_grace_seconds) == (60, 5, 8)
    assert (found.max_failures, found.max_losses, found.max_body_bytes) == (2, 5, 4 * 2**20)
    assert found.max_weights_bytes == 4 * 2**30
    assert (found.max_dataset_bytes, found.data_cache_bytes) == (200 * 2**30, 100 * 2**30)


def test_the_data_folder_is_absolute() -> None:
    assert settings.load({}).data_folder == Path.cwd() / "data"


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert settings.load({"LEASE_SECONDS": "", "DATABASE_URL": ""}) == settings.load({})


def test_variables_are_read() -> None:
    found = settings.load({"LEASE_SECONDS": "3", "DATABASE_URL": "postgresql://db/acmix", "MAX_LOSSES": "7"})
    assert (found.lease_seconds, found.database_url, found.max_losses) == (3.0, "postgresql://db/acmix", 7)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_wrong_number_names_variable_value_and_what_would_do(value: str) -> None:
    with pytest.raises(SettingInvalid, match=f"LEASE_SECONDS='{value}' will not do; a number from 1 to 3600 would"):
        settings.load({"LEASE_SECONDS": value})


def test_a_count_must_be_whole() -> None:
    with pytest.raises(SettingInvalid, match=r"MAX_LOSSES='2\.5' will not do; a whole number"):
        settings.load({"MAX_LOSSES": "2.5"})


@pytest.mark.parametrize("variable", ["DATABASE_URL", "BROKER_URL", "ARTIFACTS_URL"])
def test_a_wrong_scheme_names_the_variable_and_hides_the_password(variable: str) -> None:
    with pytest.raises(SettingInvalid, match=f"{variable} has the scheme 'amqp'") as raised:
        settings.load({variable: "amqp://user:secret@host"})
    assert "secret" not in str(raised.value)


def test_networks_are_separated_by_commas() -> None:
    found = settings.load({"WEBHOOK_NETWORKS": "10.1.0.0/16, fd00::/8,192.168.1.7"}).webhook_networks
    assert found == (ip_network("10.1.0.0/16"), ip_network("fd00::/8"), ip_network("192.168.1.7/32"))
    assert settings.load({"WEBHOOK_NETWORKS": ""}).webhook_networks == ()


@pytest.mark.parametrize("value", ["10.1.0.1/16", "rack-7", "10.0.0.0/8;fd00::/8"])
def test_what_is_no_network_is_refused_with_what_would_do(value: str) -> None:
    with pytest.raises(SettingInvalid, match=r"WEBHOOK_NETWORKS will not do: .*10\.1\.0\.0/16,fd00:1::/32, would"):
        settings.load({"WEBHOOK_NETWORKS": value})


def test_labels_are_separated_by_commas_and_there_are_none_by_default() -> None:
    assert settings.load({"WORKER_LABELS": " nvme, rack 3,,"}).worker_labels == ("nvme", "rack 3")
    assert settings.load({}).worker_labels == ()


@pytest.mark.parametrize("value", ["a\tb", "ok," + "x" * 201])
def test_a_label_that_no_spec_could_ask_for_is_refused(value: str) -> None:
    with pytest.raises(SettingInvalid, match=r"WORKER_LABELS=.* will not do; labels of at most 200 characters"):
        settings.load({"WORKER_LABELS": value})


def test_a_gpu_has_one_slot_unless_shares_are_asked_for() -> None:
    assert [settings.load({"SLOTS_PER_GPU": text}).slots_per_gpu for text in ("", "4")] == [1, 4]
    with pytest.raises(SettingInvalid, match="SLOTS_PER_GPU='0' will not do; a whole number from 1 to 16 would"):
        settings.load({"SLOTS_PER_GPU": "0"})


def test_a_file_of_certificates_must_hold_some(tmp_path: Path) -> None:
    assert settings.load({}).webhook_ca_file is None
    own = ssl.create_default_context().get_ca_certs(binary_form=True)[0]
    (tmp_path / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(own))
    assert settings.load({"WEBHOOK_CA_FILE": str(tmp_path / "ca.pem")}).webhook_ca_file == tmp_path / "ca.pem"
    (tmp_path / "empty.pem").touch()
    for wrong in (tmp_path / "none.pem", tmp_path / "empty.pem", tmp_path):
        with pytest.raises(SettingInvalid, match=r"WEBHOOK_CA_FILE='.*' will not do; a file of certificates in PEM"):
            settings.load({"WEBHOOK_CA_FILE": str(wrong)})


# Secrets


@pytest.fixture
def secret(tmp_path: Path) -> Callable[[str | bytes], str]:
    """A file with this content, which nobody else may read; its path."""

    def write(content: str | bytes) -> str:
        file = tmp_path / "secret"
        file.touch(mode=0o600)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    return write


def test_a_password_goes_into_the_url_that_has_none(secret: Callable[[str], str]) -> None:
    file = secret("p@ss:/?#[%] ü\n")
    given = {
        "DATABASE_URL": "postgresql://acmix@db:5432/acmix?sslmode=require",
        "DATABASE_PASSWORD_FILE": file,
        "BROKER_URL": "redis://cache:6379/0",
        "BROKER_PASSWORD": "p@ss:/?#[%] ü",
    }
    found = settings.load(given)
    database = make_url(found.database_url)
    assert (database.username, database.password, database.host) == ("acmix", "p@ss:/?#[%] ü", "db")
    assert database.query == {"sslmode": "require"}
    broker = Redis.from_url(found.broker_url).connection_pool.connection_kwargs
    assert (broker["password"], broker["host"], broker["db"]) == ("p@ss:/?#[%] ü", "cache", 0)
    assert Connection(found.broker_url).password == "p@ss:/?#[%] ü"


@pytest.mark.parametrize("url", ["postgresql://acmix:own@db/acmix", "sqlite:////data/acmix.db"])
def test_a_url_with_a_password_or_without_a_server_stays_as_it_is(url: str) -> None:
    assert settings.load({"DATABASE_URL": url, "DATABASE_PASSWORD": "another"}).database_url == url


def test_a_url_of_a_socket_has_its_user_and_password(secret: Callable[[str], str]) -> None:
    found = settings.load(
        {"DATABASE_URL": "postgresql://acmix@/acmix?host=/run", "DATABASE_PASSWORD_FILE": secret("x")}
    )
    assert found.database_url == "postgresql://acmix:x@/acmix?host=/run"


@pytest.mark.parametrize("variable", settings.SECRETS)
def test_every_secret_may_lie_in_a_file(variable: str, secret: Callable[[str], str]) -> None:
    opened = settings._with_secrets({f"{variable}_FILE": secret("hidden\r\n"), "OTHER": "stays"})
    assert opened == {variable: "hidden", "OTHER": "stays"}
    assert settings._with_secrets({f"{variable}_FILE": ""}) == {}


def test_the_keys_of_client_and_deployment_may_lie_in_files(secret: Callable[[str], str]) -> None:
    file = secret("acmix_1\n")
    assert settings.api_key({"ACMIX_API_KEY_FILE": file}) == "acmix_1"
    assert settings.admin_key({"ACMIX_ADMIN_KEY_FILE": file}) == "acmix_1"
    assert settings.api_key({}) is settings.admin_key({}) is None


@pytest.mark.parametrize("content", ["", "\n", "two\nlines\n", b"\xff\xfe"])
def test_a_file_that_is_no_secret_is_named_with_its_variable_and_not_shown(
    content: str | bytes, secret: Callable[[str | bytes], str]
) -> None:
    file = secret(content)
    with pytest.raises(SettingInvalid, match=f"DATABASE_PASSWORD_FILE='{file}' ") as raised:
        settings.load({"DATABASE_PASSWORD_FILE": file})
    assert "lines\n" not in str(raised.value)


def test_a_secret_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(SettingInvalid, match=f"BROKER_PASSWORD_FILE='{wrong}' cannot be read: "):
            settings.load({"BROKER_PASSWORD_FILE": str(wrong)})


def test_a_secret_comes_from_one_place(secret: Callable[[str], str]) -> None:
    with pytest.raises(SettingInvalid, match="DATABASE_PASSWORD and DATABASE_PASSWORD_FILE are both set"):
        settings.load({"DATABASE_PASSWORD": "x", "DATABASE_PASSWORD_FILE": secret("x")})


def test_a_secret_that_everybody_can_reach_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        shut = folder / "shut"
        given = {"DATABASE_PASSWORD_FILE": str(shut)}
        shut.write_text("hidden")
        shut.chmod(0o600)
        folder.chmod(0o755)
        settings.load(given)
        assert caplog.text == ""
        shut.chmod(0o444)
        settings.load(given)
        assert f"every user of this machine can reach {shut}, which DATABASE_PASSWORD_FILE names" in caplog.text
        assert "hidden" not in caplog.text
        caplog.clear()
        folder.chmod(0o700)
        settings.load(given)
        assert caplog.text == "", "its folder lets nobody in"


def test_the_token_for_metrics_is_set_or_lies_in_a_file(tmp_path: Path) -> None:
    token = "t" * 16
    (tmp_path / "token").write_text(f"{token}\n")
    assert settings.load({}).metrics_token is None
    assert settings.load({"METRICS_TOKEN": token}).metrics_token == token
    found = settings.load({"METRICS_TOKEN_FILE": str(tmp_path / "token")})
    assert found.metrics_token == token
    assert token not in repr(found)
    (tmp_path / "empty").touch()
    for wrong in ("t" * 15, "two words, and long"):
        with pytest.raises(SettingInvalid, match="METRICS_TOKEN will not do; 16 characters or more"):
            settings.load({"METRICS_TOKEN": wrong})
    for file in ("empty", "none"):
        with pytest.raises(SettingInvalid, match="METRICS_TOKEN"):
            settings.load({"METRICS_TOKEN_FILE": str(tmp_path / file)})


def test_vitals_have_no_port_unless_one_is_set() -> None:
    found = settings.load({})
    assert (found.metrics_port, found.metrics_host) == (None, "127.0.0.1")
    found = settings.load({"METRICS_PORT": "9400", "METRICS_HOST": "0.0.0.0"})
    assert (found.metrics_port, found.metrics_host) == (9400, "0.0.0.0")


def test_a_bucket_is_reached_by_the_variables_that_all_tools_read() -> None:
    found = settings.load(
        {
            "ARTIFACTS_URL": "s3://models/acmix",
            "AWS_ENDPOINT_URL": "https://minio.example.com:9000/",
            "ARTIFACTS_PUBLIC_ENDPOINT": "https://files.example.com",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "a secret",
        }
    )
    assert found.artifacts_url == "s3://models/acmix"
    assert (found.s3.endpoint, found.s3.public_endpoint) == (
        "https://minio.example.com:9000",
        "https://files.example.com",
    )
    assert (found.s3.region, found.s3.access_key_id, found.s3.secret_access_key) == ("eu-central-1", "key", "a secret")
    assert "a secret" not in repr(found)
    assert settings.load({}).s3 == settings.S3()


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://Models", "s3://models?region=eu", "s3://a:b@models"])
def test_a_url_of_s3_must_name_a_bucket(url: str) -> None:
    with pytest.raises(SettingInvalid, match="ARTIFACTS_URL names no bucket; s3://BUCKET or s3://BUCKET/PREFIX would"):
        settings.load({"ARTIFACTS_URL": url})


def test_a_key_without_its_secret_is_refused() -> None:
    with pytest.raises(SettingInvalid, match="one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is not set"):
        settings.load({"AWS_ACCESS_KEY_ID": "key"})


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "ARTIFACTS_PUBLIC_ENDPOINT"])
@pytest.mark.parametrize(
    "value", ["minio:9000", "ftp://minio", "https://", "https://minio/bucket", "https://a:b@minio"]
)
def test_an_endpoint_is_a_url_without_a_path(variable: str, value: str) -> None:
    with pytest.raises(SettingInvalid, match=f"{variable} will not do; https://HOST"):
        settings.load({variable: value})


def test_connections_and_ages_are_bounded() -> None:
    assert (settings.load({}).database_pool, settings.load({"DATABASE_POOL": "3"}).database_pool) == (10, 3)
    assert settings.load({}).keep_events_days == math.inf
    assert settings.load({"KEEP_EVENTS_DAYS": "30", "KEEP_SERIES_DAYS": "0.5"}).keep_series_days == 0.5
    for wrong in ({"DATABASE_POOL": "0"}, {"KEEP_EVENTS_DAYS": "-1"}, {"KEEP_SERIES_DAYS": "nan"}):
        with pytest.raises(SettingInvalid):
            settings.load(wrong)
