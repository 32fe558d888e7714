"""P14: nothing in the product can run code from a file: a lint over every call and import, by its full name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests

ROOT = Path(tests.__path__[0]).parent
PRODUCT = ("acmix", "service", "worker")
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "code"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"),
    *("torch.jit.load", "torch.package.PackageImporter", "torch.export.load", "torch.compiler.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
}
FAMILIES = ("torch.hub.", "runpy.")
# What is there all the same, and why it runs nothing
ALLOWED = {
    ("acmix/convert.py", "torch.load of weights alone"): "the authors' files are pickles: torch's reader of tensors "
    "takes them apart on the user's own machine, and tests/acmix/test_payloads.py tries it",
}
PLANTED = {
    "import pickle": "pickle",
    "import _pickle as quick": "_pickle",
    "from pickle import loads": "pickle",
    "import os.path, marshal": "marshal",
    "from joblib import load": "joblib",
    "def late():\n    import shelve": "shelve",
    "import torch\ntorch.load('a')": "torch.load",
    "import torch as t\nt.load('a', weights_only=False)": "torch.load",
    "from torch import load as read\nread('a', weights_only=chosen)": "torch.load",
    "import torch\ntorch.load('a', weights_only=True)": "torch.load of weights alone",
    "import torch\ntorch.hub.load('a', 'b')": "torch.hub.load",
    "from torch.hub import load_state_dict_from_url as fetch\nfetch('a')": "torch.hub.load_state_dict_from_url",
    "import torch\ntorch.jit.load('a')": "torch.jit.load",
    "eval('1')": "eval",
    "[exec(line) for line in lines]": "exec",
    "__import__('pickle')": "__import__",
    "from yaml import load, Loader\nload(text, Loader)": "yaml.load",
    "import numpy as np\nnp.load('a', allow_pickle=True)": "numpy.load of pickles",
    "import numpy\nnumpy.load('a', None, True)": "numpy.load of pickles",
    "import subprocess\nsubprocess.run('a', shell=True)": "subprocess.run by a shell",
    "from subprocess import Popen\nPopen('a', shell=wanted)": "subprocess.Popen by a shell",
    "import os\nos.system('a')": "os.system",
    "import importlib\nimportlib.import_module('pickle')": "pickle",
}
HARMLESS = [
    "model.eval()",
    "import numpy as np\nnp.load('a')\nnp.load('a', allow_pickle=False)",
    "import subprocess\nsubprocess.run(['a'], shell=False)",
    "from yaml import safe_load\nsafe_load(text)",
    "import json\njson.load(file)",
    "def load(file): ...\nload('a')",
    "import re\nre.compile('a')",
]


def test_nothing_of_the_product_runs_code_from_a_file() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), what): line
        for part in PRODUCT
        for path in sorted((ROOT / part).rglob("*.py"))
        for what, line in forbidden(path.read_text())
    }
    assert {f"{file}:{line}: {what}" for (file, what), line in found.items() if (file, what) not in ALLOWED} == set()
    assert ALLOWED.keys() <= found.keys(), "an exception that nothing needs any more goes"


@pytest.mark.parametrize(("code", "what"), PLANTED.items())
def test_what_is_planted_is_found(code: str, what: str) -> None:
    assert what in [found for found, _ in forbidden(code)]


@pytest.mark.parametrize("code", HARMLESS)
def test_what_does_no_harm_is_let_be(code: str) -> None:
    assert list(forbidden(code)) == []


def forbidden(code: str) -> Iterator[tuple[str, int]]:
    """What is imported or called that must not be, and in which line."""
    tree = ast.parse(code)
    names = dict(_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((module, node.lineno) for module in _modules(node) if module.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call) and (called := _called(node.func, names)) and (what := _fault(called, node)):
            yield what, node.lineno


def _names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What each imported name stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield (each.asname, each.name) if each.asname else (each.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]


def _called(function: ast.expr, names: dict[str, str]) -> str | None:
    """The full name of what is called, `torch.load`; of what is no name, none."""
    if isinstance(function, ast.Attribute):
        owner = _called(function.value, names)
        return f"{owner}.{function.attr}" if owner else None
    if isinstance(function, ast.Name):
        return names.get(function.id, function.id)
    return None


def _fault(called: str, call: ast.Call) -> str | None:
    given = {each.arg: each.value for each in call.keywords}
    if called in ("torch.load", "torch.serialization.load"):
        return "torch.load of weights alone" if _is(given.get("weights_only"), True) else "torch.load"
    if called == "numpy.load":
        allowed = given.get("allow_pickle", call.args[2] if len(call.args) > 2 else None)
        return None if allowed is None or _is(allowed, False) else "numpy.load of pickles"
    if called.startswith("subprocess.") and "shell" in given and not _is(given["shell"], False):
        return f"{called} by a shell"
    if called == "importlib.import_module" and call.args and isinstance(call.args[0], ast.Constant):
        return str(call.args[0].value) if call.args[0].value in MODULES else None
    return called if called in CALLS or called.startswith(FAMILIES) else None


def _is(value: ast.expr | None, wanted: bool) -> bool:
    """Whether the code says so, in that very word."""
    return isinstance(value, ast.Constant) and value.value is wanted
