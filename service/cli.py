"""The command line: `acmix up`, `acmix demo`, and a client's few verbs."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from acmix.formats import FORMATS
from service import plan_table, settings
from service.cli_backup import backup, restore_
from service.cli_keys import key_verbs, tenant_verbs
from service.cli_migrate import migrate
from service.client import Client, RequestRefused, ServiceError
from service.launcher import Launcher, LaunchFailed, free_port, stop_on_signals
from service.settings import SettingInvalid

DEFAULT_URL = "http://127.0.0.1:8000"
EXAMPLE = {
    "name": "every layer",
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.25}},
    "swaps": [{"layers": "*", "mixer": {"name": "acmix", "options": {"heads": 4, "kernel_att": 7}}}],
    "dataset": {"name": "digits"},
}

main = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # of an error that nobody foresaw, older versions print every variable, secrets too
    help="Train vision models with ACmix layers.",
)
Url = Annotated[str, typer.Option(envvar="ACMIX_URL", help="where the service is")]


@main.command()
def up(
    host: Annotated[
        str, typer.Option(help="the address to bind; one that others can reach once there is an API key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    data: Annotated[Path, typer.Option(help="database, artifacts and logs lie in this one folder")] = Path("data"),
    workers: Annotated[int, typer.Option(min=1, max=64, help="worker processes; one drives all GPUs of a machine")] = 1,
) -> None:
    """Start the whole service on this machine; Ctrl-C ends it, and running jobs go on at the next start."""
    launcher = Launcher(
        host, port, data.resolve(), workers, on_ready=lambda url: print(f"acmix is up at {url}", flush=True)
    )
    stop_on_signals(launcher.stop)
    with _sentences():
        launcher.run()


@main.command()
def demo() -> None:
    """Start everything on free ports, train the example over HTTP, show what came out, and end everything."""
    console = Console()
    data = Path(tempfile.mkdtemp(prefix="acmix-demo-"))
    ready, failure = threading.Event(), []
    launcher = Launcher("127.0.0.1", free_port(), data, 1, on_ready=lambda _: ready.set())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: it breaks off whatever waits for the service

    def launch() -> None:
        try:
            launcher.run()
        except Exception as error:
            failure.append(error)
        finally:
            ready.set()

    # the children are tied to the thread that starts them: it lives until they have ended
    thread = threading.Thread(target=launch)
    thread.start()
    try:
        with _sentences():
            with console.status("starting the service"):
                ready.wait()
            if failure:
                raise failure[0]
            _show_a_job(console, Client(launcher.url), data)
    finally:
        launcher.stop.set()
        thread.join()


@main.command()
def submit(
    spec: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a JSON file: the body of POST /v1/jobs")],
    url: Url = DEFAULT_URL,
    watch: Annotated[bool, typer.Option(help="stay and show its progress")] = False,
) -> None:
    """Post a job; prints its id."""
    with _sentences():
        client = _client(url)
        job = client.submit(_json_of(spec))
        print(job["id"])
        if watch:
            _follow(Console(stderr=True), client, job["id"])


@main.command()
def plan(
    spec: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="a JSON file: the body of POST /v1/jobs or /v1/plans")
    ],
    num_classes: Annotated[int | None, typer.Option(help="in place of what the data set gives")] = None,
    image_px: Annotated[int | None, typer.Option(help="in place of what the data set gives")] = None,
    json_: Annotated[bool, typer.Option("--json", help="the figures as JSON")] = False,
) -> None:
    """What a job would take, layer by layer, before anything is trained. Made on this machine, without a service."""
    with _sentences():
        planned = _planned(spec, num_classes=num_classes, image_px=image_px)
        print(json.dumps(planned, indent=1)) if json_ else plan_table.show(Console(), planned)


@main.command()
def watch(job: str, url: Url = DEFAULT_URL) -> None:
    """Show a job's progress until it ends, then its result."""
    with _sentences():
        client, console = _client(url), Console()
        _follow(console, client, job)
        _print_result(console, client, job)


@main.command()
def cancel(job: str, url: Url = DEFAULT_URL) -> None:
    """End a job; what it has stored stays."""
    with _sentences():
        print(_client(url).cancel(job)["status"])


@main.command()
def pause(job: str, url: Url = DEFAULT_URL) -> None:
    """Have a job give its device back until it is resumed."""
    with _sentences():
        paused = _client(url).pause(job)
        print("pausing" if paused["requested"] == "pause" else paused["status"])


@main.command()
def resume(job: str, url: Url = DEFAULT_URL) -> None:
    """Queue a paused job again; it goes on where it was."""
    with _sentences():
        print(_client(url).resume(job)["status"])


@main.command()
def retry(job: str, url: Url = DEFAULT_URL) -> None:
    """Do an ended job again, from its start; prints the new one's id."""
    with _sentences():
        print(_client(url).retry(job)["id"])


@main.command()
def predict(
    checkpoint: Annotated[str, typer.Argument(help="the id of a checkpoint, ckpt_...")],
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a JPEG, PNG, WebP, BMP or TIFF file")],
    url: Url = DEFAULT_URL,
    min_score: Annotated[float, typer.Option(help="of detection: objects of a lower score are left out")] = 0.5,
    drawn: Annotated[Path | None, typer.Option(dir_okay=False, help="draw it on the image, into this PNG")] = None,
) -> None:
    """What a checkpoint names in an image, as JSON; or drawn on it."""
    with _sentences():
        client = _client(url)
        if drawn:
            drawn.write_bytes(client.predict_drawn(checkpoint, image, min_score=min_score))
        else:
            print(json.dumps(client.predict(checkpoint, image, min_score=min_score), indent=1))


@main.command()
def download(
    checkpoint: Annotated[str, typer.Argument(help="the id of a checkpoint, ckpt_...")],
    target: Annotated[Path | None, typer.Argument(dir_okay=False, help="the file to write")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a checkpoint's weights to a safetensors file, CHECKPOINT.safetensors if none is named."""
    with _sentences():
        file = target or Path(f"{checkpoint}.safetensors")
        found = _client(url).download_checkpoint(checkpoint, file)
        print(file, found["size_bytes"], found["sha256"], sep="\t")


@main.command()
def convert(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="what the authors' scripts saved")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="the safetensors file to write")],
    backbone: Annotated[str | None, typer.Option(help="what it must hold, such as resnet50 or swin_tiny")] = None,
) -> None:
    """Make a checkpoint of the paper's authors, a ResNet or a Swin, a file that `weights upload` takes."""
    command = [sys.executable, "-m", "acmix", "convert", str(source), str(target)]
    command += ["--backbone", backbone] if backbone else []
    raise typer.Exit(subprocess.run(command, check=False).returncode)


weights_verbs = typer.Typer(no_args_is_help=True, help="Files that jobs can start from.")
main.add_typer(weights_verbs, name="weights")


@weights_verbs.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a safetensors file")],
    url: Url = DEFAULT_URL,
    name: Annotated[str, typer.Option(help="what to call it")] = "",
) -> None:
    """Upload weights; prints the id that a spec's `backbone.weights` takes."""
    with _sentences():
        print(_client(url).upload_weights(file, name=name or file.name[:200])["id"])


@weights_verbs.command(name="list")
def list_weights(url: Url = DEFAULT_URL) -> None:
    """Uploaded weights, newest first, a line each: id, numbers, name."""
    with _sentences():
        for each in _client(url).weights():
            print(each["id"], each["params"], each["name"], sep="\t")


@weights_verbs.command()
def delete(weights: str, url: Url = DEFAULT_URL) -> None:
    """Delete uploaded weights; refused while a job that has not ended starts from them."""
    with _sentences():
        _client(url).delete_weights(weights)


main.command()(backup)
main.command(name="restore")(restore_)
main.command()(migrate)
main.add_typer(key_verbs, name="keys")
main.add_typer(tenant_verbs, name="tenants")
datasets_verbs = typer.Typer(no_args_is_help=True, help="Your own data.")
main.add_typer(datasets_verbs, name="datasets")


@datasets_verbs.command()
def create(
    name: Annotated[str, typer.Argument(help="what to call it")],
    task: Annotated[str, typer.Option(help=", ".join(FORMATS))],
    format_: Annotated[str, typer.Option("--format", help=", ".join(each for own in FORMATS.values() for each in own))],
    url: Url = DEFAULT_URL,
    options: Annotated[str, typer.Option(help="a JSON object: what the format takes beside the files")] = "{}",
    sha256: Annotated[str | None, typer.Option(help="of the archive to come; another one is rejected")] = None,
    path: Annotated[
        str | None, typer.Option(help="a folder below the service's data root, instead of an upload")
    ] = None,
) -> None:
    """Declare a data set; prints its id, which `datasets upload` takes."""
    with _sentences(), _client(url) as client:
        given = {"options": _json_object(options, "--options"), "sha256": sha256, "path": path}
        print(client.create_dataset(name, task=task, format_=format_, **given)["id"])


@datasets_verbs.command(name="upload")
def upload_dataset(
    dataset: Annotated[str, typer.Argument(help="its id")],
    archive: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="a zip, tar, tar.gz or tar.zst")],
    url: Url = DEFAULT_URL,
    watch: Annotated[
        bool, typer.Option(help="stay until it has been checked; exit status 1 if it is rejected")
    ] = False,
) -> None:
    """Upload the archive, part by part: the same command again goes on where it was cut off. Prints the status."""
    console = Console(stderr=True)
    with _sentences(), _client(url) as client:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            line = bar.add_task("uploading", total=archive.stat().st_size)
            found = client.upload_dataset(
                dataset, archive, on_progress=lambda done, _of: bar.update(line, completed=done)
            )
        if watch:
            with console.status("waiting for the check") as status:
                found = client.wait_dataset(dataset, lambda stand: status.update(_check_stand(stand)))
        print(found["status"])
        if found["status"] == "rejected":
            raise ServiceError(_why_rejected(found))


@datasets_verbs.command(name="list")
def list_datasets(url: Url = DEFAULT_URL) -> None:
    """Data sets, newest first, a line each: id, status, task, format, name."""
    with _sentences(), _client(url) as client:
        for each in client.datasets():
            print(*(each[field] for field in ("id", "status", "task", "format", "name")), sep="\t")


@datasets_verbs.command()
def show(dataset: str, url: Url = DEFAULT_URL) -> None:
    """All that is known of a data set, as JSON."""
    with _sentences(), _client(url) as client:
        print(json.dumps(client.dataset(dataset), indent=1))


@datasets_verbs.command(name="delete")
def delete_dataset(dataset: str, url: Url = DEFAULT_URL) -> None:
    """Delete a data set; refused while it is being checked, or a job that has not ended reads it."""
    with _sentences(), _client(url) as client:
        client.delete_dataset(dataset)


worker_verbs = typer.Typer(
    invoke_without_command=True,
    help="Who is there to train: id, host, slots at work, GPUs and labels. Drain a machine before it is worked on.",
)
main.add_typer(worker_verbs, name="workers")


@worker_verbs.callback()
def list_workers(context: typer.Context, url: Url = DEFAULT_URL) -> None:
    """Workers that are there, a line each: id, host, busy of slots, GPUs, labels, how it stands."""
    if context.invoked_subcommand is None:
        with _sentences(), _client(url) as client:
            for each in client.workers():
                print(*_worker_fields(each), sep="\t")


@worker_verbs.command()
def drain(
    worker: Annotated[str, typer.Argument(help="its id")],
    url: Url = DEFAULT_URL,
    requeue: Annotated[bool, typer.Option(help="have its jobs save and go on elsewhere, not finish there")] = False,
) -> None:
    """Have a worker take on nothing more until `resume`; prints how many of its slots are still at work."""
    with _sentences(), _client(url) as client:
        found = client.drain_worker(worker, requeue=requeue)
        print(f"{found['busy']} of {found['slots']}")


@worker_verbs.command(name="resume")
def resume_worker(worker: Annotated[str, typer.Argument(help="its id")], url: Url = DEFAULT_URL) -> None:
    """Have a drained worker take on jobs again."""
    with _sentences(), _client(url) as client:
        client.resume_worker(worker)


def _worker_fields(worker: dict[str, Any]) -> list[str]:
    """What is wrong with a GPU is told in its place."""
    devices = [
        f"{each['name']}: {each['put_aside']}" if each["put_aside"] else each["name"] for each in worker["devices"]
    ]
    stands = f"drained, jobs {worker['draining']}" if worker["draining"] else "taking jobs"
    busy = f"{worker['busy']} of {worker['slots']}"
    return [worker["id"], worker["host"], busy, ", ".join(devices) or "CPU", ",".join(worker["labels"]), stands]


def _check_stand(dataset: dict[str, Any]) -> str:
    progress = dataset["progress"]
    if not progress:
        return "waiting for the check"
    return f"{progress['phase']}: {progress['done']}" + (f" of {progress['of']}" if progress["of"] else "")


def _why_rejected(dataset: dict[str, Any]) -> str:
    """A line a fault; the service's own reason where it could not check it."""
    if dataset["status_reason"]:
        return str(dataset["status_reason"]["message"])
    faults, total = dataset["faults"] or [], dataset["faults_total"] or 0
    lines = [f"{fault['file']}: {fault['message']}" if fault["file"] else fault["message"] for fault in faults]
    more = [f"and {total - len(lines)} more"] if total > len(lines) else []
    return "\n".join([f"{total} faults" if total != 1 else "1 fault", *lines, *more])


def _show_a_job(console: Console, client: Client, data: Path) -> None:
    job = client.submit(EXAMPLE)
    console.print(f"posted [bold]{job['id']}[/] to {client.url}/v1/jobs")
    _follow(console, client, job["id"])
    _print_result(console, client, job["id"])
    if client.job(job["id"])["status"] != "succeeded":
        raise ServiceError(f"the job did not succeed; its logs lie in {data / 'logs'}")
    for style in ("depth", "trajectory"):
        figure = data / f"traces-{style}.svg"
        figure.write_text(client.traces_svg(job["id"], style))
        console.print(f"trace figure: {figure}", soft_wrap=True)


def _follow(console: Console, client: Client, job_id: str) -> None:
    """A progress bar from the job's stream of events, until it has ended."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("queued", total=1.0)
        for event in client.follow(job_id):
            _advance(bar, task, event)


def _advance(bar: Progress, task: Any, event: dict[str, Any]) -> None:
    data = event["data"]
    if event["type"] == "progress" and data.get("steps"):
        bar.update(task, completed=data["step"], total=data["steps"], description=_stand(data))
    elif event["type"] == "evaluation":
        bar.console.print(f"epoch {data['epoch']}  {event['message']}", highlight=False)
    elif event["type"] in ("status", "warning"):
        bar.update(task, description=event["message"])


def _stand(progress: dict[str, Any]) -> str:
    return f"{progress['phase']}, {progress['epoch']} of {progress['epochs']} epochs done"


def _print_result(console: Console, client: Client, job_id: str) -> None:
    job, results = client.job(job_id), client.results(job_id)
    console.print(f"[bold]{job['status']}[/]", end="  ")
    if job["status_reason"]:
        console.print(job["status_reason"]["message"], highlight=False, markup=False)
    if results["final"]:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in results["final"]["metrics"].items())
        console.print(f"test of the best checkpoint (epoch {job['best']['epoch']}): {figures}", highlight=False)
    _print_traces(console, client.traces(job_id)["layers"])


def _print_traces(console: Console, layers: list[dict[str, Any]]) -> None:
    """A row a layer, in depth order: alpha and beta at the last traced step, and what the layer leans on."""
    if not layers:
        return
    table = Table(title=f"after step {layers[0]['step'][-1]}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", no_wrap=True)
    for name in ("alpha", "beta", "alpha/beta", "rms att.", "rms conv."):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("leans on", no_wrap=True)
    for layer in layers:
        alpha, beta, *rms = (_last(layer[name]) for name in ("alpha", "beta", "attention_rms", "convolution_rms"))
        ratio = abs(alpha / beta) if beta else math.inf
        figures = (f"{value:.3f}" for value in (alpha, beta, ratio, *rms))
        table.add_row(layer["layer"], *figures, _leaning(ratio))
    console.print(table)


def _leaning(ratio: float) -> str:
    if math.isnan(ratio):
        return "-"
    return "[dark_orange3]attention[/]" if ratio > 1 else "[blue]convolution[/]"


def _last(values: list[float | None]) -> float:
    """A figure that was not finite is null in JSON."""
    return math.nan if values[-1] is None else values[-1]


def _planned(spec: Path, **assumed: int | None) -> dict[str, Any]:
    """The plan of a spec, asked of the library in a process of its own: torch is never loaded in this one."""
    command = [sys.executable, "-m", "acmix", "plan", str(spec)]
    for name, value in assumed.items():
        command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ServiceError(
            f"no plan could be made; the library, which acmix-service[train] installs, said: {last}"
        ) from None
    if "problems" in answer:
        raise ServiceError("\n".join(f"{fault['pointer'] or spec}: {fault['message']}" for fault in answer["problems"]))
    planned: dict[str, Any] = answer["plan"]
    return planned


def _json_of(path: Path) -> dict[str, Any]:
    return _json_object(path.read_text(), str(path))


def _json_object(text: str, named: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ServiceError(f"{named} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ServiceError(f"{named} must hold a JSON object")
    return body


def _client(url: str) -> Client:
    return Client(url, key=settings.api_key())


@contextmanager
def _sentences() -> Iterator[None]:
    """What the user can mend is told in a sentence, without a stack trace; exit status 1."""
    try:
        yield
    except (ServiceError, LaunchFailed, SettingInvalid) as error:
        is_for_a_key = isinstance(error, RequestRefused) and error.status == httpx.codes.UNAUTHORIZED
        print(f"acmix: {error}{'; ACMIX_API_KEY is where it is taken from' if is_for_a_key else ''}", file=sys.stderr)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        os._exit(1)
