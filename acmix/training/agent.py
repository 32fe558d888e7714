"""torchrun on this machine alone: `python -m acmix.training.agent PARENT RANKS FOLDER ARGUMENTS...`.

Every rank is `python -m acmix ARGUMENTS...`, and ends when this process does, however that is. What they say on stderr
is passed on with its rank before each line.
"""

import json
import os
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from acmix import tether
from acmix.training.launch import FAILURES


def main(argv: list[str]) -> int:
    parent, ranks, folder, *arguments = argv
    tether.to_parent(int(parent))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(ranks),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # the next attempt begins from a checkpoint, and the service counts it
        logs_specs=DefaultLogsSpecs(str(Path(folder) / "logs"), tee=Std.ERR),
        log_line_prefix_template="[rank ${rank}] ",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "acmix", *arguments, "--tether", str(os.getpid()))
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        (Path(folder) / FAILURES).write_text(json.dumps(codes))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
