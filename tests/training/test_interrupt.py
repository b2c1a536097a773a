"""Signals end a run after its step, however often a launcher repeats them."""

from __future__ import annotations

import os
import signal

import pytest

from efficientnetv2.training.interrupt import Interruption


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
