"""``search export``: its files, none of which it replaces, and the printed training command."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.command_line import Done
from tests.messages import mentioning, mentions
from tests.nas.test_study import PLAN, storage
from typer.testing import CliRunner

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.registry import (
    EFFICIENTNETV2_L,
    EFFICIENTNETV2_M,
    EFFICIENTNETV2_S,
    get_architecture,
    get_model_info,
)
from efficientnetv2.architectures.spec import Architecture, Stage, mbconv
from efficientnetv2.cli.main import app
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.space import small_space
from efficientnetv2.nas.storage import import_optuna
from efficientnetv2.nas.study import create_study, open_study
from efficientnetv2.progressive.presets import paper_schedule
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipes import get_recipe
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key
from efficientnetv2.workflows.search_export import (
    TO_L,
    TO_M,
    Scaling,
    compound_scaling,
    parse_scaling,
    scale_up,
    train_size_for,
)

SPACE = small_space()


def study(folder: Path, image_size: int, name: str = "proxy_small") -> None:
    """A study of the space ``small`` with two finished trials. The backbone is the better one."""
    recipe = get_recipe(name)
    seen = {"progressive": recipe.progressive.with_image_size(image_size), "eval_image_size": image_size}
    plan = PLAN.model_copy(update={"space": SPACE, "recipe": recipe.model_copy(update=seen), "bands": ()})
    database = storage(folder)
    create_study(database, "study", plan, trials=1)
    found = Measurement(1000, 1000, top1=0.5, step_seconds=0.01).to_json()
    drawn = SPACE.decode(SPACE.sample(Key.of(0)))
    for reward, model in ((0.5, SPACE.backbone), (0.25, drawn)):
        attributes = {"measurement": found, "point": list(SPACE.encode(model))}
        open_study(database, "study").optuna_study.add_trial(
            import_optuna().trial.create_trial(value=reward, user_attrs=attributes)
        )
    (folder / "study").mkdir()
    (folder / "study/dataset.csv").write_text("path,label,split\n")


def export(folder: Path, *more: object) -> Done:
    args = ["search", "export", folder / "study", "--storage", f"sqlite:///{folder}/study.db", *more]
    ended = CliRunner().invoke(app, [str(word) for word in args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return Done(ended.exit_code, ended.stdout, ended.stderr)


def trained_by(command: str) -> Recipe:
    """The recipe of a ``train`` command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("given", nargs=3)
    parser.add_argument("--model")
    parser.add_argument("--recipe")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    options = parser.parse_args(shlex.split(command))
    args = TrainOverrides(
        recipe=options.recipe, model=options.model, image_size=options.image_size, settings=tuple(options.settings)
    )
    return requested_recipe(args, torch.device("cpu"))[0]


@pytest.mark.parametrize("image_size", [48, 64])
@pytest.mark.parametrize("phi", ["0", "0.5", "1", "1.5"])
def test_scaled_architecture_is_trained_by_the_printed_command(image_size, phi, tmp_path):
    """Training starts at the stride of the space, 32 px. Inference is at the scaled size."""
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


@pytest.mark.parametrize("grown_by", ["m", "l"])
def test_network_of_the_papers_search_has_the_sizes_of_m_and_l(grown_by, tmp_path):
    """Its trials have 192 px."""
    study(tmp_path, 192, "proxy_paper")
    done = export(tmp_path, "--grow", grown_by, "--output", tmp_path / "larger.yaml")
    assert done.returncode == 0, done.stderr
    command = done.stdout.partition("that the search did not see: ")[2].partition("\n")[0]
    recipe = trained_by(command)
    assert (recipe.progressive.last.image_size, recipe.eval_image_size) == (380, 480)
    # With the recipe for ImageNet, its stages are those of Table 6.
    on_imagenet = trained_by(f"{command} {re.findall('--recipe [a-z0-9_]+', done.stdout)[0]}")
    assert on_imagenet.progressive == paper_schedule(f"efficientnetv2_{grown_by}")
    assert (on_imagenet.epochs, on_imagenet.eval_image_size) == (350, 480)


def test_written_table_is_not_replaced(tmp_path):
    """It may have been edited."""
    study(tmp_path, 64)
    file = tmp_path / "study/found.yaml"
    assert export(tmp_path).returncode == 0
    text = file.read_text()
    done = export(tmp_path, "--trial", 1)
    assert done.returncode == 2, done.stdout
    assert mentions(done.stderr, "--output", file)
    assert file.read_text() == text


# Channels of the published M and L by stage, which do not follow from S and the coefficients.
M_CHANNELS = {3: 80, 4: 160, 6: 304}
L_CHANNELS = {2: 64, 5: 224}


def numbers(network):
    return [stage.layers for stage in network.stages], [stage.channels for stage in network.stages]


@pytest.mark.parametrize(
    ("growth", "channels", "table"),
    [(TO_M, M_CHANNELS, EFFICIENTNETV2_M), (TO_L, L_CHANNELS, EFFICIENTNETV2_L)],
    ids=["M", "L"],
)
def test_s_scales_to_the_published_m_and_l(growth, channels, table):
    """With one depth and one width coefficient and the exceptions above. Image size from 384 to 480 px."""
    grown = scale_up(EFFICIENTNETV2_S, growth, eval_image_size=get_model_info("efficientnetv2_s").eval_image_size)
    stages = list(grown.architecture.stages)
    for number, wide in channels.items():
        stages[number - 1] = replace(stages[number - 1], channels=wide)
    assert replace(grown.architecture, stages=tuple(stages)) == table
    assert grown.eval_image_size == 480


@pytest.mark.parametrize(
    ("growth", "table", "layers", "channels"),
    [
        # 7/6 of 2, 4, 4, 6, 9, 15, rounded up: 3, 5, 5, 7, 11, 18, and 3 more in the fifth stage.
        (TO_M, EFFICIENTNETV2_M, [1, 2, 3, 4, 6], [1, 2, 5]),
        # 5/3 of these: 4, 7, 7, 10, 15, 25, and 4 more in the fifth stage.
        (TO_L, EFFICIENTNETV2_L, [1, 2, 3, 4, 6], [1, 3, 4, 6]),
    ],
    ids=["M", "L"],
)
def test_stages_that_follow_from_the_coefficients(growth, table, layers, channels):
    rules = replace(growth, more_layers=(), new_layers=0)
    found_layers, found_channels = numbers(scale_up(EFFICIENTNETV2_S, rules, eval_image_size=384).architecture)
    wanted_layers, wanted_channels = (values[:6] for values in numbers(table))
    assert [n for n in range(1, 7) if found_layers[n - 1] == wanted_layers[n - 1]] == layers
    assert [n for n in range(1, 7) if found_channels[n - 1] == wanted_channels[n - 1]] == channels


def test_no_width_coefficient_gives_the_channels_of_m():
    """At most 3 of 6 stages agree for coefficients from 1 to 2, so channels are stored as data."""
    wanted = [stage.channels for stage in EFFICIENTNETV2_M.stages[:6]]
    agreeing = []
    for step in range(1001):
        found = scale_up(EFFICIENTNETV2_S, Scaling(1 + step / 1000, 1.0, 1.0), eval_image_size=384).architecture
        agreeing.append(sum(a.channels == b for a, b in zip(found.stages, wanted, strict=True)))
    assert max(agreeing) == 3


@pytest.mark.parametrize("size", ["s", "m", "l"])
def test_training_sizes_equal_table_6(size):
    name = f"efficientnetv2_{size}"
    assert train_size_for(get_model_info(name).eval_image_size) == paper_schedule(name).last.image_size


@given(st.integers(100, 480))
def test_training_size_is_about_a_fifth_smaller(eval_image_size):
    assert 0.8 * eval_image_size - 20 < train_size_for(eval_image_size) <= 0.8 * eval_image_size


def test_small_training_size_is_exact():
    assert train_size_for(64) == 51


def test_compound_scaling_doubles_the_multiply_adds():
    """1.2 * 1.1^2 * 1.15^2 = 1.92. Padding is equal at 416 and 480 px, and rounding up adds a little."""
    base = get_architecture("efficientnetv2_l")
    larger = scale_up(base, compound_scaling(1), eval_image_size=416)
    assert larger.eval_image_size == 480
    before, after = (
        count_flops(one, image_size=px).total.multiply_adds for one, px in ((base, 416), (larger.architecture, 480))
    )
    assert after / before == pytest.approx(1.92, rel=0.1)
    assert scale_up(base, compound_scaling(0), eval_image_size=384).architecture == base


def test_image_size_is_at_most_480_px():
    assert [
        scale_up(EFFICIENTNETV2_S, compound_scaling(phi), eval_image_size=384).eval_image_size for phi in (0, 1, 2, 5)
    ] == [384, 440, 480, 480]
    assert scale_up(EFFICIENTNETV2_S, compound_scaling(1), eval_image_size=512).eval_image_size == 512, "not smaller"


def test_architecture_of_few_stages_can_be_scaled():
    """The new stage has the operator of the last stage and twice its channels."""
    base = Architecture(8, (Stage(mbconv(expand=4, kernel=5), 2, 16, 3),), 32)
    grown = scale_up(base, Scaling(1.0, 1.5, 1.0, more_layers=(2,), new_layers=4), eval_image_size=64).architecture
    assert grown.stages == (Stage(mbconv(expand=4, kernel=5), 2, 16, 7), Stage(mbconv(expand=4, kernel=5), 1, 32, 4))
    with pytest.raises(InputError, match=mentioning("2", "1", "layer")):
        scale_up(base, TO_M, eval_image_size=64)


def test_parse_scaling():
    assert [parse_scaling(word) for word in ("m", "L", "0.5")] == [TO_M, TO_L, compound_scaling(0.5)]
    with pytest.raises(InputError, match=mentioning("xl")):
        parse_scaling("xl")


@pytest.mark.parametrize("word", ["-2", "1e6", "21", "inf", "nan"])
def test_scaling_too_large_to_train_is_rejected(word):
    """1e6 overflows a float, and 21 would be two million times the multiply-adds."""
    with pytest.raises(InputError, match=mentioning(word, "20", "phi")):
        parse_scaling(word)
    assert parse_scaling("20").width < 7


def test_training_size_is_at_least_the_stride():
    """A fifth less than 32 px is 25 px, too small for a stride of 32."""
    grown = scale_up(EFFICIENTNETV2_S, compound_scaling(0), eval_image_size=32)
    assert (grown.eval_image_size, grown.train_image_size) == (32, 32)


def test_compound_scaling_has_powers_of_the_coefficients():
    """arXiv:1905.11946, section 4.1: depth 1.2, width 1.1, size 1.15."""
    grown = compound_scaling(2)
    assert (grown.width, grown.depth, grown.px) == pytest.approx((1.21, 1.44, 1.3225))
