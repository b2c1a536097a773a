"""Ctrl-C, SIGTERM and a closed terminal: finish the step, save a checkpoint, then stop."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from efficientnetv2.utils.logs import IS_PROGRESS

_logger = logging.getLogger(__name__)

_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none


def _stopping() -> tuple[signal.Signals, ...]:
    """The signals that ask a process to stop; not that of a closed terminal if nohup ignores it."""
    hangup = () if _HANGUP is None or signal.getsignal(_HANGUP) == signal.SIG_IGN else (_HANGUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)


@contextmanager
def _handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Within, signals call a handler; signals, and so handlers, are of the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Within, signals wait until the end, for what must not be left half done."""
    came: list[int] = []
    try:
        with _handling(_stopping(), lambda number, frame: came.append(number)):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)


@contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """Within, SIGTERM or a closed terminal raises KeyboardInterrupt, so that temporary files are removed."""
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            if number == _HANGUP:  # its second one would come in the middle of cleaning up
                signal.signal(number, signal.SIG_IGN)
            raise KeyboardInterrupt
        # A process forked off with this handler ends as it would have without.
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    with _handling([number for number in _stopping() if number != signal.SIGINT], stop):
        yield


class GracefulStop:
    """Within, the first signal asks the run to stop after this step; a second one stops it at once.

    A closed terminal sends its signal several times, which counts once. With ``launched``, no further signal counts:
    launchers signal their processes several times, and kill them in the end.
    """

    def __init__(self, *, launched: bool = False) -> None:
        self.requested, self._launched = False, launched
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._logged = threading.Event()
        self._terminals: list[int] = []

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _stopping()}
            self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
        if self.requested:
            self._logged.wait()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A process that reads images is forked off with this handler, until it sets one of its own.
        if os.getpid() != self._process:
            return
        if number == _HANGUP:  # send further output nowhere, as writing to a closed terminal is an error
            null = os.open(os.devnull, os.O_WRONLY)
            for stream in self._terminals:
                os.dup2(null, stream)
            os.close(null)
        if self.requested:
            return
        self.requested = True
        line = "Stopping after this step, with a checkpoint."
        if not self._launched:
            self._restore(but=_HANGUP)
            line += " Once more stops at once, without one."
        # A signal may come in the middle of writing a line, which the screen would then write again with this one; so
        # another thread logs it. (Starting a ``threading.Thread`` takes locks that the interrupted code may hold.)
        _thread.start_new_thread(self._log, (line,))

    def _log(self, line: str) -> None:
        try:
            _logger.info(line, extra={IS_PROGRESS: True})  # shown where a cross-validation hides other lines
        finally:
            self._logged.set()

    def _restore(self, but: int | None = None) -> None:
        for number in [number for number in self._before if number != but]:
            signal.signal(number, self._before.pop(number))


class WorkerDeath:
    """PyTorch's error about a killed data loader process, raised between steps alone.

    PyTorch raises it from a SIGCHLD handler, wherever the main thread is: in the middle of a checkpoint, say. (While
    the main thread waits for images, PyTorch also looks every 5 s, and raises an error there.)
    """

    def __init__(self) -> None:
        self._pending: str | None = None
        self._handler: Callable[[int, FrameType | None], Any] | None = None

    def __enter__(self) -> WorkerDeath:
        return self

    def __exit__(self, *error: object) -> None:
        if self._handler is not None and signal.getsignal(signal.SIGCHLD) == self._note:
            signal.signal(signal.SIGCHLD, self._handler)
        self._handler = None

    def defer(self) -> None:
        """From now on, wait for ``raise_pending``; called once PyTorch has set its handler, with the first loader."""
        if self._handler is None and hasattr(signal, "SIGCHLD"):
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler) and threading.current_thread() is threading.main_thread():
                self._handler = handler
                signal.signal(signal.SIGCHLD, self._note)

    def raise_pending(self) -> None:
        """Raise PyTorch's RuntimeError if a process was killed meanwhile."""
        pending, self._pending = self._pending, None
        if pending is not None:
            raise RuntimeError(pending)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._handler is not None:
            try:
                self._handler(number, frame)
            except RuntimeError as error:
                self._pending = str(error)
