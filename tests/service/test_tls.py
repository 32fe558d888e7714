"""TLS to all three stores, by an authority of one's own: whoever cannot be verified is not spoken to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as BrokerAway
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import OperationalError

from service.store.artifacts import Artifacts
from service.store.database import connect
from service.store.errors import ArtifactsAway
from service.store.queue import Queue
from tests.seaweed import BUCKET, SeaweedFS
from tests.tls import tls_before, unix
from tests.worker.receivers import certificates


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem is valid for 127.0.0.1 and not for localhost; authority.pem vouches for it, other.pem does not."""
    folder = certificates(tmp_path_factory.mktemp("tls") / "certificates")
    other = certificates(tmp_path_factory.mktemp("tls") / "others")
    (folder / "other.pem").write_bytes((other / "authority.pem").read_bytes())
    return folder


@pytest.fixture
def postgresql(migrated_postgresql: str, tls: Path) -> Iterator[URL]:
    """PostgreSQL over TCP, behind TLS."""
    url = make_url(migrated_postgresql)
    with tls_before(unix(f"{url.query['host']}/.s.PGSQL.5432"), tls, asked_for=True) as port:
        yield url.set(host="127.0.0.1", port=port, query={})


@pytest.fixture
def valkey(valkey_url: str, tls: Path) -> Iterator[str]:
    with tls_before(unix(valkey_url.removeprefix("redis+socket://")), tls) as port:
        yield f"rediss://127.0.0.1:{port}/0"


def test_postgresql_is_verified_by_the_parameters_of_its_url(postgresql: URL, tls: Path) -> None:
    verified = {"sslmode": "verify-full", "sslrootcert": str(tls / "authority.pem")}
    engine = connect(postgresql.set(query=verified).render_as_string(hide_password=False))
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "30s"
    engine.dispose()


@pytest.mark.parametrize(
    ("authority", "host", "fault"),
    [
        ("other.pem", "127.0.0.1", "certificate verify failed"),
        ("authority.pem", "localhost", "does not match host name"),
    ],
)
def test_a_postgresql_that_is_another_is_refused(
    postgresql: URL, tls: Path, authority: str, host: str, fault: str
) -> None:
    verified = {"sslmode": "verify-full", "sslrootcert": str(tls / authority)}
    engine = connect(postgresql.set(host=host, query=verified).render_as_string(hide_password=False))
    with pytest.raises(OperationalError, match=fault):
        engine.connect()
    engine.dispose()


def test_the_broker_is_verified_by_the_parameters_of_its_url(valkey: str, tls: Path) -> None:
    """By both clients: Celery's, which nudges, and the one that asks whether it is there."""
    queue = Queue(f"{valkey}?ssl_ca_certs={tls / 'authority.pem'}")
    queue.ping()
    assert queue.nudge_train()
    queue.close()


@pytest.mark.parametrize("parameters", ["", "?ssl_ca_certs={}/other.pem"])
def test_a_broker_that_nobody_vouches_for_is_refused(valkey: str, tls: Path, parameters: str) -> None:
    """Also where the URL says nothing of certificates: Celery by itself would then take any."""
    queue = Queue(valkey + parameters.format(tls))
    with pytest.raises(BrokerAway, match="certificate verify failed"):
        queue.ping()
    assert not queue.nudge_train()
    queue.close()


def test_a_bucket_is_verified_by_an_authority_of_ones_own(short_folder: Path, tls: Path) -> None:
    server = SeaweedFS(short_folder / "s3-tls", certificates=tls)
    server.start()
    try:
        server.artifacts("tls").ping()
        with pytest.raises(ArtifactsAway):
            Artifacts(f"s3://{BUCKET}/tls", server.s3(AWS_CA_BUNDLE=str(tls / "other.pem"))).ping()
    finally:
        server.stop()
