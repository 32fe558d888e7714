"""The audit of what is installed: a finding fails it, a reason lets it pass, and silence is told as silence."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tests
from service.launcher import free_port

AUDIT = Path(tests.__path__[0]).parent / ".ci" / "audit.py"
VULNERABLE = {
    "id": "GHSA-test-0000-0000",
    "aliases": ["CVE-2026-0000"],
    "summary": "a poisoned reply runs code",
    "affected": [
        {
            "package": {"name": "redis", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    """Knows of one vulnerability, of one package."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"vulns": [VULNERABLE]} if asked["package"]["name"] == "redis" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def advisories() -> Iterator[str]:
    """The address of a service that answers as OSV does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(url: str, folder: Path, lines: str = "") -> tuple[int, str]:
    """Exit status and words, where two packages are installed."""
    (folder / "accepted").write_text(lines)
    for name in ("redis", "httpx"):
        about = folder / "installed" / f"{name}-5.2.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 5.2\n")
    command = [sys.executable, str(AUDIT), "--osv-url", url, "--accepted", str(folder / "accepted")]
    command += ["--path", str(folder / "installed")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_finding_fails_and_says_what_would_mend_it(tmp_path: Path) -> None:
    with advisories() as url:
        status, said = audit(url, tmp_path, "CVE-1999-0001 # of another time")
    assert status == 1
    assert "2 packages looked up" in said
    assert (
        "VULNERABLE: redis 5.2: CVE-2026-0000, GHSA-test-0000-0000: fixed in 99.1: a poisoned reply runs code" in said
    )
    assert "CVE-1999-0001 is found no more" in said


def test_one_that_is_accepted_passes_with_its_reason(tmp_path: Path) -> None:
    with advisories() as url:
        status, said = audit(url, tmp_path, "# why\nCVE-2026-0000  # we never read such replies\n")
    assert status == 0, said
    assert "GHSA-test-0000-0000: we never read such replies" in said


def test_without_an_answer_it_says_so_and_does_not_fail(tmp_path: Path) -> None:
    status, said = audit(f"http://127.0.0.1:{free_port()}/v1/query", tmp_path)
    assert (status, said.partition(".")[0]) == (0, "AUDIT: NOT DONE")


@pytest.mark.parametrize("line", ["CVE-2026-0000", "CVE-2026-0000 #"])
def test_nothing_is_accepted_without_a_reason(line: str, tmp_path: Path) -> None:
    status, said = audit("http://127.0.0.1:1", tmp_path, line)
    assert (status, said.strip()) == (1, "accepted: CVE-2026-0000 has no reason")
