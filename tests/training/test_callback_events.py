"""Training callbacks: their events and arguments. A callback that raises stops the run."""

from __future__ import annotations

import logging

import pytest

import efficientnetv2 as ev2
from efficientnetv2.training import callbacks
from efficientnetv2.training.callbacks import ProgressLog
from efficientnetv2.utils.logs import hushed

TINY = {
    "model": "efficientnetv2_b0", "weights": "none", "epochs": 2, "batch_size": 16, "device": "cpu", "workers": 0,
    "settings": {
        "progressive": {"stages": 2, "image_size": {"start": 32, "end": 64}}, "compile": False, "precision": "fp32",
    },
}  # fmt: skip


class Recorder(ev2.Callback):
    """Records every event in order."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def on_train_start(self, step, num_steps):
        self.events.append(("start", step, num_steps))

    def on_stage_start(self, stage, step, settings):
        self.events.append(("stage", stage, step, settings.image_size))

    def on_step_end(self, step, num_steps, settings):
        self.events.append(("step", step))

    def on_log(self, step, num_steps, settings, loss, images_per_s, seconds_left):
        assert loss > 0
        assert images_per_s > 0
        assert seconds_left >= 0

    def on_validation_end(self, step, epoch, metrics):
        self.events.append(("validation", step))
        assert 0 <= metrics["top1"] <= 1

    def on_train_end(self, step):
        self.events.append(("end", step))


def test_callbacks_get_each_step_stage_and_validation_and_nothing_is_printed(class_folders, tmp_path, capsys, caplog):
    recorder = Recorder()
    with caplog.at_level(logging.INFO, logger="efficientnetv2"):
        run = ev2.train(class_folders, output=tmp_path / "run", callbacks=[recorder], **TINY)
    steps = [event[1] for event in recorder.events if event[0] == "step"]
    assert recorder.events[0] == ("start", 0, len(steps))
    assert steps == list(range(1, len(steps) + 1))
    (first, second) = [event[1:] for event in recorder.events if event[0] == "stage"]
    assert first == (0, 0, 32)
    assert second[0] == 1
    assert second[1] in steps
    assert second[2] > 32
    assert ("end", len(steps)) in recorder.events
    assert recorder.events[-1] == ("validation", len(steps))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert f"Report: {run.report_path}" in caplog.messages
    log = (tmp_path / "run/log.txt").read_text()
    assert all(line in log for line in caplog.messages)
    assert "Training efficientnetv2_b0" in log  # a detail


def test_callback_that_raises_stops_the_run(class_folders, tmp_path):
    class Enough(Exception):  # noqa: N818 - no error
        """Ends the run."""

    class Stop(ev2.Callback):
        def on_step_end(self, step, num_steps, settings):
            if step == 3:
                raise Enough

    with pytest.raises(Enough):
        ev2.train(class_folders, output=tmp_path / "run", callbacks=[Stop()], **TINY)
    assert not (tmp_path / "run/model.safetensors").exists()
    run = ev2.train(class_folders, output=tmp_path / "run", resume=True, device="cpu", workers=0)
    assert run.metrics["top1"] > 0


def test_progress_is_logged_twice_a_minute(monkeypatch, caplog):
    """100 steps of 10 s: lines after 30, 60, ... seconds, none after the last step."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    log = ProgressLog()
    with caplog.at_level(logging.INFO, logger="efficientnetv2"):
        for step in range(1, 101):
            now[0] = 10.0 * step
            log.on_log(step, 100, ev2.StepSettings(64, dropout=0.1), 1.5, 77.0, 1000.0 - now[0])
    assert caplog.messages[0] == "3%: 64 px, dropout 0.1, loss 1.500, 77 images/s, 16 min 10 s left"
    assert len(caplog.messages) == 33


def test_progress_is_shown_while_other_lines_are_hidden(monkeypatch, caplog):
    """As in the folds after the first."""
    monkeypatch.setattr(callbacks, "_PROGRESS_S", -1.0)
    with caplog.at_level(logging.INFO, logger="efficientnetv2"), hushed():
        logging.getLogger("efficientnetv2").info("the same as in the first fold")
        ProgressLog().on_log(1, 4, ev2.StepSettings(64), 1.5, 77.0, 60.0)
    assert caplog.messages == ["25%: 64 px, loss 1.500, 77 images/s, 1 min 00 s left"]


class Misspelled(ev2.Callback):
    def on_validate_end(self, step, epoch, metrics):
        pass


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([Recorder], r"is not an instance of Callback\. Add \(\)\.$"),
        (Recorder(), r"must be a list"),
        ([print], r"is not an instance of Callback\. Inherit from Callback\.$"),
        ([Misspelled()], r"on_validate_end is never called; did you mean 'on_validation_end'\?"),
    ],
)
def test_wrong_callbacks_are_refused_before_anything_is_read(callbacks, message):
    with pytest.raises(ev2.InputError, match=message):
        ev2.train("no_such_folder", callbacks=callbacks)
