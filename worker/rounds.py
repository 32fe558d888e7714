"""A thread that does what there is to do, round after round."""

import threading


class Rounds:
    """Looks when it is rung for, and every so often by itself, until it is drained.

    Children are tied to the thread that starts them: this one outlives them all.
    """

    def __init__(self, name: str) -> None:
        self._rung = threading.Event()
        self._draining = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        self._rung.set()

    def drain(self) -> None:
        """Begin nothing more."""
        self._draining.set()
        self._rung.set()

    def stop(self) -> None:
        """Wait for its end, some seconds at most."""
        if self._thread.is_alive():
            self._thread.join(5)

    def _loop(self) -> None:
        raise NotImplementedError

    def _wait(self, seconds: float) -> None:
        """For a ring, at most so long."""
        self._rung.wait(seconds)
        self._rung.clear()
