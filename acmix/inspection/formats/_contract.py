"""What a format says of itself; all the rest is asked of the data set class of the same name."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from acmix.datasets._contract import Dataset


class Format:
    """A layout of files that a data set class reads.

    Its samples are that class's: split, image file and target as in acmix/datasets/_contract.py. What is accepted is
    thus exactly what training can read. No torch is imported before `reader` is called.
    """

    name: ClassVar[str]  # of the data set class too
    task: ClassVar[str]
    layout: ClassVar[frozenset[str]]  # names at the top of the data, never taken for a folder that wraps it
    expected: ClassVar[str]  # the layout for people, a line or a few

    @classmethod
    def reader(cls) -> type["Dataset"]:
        """The data set class; imports torch."""
        from acmix import registry

        found: type[Dataset] = registry.get("datasets", cls.name)
        return found

    @classmethod
    def dataset(cls, content: Path, options: Mapping[str, Any]) -> "Dataset":
        """The data set below `content`; raises what its class does, and OptionInvalid."""
        from acmix import registry

        reader = cls.reader()
        return reader(content, **registry.check_options(reader, options, where=f"dataset {cls.name}"))
