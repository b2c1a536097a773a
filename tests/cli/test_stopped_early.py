"""A run that is stopped before its first step says that nothing is lost, whoever stops it."""

import signal

import pytest
from tests.messages import mentioning

from efficientnetv2.data.config import DataConfig
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.run_request import RunOptions
from efficientnetv2.workflows import train


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("resume", "how"), [(False, "starts again"), (True, "resumes")])
def test_before_the_first_step_the_same_command_is_enough(number, resume, how, tmp_path, monkeypatch):
    """As while every file is looked at, which may take an hour."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "resolve_or_resume", lambda *_: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt, match=mentioning(how, "step")):
        train.train_and_report(
            TrainOverrides(), DataConfig("here"), RunOptions(out=tmp_path / "run", resume=resume, device="cpu")
        )
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(tmp_path.iterdir())
