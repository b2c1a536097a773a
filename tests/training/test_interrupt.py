"""Signals end a run after its step, however often a launcher repeats them."""

from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console

from efficientnetv2.commands.screen import Screen
from efficientnetv2.training.interrupt import Interruption, held


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launcher_may_repeat_itself(number):
    said = []
    with Interruption(said.append, launched=True) as interruption:
        assert not interruption.requested
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert interruption.requested
    assert said == ["Stopping after this step, with a checkpoint."]


def test_a_person_who_repeats_it_means_at_once():
    said = []

    def interrupted_twice():
        with Interruption(said.append):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert len(said) == 1
    assert "Once more" in said[0]


def test_a_line_that_is_being_written_is_not_written_again():
    """The signal comes just after its bytes have gone to the terminal."""
    moments = [signal.SIGINT]

    class Terminal(io.StringIO):
        def write(self, text):
            length = super().write(text)
            while moments:
                os.kill(os.getpid(), moments.pop())
            return length

    screen = Screen()
    screen.notes = Console(file=Terminal(), width=200)
    with Interruption(screen.say) as interruption:
        screen.say("epoch 1.0: top-1 50.0 %")
    assert interruption.requested
    lines = screen.notes.file.getvalue().splitlines()
    assert lines.count("epoch 1.0: top-1 50.0 %") == 1
    assert len(lines) == 2
    assert "Stopping after this step" in lines[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_forked_off_within_says_nothing(number):
    """As those that read pictures are, which a terminal's Ctrl-C reaches too."""
    said = []
    with Interruption(said.append) as interruption:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(int(interruption.requested or bool(said)))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not interruption.requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_must_not_be_left_half_done(number):
    before = signal.signal(number, signal.default_int_handler)
    done = []

    def work() -> None:
        with held():
            signal.raise_signal(number)
            done.append("all")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(number, before)
    assert done == ["all"]
