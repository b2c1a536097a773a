"""A run that is stopped before its first step says that nothing is lost, whoever stops it."""

import signal

import pytest
from tests.messages import mentioning

from efficientnetv2.commands import train_job
from efficientnetv2.commands.beginning import Place
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.source import Source
from efficientnetv2.commands.words import Words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("resume", "how"), [(False, "begins anew"), (True, "goes on")])
def test_before_the_first_step_the_same_command_is_enough(number, resume, how, tmp_path, monkeypatch):
    """As while every file is looked at, which may take an hour."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train_job, "_readied", lambda *_: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt, match=mentioning(how, "step")):
        train_job.train_and_report(
            Words(),
            Source("here"),
            Place(out=tmp_path / "run", resume=resume, device="cpu"),
            Screen(mute=True),
        )
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(tmp_path.iterdir())
