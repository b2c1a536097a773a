"""What ``search export`` writes, what it writes over, and that the command it prints trains it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
import torch
from tests.command_line import Done
from tests.messages import mentions
from tests.nas.test_study import PLAN, storage
from typer.testing import CliRunner

from efficientnetv2.cli.main import app
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.space import small_space
from efficientnetv2.nas.storage import import_optuna
from efficientnetv2.nas.study import create_study, open_study
from efficientnetv2.training.memory_probe import Hardware
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.model_scaling import compound_scaling, scale_up

SPACE = small_space()


def study(folder: Path, image_size: int) -> None:
    """Of the space ``small``, with its backbone as the better one of two trials that have ended."""
    recipe = get_recipe("proxy_small")
    seen = {"progressive": recipe.progressive.with_image_size(image_size), "eval_image_size": image_size}
    plan = PLAN.model_copy(update={"space": SPACE, "recipe": recipe.model_copy(update=seen), "bands": ()})
    database = storage(folder)
    create_study(database, "study", plan, trials=1)
    found = Measurement(1000, 1000, top1=0.5, step_seconds=0.01).to_json()
    drawn = SPACE.decode(SPACE.sample(Key.of(0)))
    for reward, network in ((0.5, SPACE.backbone), (0.25, drawn)):
        told = {"measurement": found, "point": list(SPACE.encode(network))}
        open_study(database, "study").optuna_study.add_trial(
            import_optuna().trial.create_trial(value=reward, user_attrs=told)
        )
    (folder / "study").mkdir()
    (folder / "study/pictures.csv").write_text("path,label,split\n")


def export(folder: Path, *more: object) -> Done:
    words = ["search", "export", folder / "study", "--storage", f"sqlite:///{folder}/study.db", *more]
    ended = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return Done(ended.exit_code, ended.stdout, ended.stderr)


def trained_by(command: str) -> Recipe:
    """The recipe of a ``train`` command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("given", nargs=3)
    parser.add_argument("--model")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    said = parser.parse_args(shlex.split(command))
    words = TrainOverrides(model=said.model, image_size=said.image_size, settings=tuple(said.settings))
    return requested_recipe(words, torch.device("cpu"))[0]


@pytest.mark.parametrize("image_size", [48, 64])
@pytest.mark.parametrize("phi", ["0", "0.5", "1", "1.5"])
def test_a_larger_network_is_trained_as_the_printed_command_says(image_size, phi, tmp_path):
    """Its pictures begin at the stride of the space, 32 px, and inference is at the size that it was grown for."""
    study(tmp_path, image_size)
    file = tmp_path / "larger.yaml"
    done = export(tmp_path, "--grow", phi, "--output", file)
    assert done.returncode == 0, done.stderr
    recipe = trained_by(done.stdout.partition("that the search did not see: ")[2])
    quickly = {"epochs": 1.0, "batch_size": 8, "precision": "fp32", "compile": False}
    settled = resolve_recipe(
        recipe.model_copy(update=quickly), TrainingSet(64, ("a", "b")), Hardware(torch.device("cpu"))
    ).recipe
    grown = scale_up(SPACE.backbone, compound_scaling(float(phi)), eval_image_size=image_size)
    assert settled.model == grown.architecture
    assert (settled.eval_image_size, settled.progressive.last.image_size) == (
        grown.eval_image_size,
        grown.train_image_size,
    )
    assert settled.progressive.stage(0).image_size == 32


def test_a_table_that_was_changed_by_hand_is_not_exported_over(tmp_path):
    """As it was written it is replaced, grown or not, whichever trial's it is."""
    study(tmp_path, 64)
    file = tmp_path / "study/found.yaml"
    for more in (("--trial", 1), ("--trial", 1, "--grow", "1.5"), ("--grow", "m"), ()):
        done = export(tmp_path, *more)
        assert done.returncode == 0, done.stderr
    text = file.read_text()
    for changed in (text.replace("stem_channels: ", "stem_channels: 1"), f"# My own.\n{text}"):
        assert changed != text
        file.write_text(changed)
        for more in ((), ("--trial", 1), ("--grow", "1.5")):
            done = export(tmp_path, *more)
            assert done.returncode == 2, done.stdout
            assert mentions(done.stderr, "--output")
            assert file.read_text() == changed
