"""Schedules other than stages that grow: every step of a run has the setting that the plan says."""

from __future__ import annotations

import pytest
from tests.command_line import TINY, effnetv2

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
def test_a_run_follows_its_plan(settings, sizes, class_folders, tmp_path):
    words = [word for setting in settings for word in ("--set", setting)]
    done = effnetv2(
        "train", class_folders, *TINY, "--weights", "none", "--epochs", "2", *words, "--output", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    run = RunDir(tmp_path / "run")
    rows = [row for row in run.history() if row["kind"] == "train"]
    plan = read_recipe(run.recipe_file).progressive
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        setting = plan.at(row["step"] - 1, total_steps=10)
        assert (row["image_size"], row["dropout"]) == (setting.image_size, setting.dropout)
    assert len({row["image_size"] for row in rows}) == sizes
