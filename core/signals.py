"""Asked to stop: finish the step, save, leave with an exit code that tells why.

0 finished    2 bad input    3 a seed diverged (on_divergence=stop)    4 an environment failed
5 the run could not be saved    128 + n told to stop by signal n
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
DIVERGED, ENVIRONMENT, UNSAVED = 3, 4, 5  # exit codes


class Stop:
    """Inside the block a signal to stop becomes `requested`; a second Ctrl-C raises KeyboardInterrupt at once.

    SIGTERM comes from schedulers and `kill`, SIGINT from Ctrl-C, SIGUSR1 from `sbatch --signal=B:USR1@120`, SIGHUP from
    a terminal that is closed; who has started the process with nohup wants it to outlive that.
    """

    def __init__(self) -> None:
        self.requested: str | None = None  # name of the first signal, or another reason
        self.advice = "the same command goes on"
        self.exit_code = 0  # what the process returns: 128 + the signal's number, or the reason's code
        self._interrupted = False  # by a first Ctrl-C, whatever was requested before it

    def ask(self, reason: str, code: int, advice: str = "the same command goes on") -> None:
        """Stop for this reason, unless there is one already."""
        if not self.requested:
            self.requested, self.exit_code, self.advice = reason, code, advice

    def __enter__(self) -> Stop:
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        with contextlib.suppress(OSError):  # print may be under way, and cannot be interrupted by itself
            os.write(2, f"\n{signal.Signals(number).name}: saving and stopping\n".encode())
        self.ask(signal.Signals(number).name, 128 + number)
