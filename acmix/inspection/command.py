"""The command `python -m acmix inspect`: unpack what was uploaded, look into it, and say what it is."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from acmix.archives import Limits, content_root, unpack
from acmix.archives.parts import Parts
from acmix.errors import AcmixError, ArchiveRefused, DatasetMissing, OptionInvalid
from acmix.inspection import formats, reports, sandbox
from acmix.inspection.content import content_of, description
from acmix.inspection.faults import faults_of
from acmix.inspection.formats._contract import Format
from acmix.inspection.progress import Progress
from acmix.inspection.reports import Report

if TYPE_CHECKING:
    from acmix.inspection.findings import Findings


@dataclass(frozen=True)
class Request:
    """What to inspect: an archive, in parts perhaps, or a folder that is there already."""

    into: Path
    task: str
    format: str
    archive: Sequence[Path] = ()
    folder: Path | None = None
    sha256: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    unpack_only: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def content(self) -> Path:
        """The folder that holds the data, perhaps in a folder of their own."""
        return self.into / "content" if self.folder is None else self.folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, action="append", help="given again: the next part of the same file")
    source.add_argument("--folder", type=Path, help="data that lie there already; nothing is unpacked")
    parser.add_argument("--into", type=Path, required=True, help="where content/ and samples.png go")
    parser.add_argument("--task", required=True, help="classification, detection or segmentation")
    parser.add_argument("--format", required=True, help="how the files lie, such as image_folder")
    parser.add_argument("--sha256", help="of the archive; of a folder, its content's as a report has it")
    parser.add_argument("--options", type=_options, default={}, help="JSON: further options of the data set")
    parser.add_argument("--unpack-only", action="store_true", help="look into nothing; report root and sha256 alone")
    memory_bytes = sandbox.DEFAULT_MEMORY_BYTES
    parser.add_argument("--memory-bytes", type=int, default=memory_bytes, help="beyond what the program itself takes")
    parser.add_argument("--limits", type=_limits, default=Limits(), help="JSON: how much an archive may hold")


def run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Print progress, and the report as the last line; exit status 0 whether the data can be used or not."""
    given = {each.name: getattr(arguments, each.name) for each in fields(Request)}
    request = Request(**{name: value for name, value in given.items() if value is not None})
    sandbox.confine(memory_bytes=arguments.memory_bytes, file_bytes=request.limits.file_bytes)
    out.write(json.dumps(inspect(request, Progress(out))) + "\n")
    return 0


def inspect(request: Request, progress: Progress) -> Report:
    """The report. What is wrong with the data is in it; what is wrong with this machine is raised."""
    try:
        form = formats.get(request.task, request.format)
    except AcmixError as error:
        return _rejected(
            error, request.into, expected="a task, and a format that there is for it", found="not looked at"
        )
    try:
        passed_over = _fetch(request, progress)
    except (ArchiveRefused, DatasetMissing) as error:
        return _rejected(error, request.content, expected=form.expected, found="nothing was unpacked")
    return _look(request, form, progress, passed_over)


def _fetch(request: Request, progress: Progress) -> int:
    """Have the content there, unpacked; how many files of macOS's own were passed over."""
    request.into.mkdir(parents=True, exist_ok=True)
    if request.folder is not None:
        if not request.folder.is_dir():
            raise DatasetMissing(f"{request.folder.name} is not a folder")
        return 0
    if request.sha256 is not None:
        _check_sha256(request.archive, request.sha256, progress)
    request.content.mkdir(exist_ok=True)
    tell = progress.of("unpacking")
    return unpack(request.archive, request.content, limits=request.limits, tell=tell).passed_over


def _check_sha256(archive: Sequence[Path], declared: str, progress: Progress) -> None:
    with Parts(archive) as parts:
        digest = parts.sha256(progress.of("hashing"))
    if digest != declared.lower():
        raise ArchiveRefused(
            f"the archive's sha256 is {digest} and not {declared[:64]} as was declared; upload it again"
        )


def _look(request: Request, form: type[Format], progress: Progress, passed_over: int) -> Report:
    root = content_root(request.content, layout=form.layout)
    content = content_of(root, progress.of("hashing"))
    if request.folder is not None and request.sha256 not in {None, content.sha256}:
        changed = ArchiveRefused(f"the folder's sha256 is {content.sha256} and not {request.sha256}; its files changed")
        return _rejected(changed, root, expected=form.expected, found=description(root))
    folder = root.relative_to(request.content).as_posix()
    if request.unpack_only:
        return reports.unpacked(content, root=folder)
    try:
        options = _with_folder(request.options, folder)
        findings = _read(request, form, options, root, progress)
    except AcmixError as error:
        return _rejected(error, root, expected=form.expected, found=description(root))
    if findings.faults.total:
        return reports.rejected(findings.faults, expected=form.expected, found=description(root))
    return reports.ready(form, content, findings, root=folder, options=options, passed_over=passed_over)


def _read(
    request: Request, form: type[Format], options: Mapping[str, Any], root: Path, progress: Progress
) -> "Findings":
    """Look at every sample; where all can be read, draw some."""
    with sandbox.growing_program():
        from acmix.inspection import contact_sheet
        from acmix.inspection.findings import look_at

        form.reader()
    dataset = form.dataset(request.content, options)
    findings = look_at(dataset, root, progress.of("checking"))
    if not findings.faults.total:
        contact_sheet.write(dataset, request.into / "samples.png")
    return findings


def _with_folder(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """What the data set's constructor takes; where the data lie is not the user's to say."""
    if "folder" in given:
        raise OptionInvalid(f"option folder={given['folder']!r:.200} is not taken; the folder is found")
    return {"folder": folder, **given}


def _rejected(error: AcmixError, root: Path, *, expected: str, found: str) -> Report:
    """A rejection by an error, and by those beside it; one of the platform is raised."""
    if error.blame == "platform":
        raise error
    return reports.rejected(faults_of(error, root), expected=expected, found=found)


def _options(text: str) -> dict[str, Any]:
    options = json.loads(text)
    if not isinstance(options, dict):
        raise ValueError("options are an object")
    return options


def _limits(text: str) -> Limits:
    return Limits(**json.loads(text))
