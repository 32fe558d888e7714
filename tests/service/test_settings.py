import ssl
from ipaddress import ip_network
from pathlib import Path

import pytest

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


def test_a_file_of_certificates_must_hold_some(tmp_path: Path) -> None:
    assert settings.load({}).webhook_ca_file is None
    own = ssl.create_default_context().get_ca_certs(binary_form=True)[0]
    (tmp_path / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(own))
    assert settings.load({"WEBHOOK_CA_FILE": str(tmp_path / "ca.pem")}).webhook_ca_file == tmp_path / "ca.pem"
    (tmp_path / "empty.pem").touch()
    for wrong in (tmp_path / "none.pem", tmp_path / "empty.pem", tmp_path):
        with pytest.raises(SettingInvalid, match=r"WEBHOOK_CA_FILE='.*' will not do; a file of certificates in PEM"):
            settings.load({"WEBHOOK_CA_FILE": str(wrong)})


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
