"""What is told of ranks that end together: the fault of the first, not what the others make of it."""

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from acmix.errors import Reason
from acmix.training import launch
from acmix.training.launch import CLOSING_SECONDS, Failure, RankDied, RankFailed

GONE = "Connection closed by peer"
KILLED, ASKED, CRASHED = -signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV
AT = 1_800_000_000.5


def fault(
    place: Path,
    *,
    words: Mapping[int, tuple[str, bool]] | None = None,
    codes: Sequence[tuple[int, int]] = (),
    after_seconds: float = 0,
    returncode: int = 1,
) -> RankFailed | RankDied:
    """Of two ranks that left these words and exit codes, in this order, the first so many seconds before the other."""
    for at_ns, (rank, (message, is_echo)) in enumerate((words or {}).items()):
        said = {"reason": Reason("internal", message).as_json(), "is_echo": is_echo, "at_ns": at_ns}
        (place / f"{rank}.json").write_text(json.dumps(said))
    if codes:
        failures = [Failure(rank, code, AT + after_seconds * (index > 0)) for index, (rank, code) in enumerate(codes)]
        (place / launch.FAILURES).write_text(json.dumps([asdict(failure) for failure in failures]))
    found = launch._fault(place, 2, returncode)
    assert isinstance(found, RankFailed | RankDied)
    return found


@pytest.mark.parametrize(
    ("words", "codes", "after_seconds", "told"),
    [
        ({0: (GONE, True), 1: ("a fault", False)}, [(0, 1), (1, 1)], 0, "rank 1: a fault"),
        ({0: (GONE, True)}, [(1, KILLED), (0, 1)], 0, "rank 1 of 2 was ended by SIGKILL"),
        ({0: (GONE, True)}, [(1, CRASHED), (0, 1)], 0, "rank 1 of 2 was ended by SIGSEGV"),
        ({1: ("NCCL error: /dev/shm is full", True)}, [(1, 1), (0, ASKED)], 0, "rank 1: NCCL error"),
        ({1: ("NCCL error: /dev/shm is full", True)}, [(1, 1), (0, KILLED)], CLOSING_SECONDS, "rank 1: NCCL error"),
        ({1: ("NCCL error", True), 0: (GONE, True)}, [(1, 1), (0, 1)], 0, "rank 1: NCCL error"),
        ({0: (GONE, True), 1: ("NCCL error", True)}, [(1, 1), (0, 1)], 0, "rank 1: NCCL error"),
        ({0: (GONE, True)}, [(0, 1), (1, KILLED)], 1, "rank 1 of 2 was ended by SIGKILL"),
        ({0: (GONE, True)}, [(1, 3), (0, 1)], 0, "rank 1: it left with exit code 3 and no word why"),
        ({1: ("NCCL error", True)}, [], 0, "rank 1: NCCL error"),
    ],
    ids=[
        "a fault of its own is told before an echo",
        "killed",
        "crashed",
        "it reads like an echo and was first, the other was asked to go",
        "it reads like an echo and was first, the other did not go and was killed",
        "it reads like an echo and was first, by its word",
        "it reads like an echo and was first, by its end",
        "killed, and the other was quicker to end",
        "left without a word",
        "no exit code is known",
    ],
)
def test_the_first_fault_is_told(
    tmp_path: Path,
    words: Mapping[int, tuple[str, bool]],
    codes: Sequence[tuple[int, int]],
    after_seconds: float,
    told: str,
) -> None:
    found = fault(tmp_path, words=words, codes=codes, after_seconds=after_seconds)
    assert found.message.startswith(told)


def test_a_rank_that_was_killed_says_when(tmp_path: Path) -> None:
    found = fault(tmp_path, codes=[(1, KILLED), (0, KILLED)], after_seconds=CLOSING_SECONDS)
    assert isinstance(found, RankDied)
    assert (found.rank, found.signal, found.at) == (1, signal.SIGKILL, AT)


@pytest.mark.parametrize("words", [{}, {0: (GONE, True)}], ids=["no word", "an echo"])
def test_an_agent_that_was_killed_is_a_loss_of_no_rank(tmp_path: Path, words: Mapping[int, tuple[str, bool]]) -> None:
    found = fault(tmp_path, words=words, returncode=-signal.SIGKILL)
    assert isinstance(found, RankDied)
    assert (found.rank, found.signal, found.message) == (None, signal.SIGKILL, "torchrun was ended by SIGKILL")


def test_an_agent_that_leaves_without_a_word_is_a_failure_of_no_rank(tmp_path: Path) -> None:
    found = fault(tmp_path, returncode=3)
    assert isinstance(found, RankFailed)
    assert (found.rank, found.message) == (None, "torchrun left with exit code 3 and no word why")
    assert found.reason().retryable
