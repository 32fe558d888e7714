"""torchrun on this machine alone: `python -m acmix.training.agent PARENT RANKS FOLDER ARGUMENTS...`.

Every rank is `python -m acmix ARGUMENTS...`, and ends when this process does, however that is. What they say on stderr
is passed on with its rank before each line.
"""

import json
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from acmix import tether
from acmix.training.launch import FAILURES, Failure


class FirstToFail:
    """The first child that ends and does not succeed: torchrun looks only every so often, and may then find several."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.at = 0.0
        if sys.platform == "linux":
            signal.signal(signal.SIGCHLD, self._look)

    def _look(self, *_: object) -> None:
        """Who ended stays for torchrun to find."""
        if self.pid is None and sys.platform == "linux":
            with suppress(ChildProcessError):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended and ended.si_status:
                    self.pid, self.at = ended.si_pid, time.time()


def main(argv: list[str]) -> int:
    parent, ranks, folder, *arguments = argv
    tether.to_parent(int(parent))
    first = FirstToFail()
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
        failures = [
            Failure(rank, each.exitcode, first.at if each.pid == first.pid else each.timestamp)
            for rank, each in sorted(error.failures.items(), key=lambda found: found[1].pid != first.pid)
        ]
        (Path(folder) / FAILURES).write_text(json.dumps([asdict(failure) for failure in failures]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
