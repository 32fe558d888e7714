"""`acmix up` and `acmix demo`: the whole service on this machine, and a first job in it."""

import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.cli.progress import follow, show_result
from service.cli.verbs import sentences
from service.client import Client, ServiceError
from service.launcher import Launcher, free_port, stop_on_signals

EXAMPLE: dict[str, Any] = {
    "name": "every layer",
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.25}},
    "swaps": [{"layers": "*", "mixer": {"name": "acmix", "options": {"heads": 4, "kernel_att": 7}}}],
    "dataset": {"name": "digits"},
}


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
    with sentences():
        launcher.run()


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
        with sentences():
            with console.status("starting the service"):
                ready.wait()
            if failure:
                raise failure[0]
            _show_a_job(console, Client(launcher.url), data)
    finally:
        launcher.stop.set()
        thread.join()


def _show_a_job(console: Console, client: Client, data: Path) -> None:
    job = client.submit(EXAMPLE)
    console.print(f"posted [bold]{job['id']}[/] to {client.url}/v1/jobs")
    follow(console, client, job["id"])
    show_result(console, client, job["id"])
    if client.job(job["id"])["status"] != "succeeded":
        raise ServiceError(f"the job did not succeed; its logs lie in {data / 'logs'}")
    for style in ("depth", "trajectory"):
        figure = data / f"traces-{style}.svg"
        figure.write_text(client.traces_svg(job["id"], style))
        console.print(f"trace figure: {figure}", soft_wrap=True)
