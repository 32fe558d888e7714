"""How data sets come as files: one format a file, named like the data set class that reads it."""

import inspect
import pkgutil
from functools import cache
from importlib import import_module

from acmix.errors import NameNotFound, unknown_name
from acmix.inspection.formats._contract import Format


@cache
def formats() -> dict[str, type[Format]]:
    """Every format that the folder's files define, by its name."""
    found: dict[str, type[Format]] = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if not module_info.name.startswith("_"):
            module = import_module(f"{__name__}.{module_info.name}")
            classes = (value for value in vars(module).values() if inspect.isclass(value))
            found |= {
                each.name: each for each in classes if each.__module__ == module.__name__ and hasattr(each, "name")
            }
    return found


def get(task: str, name: str) -> type[Format]:
    """The format of that name for that task; NameNotFound lists what there is."""
    of_task = {known: each for known, each in formats().items() if each.task == task}
    if name not in of_task:
        tasks = sorted({each.task for each in formats().values()})
        there_is = unknown_name(f"format for {task}", name, list(of_task))
        raise NameNotFound(
            there_is if of_task else f"no format is for the task {task[:60]!r}; tasks: {', '.join(tasks)}"
        )
    return of_task[name]
