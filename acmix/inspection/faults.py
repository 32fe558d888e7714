"""What keeps a data set from being used: every fault counted, the first of them told."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from acmix.errors import AcmixError

MOST_TOLD = 20


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

    def add_first(self, fault: Fault) -> None:
        self.total += 1
        self.told = [fault, *self.told][:MOST_TOLD]

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self.told]


def fault_of(error: AcmixError, root: Path, file: str | None = None) -> Fault:
    """An error as a fault; where the data lie on this machine is left out of its sentence."""
    message = error.message.replace(f"{root}/", "").replace(str(root), root.name)
    return Fault(file, error.code, f"{message}; {error.hint}" if error.hint else message)
