"""Known vulnerabilities of what is installed, by pip-audit: exit status 1 for one that is not accepted with a reason.

    python .ci/audit.py [--osv-url URL] [--path FOLDER]

Accepted ones stand in accepted-vulnerabilities.txt beside this file, a line each: the id, `#`, the reason.
pip-audit says "no known vulnerabilities" too where whom it asks knows none of the packages; so what was looked up is
counted. Where nobody answers that is told, and fails nothing: a run that has a network finds what there is.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).with_name("accepted-vulnerabilities.txt")
SERVICES = ("pypi", "osv")
ANSWER_SECONDS = 5
MOST_SECONDS = 45

Report = list[dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--osv-url", help="ask this service alone")
    parser.add_argument("--path", type=Path, help="audit what is installed there, not where this runs")
    parser.add_argument("--accepted", type=Path, default=ACCEPTED)
    given = parser.parse_args()
    accepted = reasons(given.accepted)
    where = ["--path", str(given.path)] if given.path else []
    asked = [("osv", ["--osv-url", given.osv_url])] if given.osv_url else [(each, []) for each in SERVICES]
    for service, more in asked:
        report = audited(service, [*more, *where])
        if any("vulns" in package for package in report):
            return told(service, report, accepted)
    names = " nor ".join(service for service, _ in asked)
    print(f"AUDIT: NOT DONE. No advisory service answered ({names}); nothing is known of what is installed here.")
    return 0


def reasons(file: Path) -> dict[str, str]:
    """Why each accepted id is; a line without a reason ends the program."""
    found = {}
    for line in file.read_text().splitlines():
        name, _, reason = (part.strip() for part in line.partition("#"))
        if name and not reason:
            sys.exit(f"{file.name}: {name} has no reason")
        if name:
            found[name] = reason
    return found


def audited(service: str, more: list[str]) -> Report:
    """What the service says of each package; nothing where it does not answer."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    command += ["--timeout", str(ANSWER_SECONDS), "--vulnerability-service", service, *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MOST_SECONDS)
        report: Report = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        return []
    return report


def told(service: str, report: Report, accepted: Mapping[str, str]) -> int:
    """The exit status, once all is printed."""
    skipped = [package["name"] for package in report if "vulns" not in package]
    print(f"audit by {service}: {len(report) - len(skipped)} packages looked up")
    if skipped:
        print(f"AUDIT: {len(skipped)} packages that it does not know: {', '.join(skipped)}")
    failed, met = False, set()
    for package, finding in findings(report):
        names = {finding["id"], *finding["aliases"]}
        what = f"{package['name']} {package['version']}: {', '.join(sorted(names))}"
        if known := names & accepted.keys():
            met |= known
            print(f"accepted: {what}: {accepted[min(known)]}")
        else:
            failed = True
            fixed = ", ".join(finding["fix_versions"]) or "no version"
            print(f"VULNERABLE: {what}: fixed in {fixed}: {finding['description'][:300]}")
    for name in accepted.keys() - met:
        print(f"{ACCEPTED.name}: {name} is found no more; its line can go")
    return int(failed)


def findings(report: Report) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for package in report:
        yield from ((package, finding) for finding in package.get("vulns", []))


if __name__ == "__main__":
    sys.exit(main())
