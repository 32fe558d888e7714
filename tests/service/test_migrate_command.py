"""`acmix migrate`: the tables, and the first key, as often as it is run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from service.cli import main
from service.store.database import connect
from service.store.tenants import Tenants
from tests.service.work import at_once

TEXT = "acmix_0123abcd_" + 43 * "k"
Migrate = Callable[[str | None], Result]


@pytest.fixture
def migrate(tmp_path: Path, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Migrate:
    """Runs it with a file of this text, or without."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)

    def run(text: str | None) -> Result:
        if text is not None:
            file = tmp_path / "admin_key"
            file.write_text(f"{text}\n")
            monkeypatch.setenv("ACMIX_ADMIN_KEY_FILE", str(file))
        return CliRunner().invoke(main, ["migrate"])

    return run


@pytest.fixture
def tenants(empty_database_url: str) -> Iterator[Tenants]:
    engine = connect(empty_database_url)
    yield Tenants(engine)
    engine.dispose()


def test_without_a_file_it_brings_the_tables_up_to_date(migrate: Migrate, tenants: Tenants) -> None:
    assert migrate(None).output == "the tables are up to date\n"
    assert not tenants.are_keys_in_use()


def test_the_first_key_is_made_once_and_may_do_everything(migrate: Migrate, tenants: Tenants) -> None:
    assert migrate(TEXT).output == "the tables are up to date\nthe admin key is made\n"
    assert migrate(TEXT).output == "the tables are up to date\nthe admin key is there\n"
    [key] = tenants.all_keys()
    assert (key.tenant, key.scopes, key.prefix) == ("default", ["admin"], "0123abcd")
    assert tenants.caller(TEXT).key.id == key.id


def test_another_text_is_another_key(migrate: Migrate, tenants: Tenants) -> None:
    """A key is changed by putting another text into the file; the one before is good until it is revoked."""
    migrate(TEXT)
    assert "is made" in migrate(TEXT.replace("k", "l")).output
    assert len(tenants.all_keys()) == 2


@pytest.mark.parametrize("text", ["password", TEXT[:-1], f"{TEXT} "])
@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_a_text_that_is_no_key_is_told_and_not_shown(migrate: Migrate, text: str) -> None:
    done = migrate(text)
    assert done.exit_code == 1
    assert "acmix: the key of ACMIX_ADMIN_KEY_FILE will not do: the key has not the form of one" in done.output
    assert text.strip() not in done.output


@pytest.mark.parametrize("empty_database_url", ["sqlite"], indirect=True)
def test_a_key_that_was_revoked_does_not_come_back(migrate: Migrate, tenants: Tenants) -> None:
    migrate(TEXT)
    [key] = tenants.all_keys()
    tenants.revoke_key(key.id)
    done = migrate(TEXT)
    assert done.exit_code == 1
    assert f"key {key.id} was revoked at " in done.output
    assert len(tenants.all_keys()) == 1


def test_of_those_who_make_it_at_once_one_does(engine: Engine) -> None:
    made: list[bool] = []

    def keep() -> None:
        made.append(Tenants(engine).keep_key(TEXT, "default", name="first", scopes=["admin"]))

    at_once(*[keep for _ in range(6)])
    assert sorted(made) == [*5 * [False], True]
    assert len(Tenants(engine).all_keys()) == 1
