"""What the stand-in for training computes: each step's state is the hash of the one before."""

import hashlib

START = "0" * 64
SAVE_EVERY = 5


def following(chain: str) -> str:
    return hashlib.sha256(chain.encode()).hexdigest()


def value_of(chain: str) -> float:
    """What is told of a state as its loss."""
    return int(chain[:6], 16) / 2**24


def losses(steps: int) -> list[float]:
    """Those of an undisturbed run, step 1 first."""
    found, chain = [], START
    for _ in range(steps):
        chain = following(chain)
        found.append(value_of(chain))
    return found
