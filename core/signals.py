"""Asked to stop: finish the step, save, leave with the signal's exit code."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Inside the block a signal to stop becomes `requested`; Ctrl-C after that raises KeyboardInterrupt at once.

    SIGTERM comes from schedulers and `kill`, SIGINT from Ctrl-C, SIGUSR1 from `sbatch --signal=B:USR1@120`.
    """

    def __init__(self) -> None:
        self.requested: str | None = None  # name of the first signal

    @property
    def exit_code(self) -> int:
        """What a process that was told to stop returns: 128 + the signal's number; 0 if it was not."""
        return 128 + signal.Signals[self.requested] if self.requested else 0

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name
