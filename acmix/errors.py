"""What can go wrong, named for what happened; each error says who can mend it and how."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal

Blame = Literal["user", "data", "platform"]


@dataclass(frozen=True)
class Problem:
    """One fault of a spec: where it is (a JSON pointer), what it is, and what would do."""

    pointer: str
    code: str
    message: str
    allowed: Sequence[Any] | None = None
    limit: float | None = None
    actual: Any = None
    fixes: Sequence[Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Reason:
    """Why a run ended as it did; a job's `status_reason`."""

    code: str
    message: str
    blame: Blame = "platform"
    retryable: bool = False
    hint: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(eq=False)
class AcmixError(Exception):
    """Base of all errors that this library raises on purpose. The message is a sentence that names what would do.

    `file` is what is at fault, where that is one. `others` are the first found beside it, where more was looked at than
    it takes to fail; `total` counts all.
    """

    message: str
    hint: str | None = field(default=None, kw_only=True)
    file: Path | None = field(default=None, kw_only=True)
    others: Sequence["AcmixError"] = field(default=(), kw_only=True)
    total: int = field(default=1, kw_only=True)
    code: ClassVar[str] = "internal"
    blame: ClassVar[Blame] = "platform"
    retryable: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.message

    def reason(self) -> Reason:
        return Reason(self.code, self.message, self.blame, self.retryable, self.hint)


class SpecInvalid(AcmixError):
    """The spec asks for something impossible; `problems` lists every fault found."""

    code = "spec_invalid"
    blame = "user"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{problem.pointer or '/'}: {problem.message}" for problem in problems))
        self.problems = list(problems)


class NameNotFound(AcmixError):
    """A name that no file of the registry's folder defines."""

    code = "name_not_found"
    blame = "user"


class OptionInvalid(AcmixError):
    """An option that the entry does not take, or a value it cannot take."""

    code = "option_invalid"
    blame = "user"


class LayerNotFound(AcmixError):
    """A glob of a swap matches no slot of the model."""

    code = "layer_not_found"
    blame = "user"


class LayerClaimedTwice(AcmixError):
    """Two swaps claim the same slot."""

    code = "layer_claimed_twice"
    blame = "user"


class ShapeMismatch(AcmixError):
    """Sizes that do not go together: heads and channels, weights and model."""

    code = "shape_mismatch"
    blame = "user"


class DatasetMissing(AcmixError):
    """A file or folder of the data set is not there; the message names it."""

    code = "dataset_missing"
    blame = "data"


class DatasetCorrupt(AcmixError):
    """A file of the data set is there and cannot be used; the message names it."""

    code = "dataset_corrupt"
    blame = "data"


class ImageUnreadable(AcmixError):
    """What was sent to be predicted on is no image that is read here."""

    code = "image_unreadable"
    blame = "user"


class ArchiveRefused(AcmixError):
    """An archive holds something that is not unpacked; the message names the member and says what would do."""

    code = "archive_refused"
    blame = "data"


class Diverged(AcmixError):
    """The loss is no longer finite; the message names layer and step."""

    code = "diverged"
    blame = "user"


class CheckpointIncompatible(AcmixError):
    """A checkpoint that belongs to another spec or is not whole."""

    code = "checkpoint_incompatible"
    blame = "user"


class WeightsMissing(AcmixError):
    """A file of weights to start from is not there; the message names it."""

    code = "weights_missing"


class OutOfDeviceMemory(AcmixError):
    """The accelerator's memory did not suffice."""

    code = "out_of_memory_device"
    blame = "user"


class OutOfHostMemory(AcmixError):
    """The machine's memory did not suffice."""

    code = "out_of_memory_host"
    blame = "user"


class DiskFull(AcmixError):
    """No room for a checkpoint or a data set."""

    code = "disk_full"
    retryable = True


def nearest(name: str, names: Sequence[str], *, most: int = 3) -> list[str]:
    """The names most like `name`, best first; for messages that help."""
    return get_close_matches(name[:200], names, n=most, cutoff=0.4)


def unknown_name(what: str, name: str, names: Sequence[str]) -> str:
    """The sentence for a name that is not there: the nearest ones, else all of them."""
    close = nearest(name, names)
    offer = f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(sorted(names)[:30]) or 'none'}"
    return f"no {what} is named {name[:60]!r}; {offer}"


def unknown_variant(what: str, name: str, variants: Sequence[str]) -> str:
    """The sentence for `family` alone, or for `family/variant` where the family has no such variant."""
    family, slash, variant = name.partition("/")
    if not slash:
        such = f"{family}/{min(variants, key=len)}"
        return f"{family} is a family of {len(variants)} {what}s; add the name of one, such as {such}"
    close = nearest(variant, variants)
    offer = f"nearest: {', '.join(f'{family}/{each}' for each in close)}" if close else "the catalog lists its variants"
    return f"no {what} is named {name[:60]!r}; {offer}"
