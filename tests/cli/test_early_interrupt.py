"""Interrupts before the first step: the message states that the same command starts again or resumes."""

import signal

import pytest
from tests.messages import mentioning

from efficientnetv2.data.config import DataConfig
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.workflows import train


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("resume", "fact"), [(False, "starts again"), (True, "resumes")])
def test_interrupt_before_the_first_step_names_the_same_command(number, resume, fact, tmp_path, monkeypatch):
    """As during the check of all files, which may take an hour."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "resolve_or_resume", lambda *_: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt, match=mentioning(fact, "step")):
        train.train_and_report(
            TrainOverrides(), DataConfig("here"), RunOptions(out=tmp_path / "run", resume=resume, device="cpu")
        )
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(tmp_path.iterdir())
