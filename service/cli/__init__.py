"""The command line: `acmix up`, `acmix demo`, a client's few verbs, and those that work on the stores."""

import typer

from service.cli import backup, checkpoints, datasets, jobs, keys, migrate, up, weights, workers

main = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # of an error that nobody foresaw, older versions print every variable, secrets too
    help="Train vision models with ACmix layers.",
)
main.command()(up.up)
main.command()(up.demo)
for verb in (jobs.submit, jobs.plan, jobs.watch, jobs.cancel, jobs.pause, jobs.resume, jobs.retry):
    main.command()(verb)
main.command()(checkpoints.predict)
main.command()(checkpoints.download)
main.command()(weights.convert)
main.command()(backup.backup)
main.command(name="restore")(backup.restore_)
main.command()(migrate.migrate)
main.add_typer(weights.weights_verbs, name="weights")
main.add_typer(keys.key_verbs, name="keys")
main.add_typer(keys.tenant_verbs, name="tenants")
main.add_typer(datasets.dataset_verbs, name="datasets")
main.add_typer(workers.worker_verbs, name="workers")
