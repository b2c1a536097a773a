"""Signals stop a run after its step, also if a launcher repeats them."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from tests.log_lines import logged_lines
from tests.messages import each_mentions

from efficientnetv2.cli.console import Screen
from efficientnetv2.training.signals import GracefulStop, defer_signals, signals_as_ctrl_c
from efficientnetv2.utils.logs import hushed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_launcher_may_repeat_a_signal(number):
    said = logged_lines()
    with GracefulStop(launched=True) as interruption:
        assert not interruption.requested
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert interruption.requested
    assert each_mentions(said, ("checkpoint", "step"))


_CLOSED = """
import logging, signal, sys
from efficientnetv2.training.signals import GracefulStop
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # though the tests are run under nohup
logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)
with GracefulStop() as interruption:
    if sys.argv[2:]:
        signal.raise_signal(signal.Signals[sys.argv[2]])
    print("at work", flush=True)
    signal.sigwait({signal.SIGUSR1})
    for _ in range(2):  # its shell hands it on, and the system sends it as the shell ends
        signal.raise_signal(signal.SIGHUP)
    for _ in range(3):
        print("still at work", flush=True)
    open(sys.argv[1], "w").write(str(interruption.requested))
"""


@pytest.mark.parametrize("before", [[], ["SIGINT"]], ids=["at once", "after Ctrl-C"])
def test_closed_terminal_stops_the_run_after_its_step(before, tmp_path):
    """Writing to a closed terminal is an error, which must not prevent the checkpoint."""
    ours, theirs = os.openpty()
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
    program = [sys.executable, "-c", block + _CLOSED, str(tmp_path / "done"), *before]
    running = subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    told = b""
    # Two threads write the two lines. A thread that writes while the terminal closes fails.
    while told.count(b"\n") < 1 + len(before):
        told += os.read(ours, 100)
    os.close(ours)
    running.send_signal(signal.SIGUSR1)
    assert running.wait(timeout=60) == 0
    assert (tmp_path / "done").read_text() == "True"


def test_closed_terminal_does_not_stop_a_run_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop() as interruption, defer_signals(), signals_as_ctrl_c():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not interruption.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_repeated_hangup_does_not_interrupt_the_cleanup():
    def heed(number, frame):
        raise AssertionError("it is ignored until all is done")

    before, done = signal.signal(signal.SIGHUP, heed), []

    def work():
        with signals_as_ctrl_c():
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGHUP)
                done.append("cleaned up")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(signal.SIGHUP) == heed
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done == ["cleaned up"]


def test_second_ctrl_c_stops_immediately():
    said = logged_lines()

    def interrupted_twice():
        with GracefulStop():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert len(said) == 1
    assert "Once more" in said[0]


def test_first_ctrl_c_is_announced_while_other_lines_are_hidden(caplog):
    """As in the folds after the first; unannounced, a second Ctrl-C would lose the checkpoint."""
    with caplog.at_level(logging.INFO, logger="efficientnetv2"), hushed(), GracefulStop():
        os.kill(os.getpid(), signal.SIGINT)
    assert len(caplog.messages) == 1
    assert "Once more" in caplog.messages[0]


def test_signal_during_a_log_line_does_not_repeat_the_line():
    """The signal arrives directly after the write."""
    moments = [signal.SIGINT]

    class Terminal(io.StringIO):
        def write(self, text):
            length = super().write(text)
            while moments:
                os.kill(os.getpid(), moments.pop())
            return length

    screen = Screen()
    screen.notes = Console(file=Terminal(), width=200)
    with screen, GracefulStop() as interruption:
        logging.getLogger("efficientnetv2").info("epoch 1.0: top-1 50.0 %")
    assert interruption.requested
    lines = screen.notes.file.getvalue().splitlines()
    assert lines.count("epoch 1.0: top-1 50.0 %") == 1
    assert len(lines) == 2
    assert "Stopping after this step" in lines[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_forked_process_logs_nothing(number):
    """Workers get the Ctrl-C of a terminal too."""
    said = logged_lines()
    with GracefulStop() as interruption:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(int(interruption.requested or bool(said)))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not interruption.requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_for_an_atomic_operation(number):
    before = signal.signal(number, signal.default_int_handler)
    done = []

    def work() -> None:
        with defer_signals():
            signal.raise_signal(number)
            done.append("all")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(number, before)
    assert done == ["all"]
