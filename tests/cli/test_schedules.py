"""Schedules other than growing stages: each step has the values of the schedule."""

from __future__ import annotations

import pytest
from tests.command_line import TINY, run_ok

from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.run_dir import RunDir


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        # Sizes that no stride divides, one for every step: 32 + 32 i/9.
        (["progressive.image_size={start: 32, end: 64, continuous: true}", "progressive.size_multiple=1"], 10),
        (["progressive.order=random"], 2),
        (["progressive.order=random", "progressive.random_draws=5", "progressive.dropout={start: 0, end: 0.5}"], 2),
    ],
    ids=["continuous", "random at every step", "random in turns"],
)
def test_run_follows_its_schedule(settings, sizes, class_folders, tmp_path):
    args = [arg for setting in settings for arg in ("--set", setting)]
    run_ok("train", class_folders, *TINY, "--weights", "none", "--epochs", "2", *args, "--output", "run", cwd=tmp_path)
    run = RunDir(tmp_path / "run")
    rows = [row for row in run.history() if row["kind"] == "train"]
    schedule = read_recipe(run.recipe_file).progressive
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        setting = schedule.at(row["step"] - 1, total_steps=10)
        assert (row["image_size"], row["dropout"]) == (setting.image_size, setting.dropout)
    assert len({row["image_size"] for row in rows}) == sizes
