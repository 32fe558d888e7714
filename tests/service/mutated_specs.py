"""Specs made of right ones by one change each, drawn from a seed; each knows by construction what must become of it."""

import copy
import json
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.service.spec_contract import FIELDS, FRACTIONS, INTEGERS, OBJECTS, WORDS

Spec = dict[str, Any]
Must = Literal["refused", "taken", "either"]

ULID = "01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
SCRIPTS = [
    "late attention",
    "späte Aufmerksamkeit",
    "後期の注意",
    "انتباه متأخر",
    "🧠🔬",
    "a/b~c",
    "e\u0301",
    "\u202eabc",
    "  ",
]


@dataclass(frozen=True)
class Case:
    """A body, what must become of it, and a pointer that a refusal has to lead to."""

    kind: str
    body: bytes
    must: Must
    pointer: str | None = None


class Raw(str):
    """JSON text that no value stands for."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object that may have a field twice."""


def cases(seed: int, count: int) -> Iterator[Case]:
    """So many, as many of each kind; the same for the same seed."""
    drawn = random.Random(seed)
    for number in range(count):
        make = KINDS[number % len(KINDS)]
        yield make(drawn)


def right(drawn: random.Random) -> Spec:
    """A spec that any worker with this menu can run."""
    spec: Spec = {
        "name": drawn.choice(SCRIPTS),
        "metadata": {f"label {number}": drawn.choice(SCRIPTS) for number in range(drawn.randint(1, 5))},
        "task": {"name": "classification"},
        "backbone": {"name": "resnet26", "options": {"stem": "small", "width": drawn.choice([0.5, 1.0, 2.0])}},
        "swaps": [
            {
                "layers": drawn.choice(["*", "layer[34].*", "layer4.0.conv2", ["layer1.*", "layer3.?.conv2"]]),
                "mixer": {"name": "acmix", "options": {"heads": drawn.choice([1, 2, 4, 8]), "kernel_att": 7}},
            }
        ],
        "dataset": {"name": "digits", "options": {"image_px": drawn.randint(8, 224)}},
        "training": {
            "epochs": drawn.randint(1, 300),
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"name": "cosine", "warmup_epochs": 1},
            "augment": {"name": "default"},
            "ema": {"decay": 0.99},
        },
        "evaluation": {"metric": "auto"},
        "checkpoints": {"keep_best": 2},
        "trace": {},
        "resources": {"gpus": "auto"},
    }
    for path in drawn.sample([*INTEGERS], 5):
        if path != "/training/epochs":
            put(spec, path, drawn.randint(*INTEGERS[path]))
    for path in drawn.sample([*FRACTIONS], 3):
        if path != "/backbone/options/width":
            put(spec, path, round(drawn.uniform(*FRACTIONS[path]), 6) or FRACTIONS[path][1])
    for path in drawn.sample([*WORDS], 3):
        put(spec, path, drawn.choice(WORDS[path]))
    return spec


def put(spec: Any, path: str, value: Any) -> None:
    here, last = _parent(spec, path)
    here[last] = value


def at(spec: Any, path: str) -> Any:
    here, last = _parent(spec, path)
    return here.setdefault(last, {}) if isinstance(here, dict) else here[last]


def _parent(spec: Any, path: str) -> tuple[Any, Any]:
    *parents, last = path.removeprefix("/").split("/")
    here = spec
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
    return here, int(last) if isinstance(here, list) else last


def written(value: Any) -> str:
    """JSON as it stands, flaws and all."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict | Pairs):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ",".join(f"{written(name)}:{written(item)}" for name, item in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def _case(kind: str, spec: Any, must: Must, pointer: str | None = None) -> Case:
    return Case(kind, written(spec).encode("utf-8", "surrogatepass"), must, pointer)


def _leaf(drawn: random.Random) -> str:
    return drawn.choice([*INTEGERS, *FRACTIONS, *WORDS, "/name", "/metadata/study", "/swaps/0/mixer/options/heads"])


def _unknown(drawn: random.Random, words: Sequence[str], known: Collection[str]) -> str:
    """Nearly one of the words, a letter more or less or otherwise written, and none that is known."""
    while True:
        word = drawn.choice(words)
        place = drawn.randrange(len(word))
        letter = drawn.choice("abcdefghijklmnopqrstuvwxyz_")
        shorter, longer = word[:place] + word[place + 1 :], word[:place] + letter + word[place:]
        typo = drawn.choice([shorter, longer, word.upper(), word * 2])
        if typo and typo not in known:
            return typo


# What must be refused


def wrong_type(drawn: random.Random) -> Case:
    spec = right(drawn)
    what = drawn.choice(["integer", "fraction", "word", "object"])
    if what == "integer":
        path, values = drawn.choice([*INTEGERS]), ["3", True, 4.0, 2.5, [1], {"a": 1}]
    elif what == "fraction":
        path, values = drawn.choice([*FRACTIONS]), ["0.1", True, [0.1], {}, "NaN", ""]
    elif what == "word":
        path, values = drawn.choice([*WORDS, "/name", "/metadata/study"]), [7, True, 0.5, {"a": 1}, [], None]
    else:
        path, values = drawn.choice(OBJECTS), ["text", 3, [], True, [["name", "x"]]]
    put(spec, path, drawn.choice(values))
    return _case("wrong type", spec, "refused", path)


def out_of_bounds(drawn: random.Random) -> Case:
    spec = right(drawn)
    if drawn.random() < 0.5:
        path = drawn.choice([*INTEGERS])
        least, most = INTEGERS[path]
        away = drawn.choice([1, 2, 10**3, 10**9, 10**18, 10**30, 10**300])
        put(spec, path, drawn.choice([least - away, most + away]))
    else:
        path = drawn.choice([*FRACTIONS])
        put(spec, path, drawn.choice([-1e-9, -1.5, -1e300, 1e10, 1e300, 10**30]))
    return _case("out of bounds", spec, "refused", path)


def unknown_field(drawn: random.Random) -> Case:
    spec = right(drawn)
    path = drawn.choice([*FIELDS])
    here, known = (at(spec, path) if path else spec), FIELDS[path].split()
    name = _unknown(drawn, known, known)
    here[name] = drawn.choice([1, "x", None, {}, [], {"name": "sgd"}])
    return _case("unknown field", spec, "refused", f"{path}/{name}")


def unknown_name(drawn: random.Random) -> Case:
    spec = right(drawn)
    path = drawn.choice([*WORDS])
    known = {*WORDS[path], "evaluate", "resnet", "milestones", "adamw", "detection", "image_folder", "boxes", "rolling"}
    put(spec, path, _unknown(drawn, WORDS[path], known))
    return _case("unknown name", spec, "refused", path)


def not_finite(drawn: random.Random) -> Case:
    spec, path = right(drawn), _leaf(drawn)
    texts = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "-" + "9" * 100_000, "1e400", "0.1e309"]
    put(spec, path, Raw(drawn.choice(texts)))
    return _case("not finite", spec, "refused", path)


def bad_text(drawn: random.Random) -> Case:
    spec = right(drawn)
    path = drawn.choice(["/name", "/metadata/study", "/swaps/0/layers", *WORDS])
    flaw = drawn.choice([r"\ud800", r"\udfff", r"\udc00\ud800", r"\u0000", r"\n", r"\u001b[2J", r"\u007f", r"\t"])
    put(spec, path, Raw(f'"a{flaw}b"'))
    return _case("bad text", spec, "refused", path)


def bad_field_name(drawn: random.Random) -> Case:
    """In the labels, where any other name will do."""
    spec = right(drawn)
    flaw = drawn.choice([r"\ud83d", r"\u0000", r"\r", "", "k" * 201, "k" * 100_000])
    pairs = Pairs([*spec["metadata"].items(), (Raw(f'"{flaw}"'), "x")])
    spec["metadata"] = pairs
    return _case("bad field name", spec, "refused", "/metadata")


def too_long(drawn: random.Random) -> Case:
    spec, length = right(drawn), drawn.choice([201, 4097, 100_000, 1_000_000])
    path = drawn.choice(["/name", "/metadata/study", "/swaps/0/layers", "/kind", "/evaluation/metric", "/dataset/id"])
    put(spec, path, drawn.choice("aé画🧠") * length)
    return _case("too long", spec, "refused", path)


def too_many(drawn: random.Random) -> Case:
    spec = right(drawn)
    path, value = drawn.choice(
        [
            ("/metadata", {f"label {number}": "x" for number in range(drawn.choice([51, 500, 20_000]))}),
            ("/swaps", [{"layers": "layer1.*"}] * drawn.choice([201, 2_000])),
            ("/swaps/0/layers", ["layer1.*"] * drawn.choice([201, 60_000])),
            ("/dataset/options", {f"option{number}": 1 for number in range(drawn.choice([1, 100, 40_000]))}),
            ("/training/optimizer/betas", [0.9] * drawn.choice([1, 3, 5_000, 60_000])),
        ]
    )
    put(spec, path, value)
    return _case("too many", spec, "refused", path if len(str(value)) < 10**5 else None)


def too_deep(drawn: random.Random) -> Case:
    spec = right(drawn)
    path, depth = _leaf(drawn), drawn.choice([33, 34, 64, 300, 5_000, 100_000])
    opened, closed = drawn.choice([("[", "]"), ('{"a":', "}")])
    put(spec, path, Raw(opened * depth + "0" + closed * depth))
    return _case("too deep", spec, "refused", path if depth <= 300 else "")


def twice(drawn: random.Random) -> Case:
    """A field of any object once more, with a right value."""
    spec = right(drawn)
    path = drawn.choice(["", *(each for each in OBJECTS if each not in ("/trace", "/dataset/options"))])
    here = at(spec, path) if path else spec
    name = drawn.choice([*here])
    doubled = Pairs([*here.items(), (name, copy.deepcopy(here[name]))])
    drawn.shuffle(doubled)
    if path:
        put(spec, path, doubled)
    return _case("a field twice", spec if path else doubled, "refused", f"{path}/{name}")


def broken_text(drawn: random.Random) -> Case:
    text = written(right(drawn))
    place = drawn.randrange(1, len(text))
    body = drawn.choice(
        [
            text[:place].encode(),
            text.encode()[:place] + b"\xff" + text.encode()[place:],
            (text + drawn.choice(["}", "x", "{}", ",", "\0", "[]"])).encode(),
            text.replace("}", ",}", 1).encode(),
            text.replace('"', "'").encode(),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode("utf-16"),
            ("/* a spec */" + text).encode(),
            text.replace(":", "=", 1).encode(),
            drawn.randbytes(drawn.randint(1, 400)) + b"\xff",
            b"",
            b" " * place,
        ]
    )
    return Case("broken text", body, "refused", "")


def other_value(drawn: random.Random) -> Case:
    text, number = drawn.choice(SCRIPTS) * drawn.randint(1, 99), drawn.randint(-(10**9), 10**9)
    values = [[], {}, None, True, Raw("1e400"), [[[]]], [right(drawn)], [number, text], written(right(drawn)), text]
    value = drawn.choice([*values, number, number / 7, {text: right(drawn)}, {"spec": right(drawn)}])
    return _case("no object", value, "refused")


def wrong_glob(drawn: random.Random) -> Case:
    spec = right(drawn)
    globs: list[Any] = [
        "layer5.*",
        "layer3",
        "*.conv1",
        "layer[5-9].*",
        "(a+)+$",
        ".*",
        "../layer3",
        "LAYER3.*",
        "[",
        "",
    ]
    globs += ["[!l]*", "layer1.0.conv2 ", "*" * 100 + "x", ["layer3.*", "layer9.*"], [], [""], "?" * 200]
    globs += ["".join(drawn.choices("xyz[]!-", k=drawn.randint(1, 200)))]
    put(spec, "/swaps/0/layers", drawn.choice(globs))
    return _case("wrong glob", spec, "refused", "/swaps/0/layers")


def contradiction(drawn: random.Random) -> Case:
    spec = right(drawn)
    options, window = "/swaps/0/mixer/options", drawn.choice([2, 8, 64, 65, 0, -7])
    everywhere = [{"layers": "*"}, {"layers": drawn.choice(["*", "layer1.*", "layer4.0.conv2"])}]
    of_resnet = {"name": "resnet", "options": {"depths": drawn.choice([[1, 1], [], [1] * 5, [0, 1, 1, 1], [65] * 4])}}
    odd_heads = drawn.choice([3, 5, 6, 7, 9, 1000, 1025, 0, -4])
    path, value, told = drawn.choice(
        [
            (f"{options}/heads", odd_heads, f"{options}/heads"),
            (f"{options}/kernel_att", window, f"{options}/kernel_att"),
            (f"{options}/kernel_conv", window, f"{options}/kernel_conv"),
            ("/training/schedule/warmup_epochs", drawn.choice([301, 1e5, 300.5]), "/training/schedule/warmup_epochs"),
            ("/dataset", {"name": "boxes"}, "/dataset/name"),
            ("/dataset", {"name": "image_folder"}, "/dataset/options/folder"),
            ("/dataset/options/image_px", drawn.choice([7, 0, -8, 225, 10**6]), "/dataset/options/image_px"),
            ("/task", {"name": "detection"}, "/dataset/name"),
            ("/swaps", everywhere, "/swaps/1/layers"),
            ("/swaps/0/mixer", {"name": "rolling"}, "/swaps/0/mixer/name"),
            ("/backbone/weights", "timm", "/backbone/weights"),
            ("/backbone", of_resnet, "/backbone/options/depths"),
            ("/resources/gpus", drawn.choice([3, 100, 100_000]), "/resources/gpus"),
            ("/training/optimizer", {"name": "adamw", "betas": [0.9]}, "/training/optimizer/betas"),
            ("/training/optimizer", {"name": "adamw", "momentum": 0.9}, "/training/optimizer/momentum"),
            ("/training/schedule", {"name": "milestones"}, "/training/schedule/at_epochs"),
        ]
    )
    put(spec, path, value)
    if path == "/backbone/weights":
        put(spec, "/backbone/name", "resnet26")  # of which timm has none
    return _case("contradiction", spec, "refused", told)


def wrong_id(drawn: random.Random) -> Case:
    spec = right(drawn)
    path = drawn.choice(["/backbone/weights", "/dataset/id", "/checkpoint"])
    prefix = {"/backbone/weights": "ckpt_", "/dataset/id": "ds_", "/checkpoint": "ckpt_"}[path]
    names = [prefix + ULID, prefix + ULID.lower(), prefix + ULID[:-1], "", "../../etc/passwd", "job_" + ULID, 7]
    names += [prefix + ULID + "\u0660", prefix + "O" * 26, prefix + ULID + "' OR 1=1 --", f"{prefix}%00{ULID}"]
    put(spec, path, drawn.choice(names))
    return _case("wrong id", spec, "refused", path)


def left_out(drawn: random.Random) -> Case:
    spec = right(drawn)
    required = ["/backbone", "/dataset", "/backbone/name", "/dataset/name", "/swaps/0/layers", "/swaps/0/mixer/name"]
    path = drawn.choice([*required, "/training/optimizer/name", "/training/schedule/name", "/training/augment/name"])
    here, last = _parent(spec, path)
    del here[last]
    return _case("left out", spec, "refused", path)


def odd_evaluation(drawn: random.Random) -> Case:
    """Of a checkpoint that is none, or with what only a training has."""
    asked: Spec = {"kind": "evaluate", "checkpoint": f"ckpt_{ULID}", "priority": drawn.randint(-100, 100)}
    asked |= {"name": drawn.choice(SCRIPTS), "evaluation": {"batch_size": drawn.randint(1, 65_536)}}
    training = {"training": {"epochs": drawn.randint(1, 99)}}
    more = drawn.choice([{}, training, right(drawn), {"checkpoint": None}, {"evaluation": {"split": "all"}}])
    return _case("odd evaluation", {**asked, **more, "kind": "evaluate"}, "refused")


# What must be taken


def other_form(drawn: random.Random) -> Case:
    """The same values: fields in another order, spaces, escapes, numbers written otherwise."""
    return Case("other form", _formed(right(drawn), drawn).encode(), "taken")


def _formed(value: Any, drawn: random.Random) -> str:
    def space() -> str:
        return drawn.choice(["", "", " ", "\n", "\t", "\r\n  "])

    if isinstance(value, dict):
        pairs = [*value.items()]
        drawn.shuffle(pairs)
        items = (f"{space()}{_formed(name, drawn)}{space()}:{_formed(item, drawn)}" for name, item in pairs)
        return space() + "{" + ",".join(items) + space() + "}" + space()
    if isinstance(value, list):
        return "[" + ",".join(f"{space()}{_formed(item, drawn)}" for item in value) + space() + "]"
    if isinstance(value, str):
        escaped = "".join(f"\\u{ord(each):04x}" if drawn.random() < 0.2 and each < "\x7f" else each for each in value)
        return drawn.choice([json.dumps(value), f'"{escaped}"'])
    if isinstance(value, float):
        return drawn.choice([repr(value), f"{value:.17g}", f"{value!r}0" if "e" not in repr(value) else repr(value)])
    return json.dumps(value)


def defaults_told(drawn: random.Random) -> Case:
    """What would be filled in, written out."""
    spec = right(drawn)
    defaults: list[tuple[str, Any]] = [
        ("/kind", "train"),
        ("/priority", 0),
        ("/checkpoint", None),
        ("/backbone/weights", None),
        ("/dataset/id", None),
        ("/training/batch_size", 128),
        ("/training/accumulate_batches", 1),
        ("/training/weight_decay_on", "weights"),
        ("/training/precision", "float32"),
        ("/training/label_smoothing", "auto"),
        ("/training/seed", 0),
        ("/training/clip_norm", None),
        ("/training/ema", None),
        ("/training/mixup", 0),
        ("/training/cutmix", 0.0),
        ("/training/limit_train_batches", None),
        ("/training/loader_workers", "auto"),
        ("/training/optimizer/nesterov", False),
        ("/training/schedule/final_factor", 0.0),
        ("/evaluation/split", "test"),
        ("/evaluation/every_epochs", 1),
        ("/checkpoints/every_seconds", 600),
        ("/checkpoints/keep_latest", 1),
        ("/trace/every_steps", 10),
        ("/resources/max_runtime_seconds", None),
        ("/swaps/0/mixer/options/combine", "alpha_beta"),
        ("/swaps/0/mixer/options/kernel_conv", 3),
    ]
    for path, value in drawn.sample(defaults, drawn.randint(1, len(defaults))):
        put(spec, path, value)
    return _case("defaults told", spec, "taken")


def at_bounds(drawn: random.Random) -> Case:
    spec = right(drawn)
    for path in drawn.sample([*INTEGERS], 4):
        put(spec, path, drawn.choice(INTEGERS[path]))
    for path in drawn.sample([*FRACTIONS], 3):
        put(spec, path, drawn.choice(FRACTIONS[path]))
    return _case("at its bounds", spec, "taken")


def odd_text(drawn: random.Random) -> Case:
    """Names in any script, as long as they may be, and as many labels."""
    spec = right(drawn)
    spec["name"] = drawn.choice(
        [drawn.choice("aé画🧠") * 200, "", *SCRIPTS, "'; DROP TABLE jobs; --", "${jndi:x}", "\u2028"]
    )
    spec["metadata"] = {drawn.choice(SCRIPTS) + str(number): "🧠" * 200 for number in range(drawn.choice([0, 1, 50]))}
    return _case("odd text", spec, "taken")


# What may be either, as long as the answer is one


def havoc(drawn: random.Random) -> Case:
    """Bytes of the text changed, cut out, doubled or moved."""
    body = bytearray(written(right(drawn)).encode())
    for _ in range(drawn.choice([1, 1, 2, 5, 30])):
        place, length = drawn.randrange(len(body)), drawn.choice([1, 1, 2, 8])
        piece = body[place : place + length]
        match drawn.randrange(4):
            case 0:
                body[place] = drawn.choice(b'0123456789-+.eE"\\{}[]:,\x00\x7f\xc3\xff ')
            case 1:
                del body[place : place + length]
            case 2:
                body[place:place] = piece
            case _:
                target = drawn.randrange(len(body))
                body[target:target] = piece
    return Case("havoc", bytes(body), "either")


def transplant(drawn: random.Random) -> Case:
    """A part of one spec in the place of another part."""
    spec, donor = right(drawn), right(drawn)
    places = ["/name", "/priority", *OBJECTS, "/swaps", *INTEGERS, *FRACTIONS, *WORDS]
    target, source = drawn.choice(places), drawn.choice(places)
    put(spec, target, at(donor, source))
    return _case("transplant", spec, "either")


KINDS: list[Callable[[random.Random], Case]] = [
    wrong_type,
    out_of_bounds,
    unknown_field,
    unknown_name,
    not_finite,
    bad_text,
    bad_field_name,
    too_long,
    too_many,
    too_deep,
    twice,
    broken_text,
    other_value,
    wrong_glob,
    contradiction,
    wrong_id,
    left_out,
    odd_evaluation,
    other_form,
    defaults_told,
    at_bounds,
    odd_text,
    havoc,
    transplant,
]
