"""The library by hand: `python -m acmix run spec.json --folder DIR`; or predict, plan, convert, inspect, catalog."""

import argparse
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from acmix import spec, tether
from acmix.errors import AcmixError, Problem, Reason
from acmix.events import Event, status, warning
from acmix.inspection import command as inspection
from acmix.spec import JobSpec
from acmix.training import launch

log = logging.getLogger("acmix")


def main() -> int:
    arguments = _arguments()
    if arguments.tether:
        tether.to_parent(arguments.tether)
    events_out = _keep_stdout_for_events()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if arguments.command == "catalog":
        return _catalog(events_out)
    if arguments.command == "convert":
        return _convert(arguments, events_out)
    if arguments.command == "inspect":
        return inspection.run(arguments, events_out)
    if arguments.command == "predict":
        return _predict(arguments, events_out)
    if arguments.command == "plan":
        return _plan(arguments, events_out)
    return _run(arguments, events_out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m acmix", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train as a spec says; events as JSON lines on stdout, a log on stderr")
    run.add_argument("spec", type=Path, help="a JSON file: the body of POST /v1/jobs")
    run.add_argument("--folder", type=Path, required=True, help="where checkpoints go; run again, it resumes from them")
    run.add_argument("--data-root", type=Path, default=Path("datasets"), help="where data sets with files lie")
    run.add_argument("--weights", type=Path, help="a safetensors file to start from, as an id in the spec stands for")
    run.add_argument("--dataset-folder", type=Path, help="the files of the data set that an id in the spec stands for")
    plan = commands.add_parser("plan", help="what a spec's model takes, by layer, as one line of JSON on stdout")
    plan.add_argument("spec", type=Path, nargs="?", help="a JSON file: the body of POST /v1/jobs or /v1/plans")
    plan.add_argument("--num-classes", type=int, help="in place of what the data set gives")
    plan.add_argument("--image-px", type=int, help="in place of what the data set gives")
    plan.add_argument("--serve", action="store_true", help="answer requests on stdin, one JSON object a line")
    predict = commands.add_parser("predict", help="what a checkpoint names in an image, as one line of JSON on stdout")
    predict.add_argument("checkpoint", type=Path, nargs="?", help="a checkpoint's safetensors file")
    predict.add_argument("image", type=Path, nargs="?", help="a JPEG, PNG, WebP, BMP or TIFF file")
    predict.add_argument("--min-score", type=float, default=0.5, help="objects of a lower score are left out")
    predict.add_argument("--drawn", type=Path, metavar="PNG", help="draw what was named on the image, into this file")
    predict.add_argument("--serve", action="store_true", help="answer requests on stdin, one JSON object a line")
    convert = commands.add_parser("convert", help="make a checkpoint of the paper's authors a safetensors file of ours")
    convert.add_argument("source", type=Path, help="what their training scripts saved: a ResNet or a Swin")
    convert.add_argument("target", type=Path, help="the safetensors file to write")
    convert.add_argument("--backbone", help="what it must hold, such as resnet50 or swin_tiny; else whatever it is")
    inspect = commands.add_parser("inspect", help="unpack and look into a data set; a report as JSON, the last line")
    inspection.add_arguments(inspect)
    catalog = commands.add_parser("catalog", help="what specs can name here, as one line of JSON on stdout")
    for command in (run, predict, plan, convert, inspect, catalog):
        command.add_argument("--tether", type=int, metavar="PID", help="end when the parent, this process, ends")
    arguments = parser.parse_args()
    if arguments.command == "plan" and (arguments.spec is None) != arguments.serve:
        plan.error("name a spec, or --serve")
    if arguments.command == "predict" and (arguments.image is None) != arguments.serve:
        predict.error("name a checkpoint's file and an image, or --serve")
    return arguments


def _keep_stdout_for_events() -> TextIO:
    """Move stdout aside: what a library prints goes to stderr and cannot break a line of JSON."""
    events_out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events_out


def _catalog(out: TextIO) -> int:
    from acmix import menu
    from acmix.training.run import versions

    card = {
        "catalog": menu.catalog().model_dump(mode="json"),
        "devices": [device.model_dump() for device in menu.devices()],
        "versions": versions(),
    }
    out.write(json.dumps(card) + "\n")
    return 0


def _plan(arguments: argparse.Namespace, out: TextIO) -> int:
    """Exit status 1 where there can be no plan, as the problems say."""
    if arguments.serve:
        from acmix.planning.requests import serve

        return _serve(serve, out)
    try:
        request = json.loads(arguments.spec.read_text())
    except (OSError, ValueError) as error:
        message = f"{arguments.spec} cannot be read as JSON: {error}"
        out.write(json.dumps({"problems": [Problem("", "malformed", message).as_json()]}) + "\n")
        return 1
    from acmix.planning.requests import answer

    answered = answer(_with_assumed(request, arguments))
    out.write(json.dumps({key: value for key, value in answered.items() if key != "resolved_spec"}) + "\n")
    return 0 if "plan" in answered else 1


def _with_assumed(request: Any, arguments: argparse.Namespace) -> Any:
    """The request with what the command line assumes; one that is no request stays as it is."""
    assumed = {"num_classes": arguments.num_classes, "image_px": arguments.image_px}
    given = {name: value for name, value in assumed.items() if value is not None}
    before = request.get("assume", {}) if isinstance(request, dict) else None
    return {**request, "assume": {**before, **given}} if given and isinstance(before, dict) else request


def _predict(arguments: argparse.Namespace, out: TextIO) -> int:
    """Exit status 1 where nothing can be predicted, as the error says."""
    from acmix.prediction.requests import answer, serve

    if arguments.serve:
        return _serve(serve, out)
    asked = {name: getattr(arguments, name) for name in ("checkpoint", "image", "min_score", "drawn")}
    answered = answer(json.dumps(asked, default=str))
    out.write(json.dumps(answered) + "\n")
    return 0 if "prediction" in answered else 1


def _serve(serve: Callable[[Iterable[str], Callable[[str], object]], None], out: TextIO) -> int:
    """Requests on stdin, answers on stdout, a line each."""
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # a file, as any process's is
    serve(sys.stdin, lambda line: out.write(line + "\n"))
    return 0


def _convert(arguments: argparse.Namespace, out: TextIO) -> int:
    """Exit status 1 where the file cannot be converted, as one sentence on stderr says; then nothing is written."""
    try:
        from acmix.convert import convert

        found = convert(arguments.source, arguments.target, backbone=arguments.backbone)
    except (AcmixError, OSError) as error:
        log.error("%s", error)
        return 1
    out.write(json.dumps(found.about()) + "\n")
    return 0


def _run(arguments: argparse.Namespace, out: TextIO) -> int:
    """Exit status 0: succeeded, or stopped when asked; 1: failed, as the last event says.

    Where one of several processes that train together dies of a signal, this one does too.
    """
    faulthandler.enable()  # where it stood goes to the log, should it crash
    is_rank = launch.is_rank()
    if "ACMIX_JOB" in os.environ:
        names = ("ACMIX_ATTEMPT", "ACMIX_JOB", "ACMIX_REQUEST_ID")
        log.info("attempt %s of %s, posted by request %s", *(os.environ.get(name, "unknown") for name in names))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        job = spec.read(arguments.spec)
        if is_rank:
            launch.register(arguments.folder)
        run = _runner(job, arguments.folder)
        given = {"data_root": arguments.data_root, "weights_file": arguments.weights}
        for event in run(job, arguments.folder, **given, dataset_folder=arguments.dataset_folder, stop=stop):
            _tell(event, out)
    except launch.RankDied as error:
        seconds_ago = max(0.0, time.time() - error.at)
        _tell(warning("rank_died", error.message, **_rank_told(error), seconds_ago=seconds_ago), out)
        launch.die_of(error.signal)
    except Exception as error:
        reason = _reason(error)
        if is_rank:
            log.error("%s", reason.message)
            launch.leave_word(arguments.folder, reason, error)
        else:
            _tell(status("failed", reason.message, reason=reason.as_json(), **_rank_told(error)), out)
        return 1
    return 0


def _runner(job: JobSpec, folder: Path) -> Callable[..., Iterator[Event]]:
    """What runs the spec: this process, or as many further ones as it asks for. Asked where it stands, each tells."""
    if job.resources.ranks > 1 and not launch.is_rank():
        signal.signal(signal.SIGUSR1, lambda number, _: launch.pass_on(folder, number))
        return launch.launched
    faulthandler.register(signal.SIGUSR1)
    from acmix.training.run import run
    from acmix.uncompiled import spare_the_compiler

    spare_the_compiler()
    return run


def _tell(event: Event, out: TextIO) -> None:
    out.write(event.to_line() + "\n")
    if event.type not in ("metrics", "trace") and not launch.is_rank():  # who hears the ranks logs it
        log.info("%s: %s", event.type, event.message)


def _rank_told(error: Exception) -> dict[str, int]:
    """The `rank` of an event, where one is to blame; else nothing."""
    rank = error.rank if isinstance(error, launch.RankFailed | launch.RankDied) else None
    return {} if rank is None else {"rank": rank}


def _reason(error: Exception) -> Reason:
    """Log the trace of what is our fault, not of what the user can mend."""
    if isinstance(error, AcmixError):
        return error.reason()
    log.exception("the run ended with an error of its own")
    from acmix.training.run import reason_of

    return reason_of(error)


if __name__ == "__main__":
    sys.exit(main())
