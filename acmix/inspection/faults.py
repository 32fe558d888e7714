"""What keeps a data set from being used: every fault counted, the first of them told."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from acmix.errors import AcmixError

MOST_TOLD = 20
MOST_CHARACTERS = 1000  # of the name of a file, which an index may make as long as it likes


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, in a sentence, and the file it is in, below the data set's folder."""

    file: str | None
    code: str
    message: str


@dataclass
class Faults:
    """Faults in the order they were found; one that is found twice counts once."""

    total: int = 0
    told: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        if fault in self.told:
            return
        self.total += 1
        if len(self.told) < MOST_TOLD:
            self.told.append(fault)

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self.told]


def faults_of(error: AcmixError, root: Path) -> Faults:
    """An error, and those found beside it."""
    faults = Faults()
    for each in (error, *error.others):
        faults.add(fault_of(each, root))
    faults.total = max(faults.total, error.total)
    return faults


def fault_of(error: AcmixError, root: Path, file: str | None = None) -> Fault:
    """An error as a fault, of that file or its own; where the data lie on this machine is left out of its sentence."""
    if file is None and error.file is not None and error.file.is_relative_to(root):
        file = error.file.relative_to(root).as_posix()[:MOST_CHARACTERS]
    message = error.message.replace(f"{root}/", "").replace(str(root), root.name)
    return Fault(file, error.code, f"{message}; {error.hint}" if error.hint else message)
