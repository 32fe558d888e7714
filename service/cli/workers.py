"""`acmix workers`: who is there to train, and who is to take on nothing more."""

from typing import Annotated, Any

import typer

from service.cli.verbs import DEFAULT_URL, Url, client_of, sentences

worker_verbs = typer.Typer(
    invoke_without_command=True,
    help="Who is there to train: id, host, slots at work, GPUs and labels. Drain a machine before it is worked on.",
)


@worker_verbs.callback()
def list_workers(context: typer.Context, url: Url = DEFAULT_URL) -> None:
    """Workers that are there, a line each: id, host, busy of slots, GPUs, labels, how it stands."""
    if context.invoked_subcommand is None:
        with sentences(), client_of(url) as client:
            for each in client.workers():
                print(*_worker_fields(each), sep="\t")


@worker_verbs.command()
def drain(
    worker: Annotated[str, typer.Argument(help="its id")],
    url: Url = DEFAULT_URL,
    requeue: Annotated[bool, typer.Option(help="have its jobs save and go on elsewhere, not finish there")] = False,
) -> None:
    """Have a worker take on nothing more until `resume`; prints how many of its slots are still at work."""
    with sentences(), client_of(url) as client:
        found = client.drain_worker(worker, requeue=requeue)
        print(f"{found['busy']} of {found['slots']}")


@worker_verbs.command(name="resume")
def resume_worker(worker: Annotated[str, typer.Argument(help="its id")], url: Url = DEFAULT_URL) -> None:
    """Have a drained worker take on jobs again."""
    with sentences(), client_of(url) as client:
        client.resume_worker(worker)


def _worker_fields(worker: dict[str, Any]) -> list[str]:
    """What is wrong with a GPU is told in its place."""
    devices = [
        f"{each['name']}: {each['put_aside']}" if each["put_aside"] else each["name"] for each in worker["devices"]
    ]
    stands = f"drained, jobs {worker['draining']}" if worker["draining"] else "taking jobs"
    busy = f"{worker['busy']} of {worker['slots']}"
    return [worker["id"], worker["host"], busy, ", ".join(devices) or "CPU", ",".join(worker["labels"]), stands]
