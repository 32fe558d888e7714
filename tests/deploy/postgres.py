"""What the start script of PostgreSQL's image does, with that of a wheel: `python -m tests.deploy.postgres ADDRESS`.

The first start makes the user, its password and its database; every one ends as the server. Root becomes another user.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from pgserver._commands import POSTGRES_BIN_PATH as PROGRAMS
from pgserver.utils import ensure_prefix_permissions, ensure_user_exists

SERVER_USER = "pgserver"


def main() -> None:
    [address], folder = sys.argv[1:], Path(os.environ["DATA"])
    password = Path(os.environ["POSTGRES_PASSWORD_FILE"]).read_text()
    if os.geteuid() == 0:
        _become_another(folder)
    if not (folder / "PG_VERSION").exists():
        _make(folder, password)
    server = str(PROGRAMS / "postgres")
    options = ["-c", "unix_socket_directories=", "-c", "fsync=off"]  # its processes die, not the machine
    os.execv(server, [server, "-D", str(folder), "-h", address, "-p", "5432", *options])


def _become_another(folder: Path) -> None:
    entry = ensure_user_exists(SERVER_USER)
    assert entry is not None
    ensure_prefix_permissions(PROGRAMS)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _make(folder: Path, password: str) -> None:
    user, database = os.environ["POSTGRES_USER"], os.environ["POSTGRES_DB"]
    options = ["--username", user, "--pwfile", "/dev/stdin", *shlex.split(os.environ["POSTGRES_INITDB_ARGS"])]
    subprocess.run([PROGRAMS / "initdb", "-D", folder, "--no-sync", *options], input=password, text=True, check=True)
    with (folder / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    alone = [PROGRAMS / "postgres", "--single", "-D", folder, "postgres"]
    subprocess.run(alone, input=f"CREATE DATABASE {database};\n", text=True, check=True)


if __name__ == "__main__":
    main()
