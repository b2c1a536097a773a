import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
import typer
from benchmarks.paper.__main__ import parse_options, requests
from benchmarks.paper.scale import SCALES
from hypothesis import given
from hypothesis import strategies as st
from tests.command_line import NETWORK
from tests.log_lines import logged_lines
from tests.messages import each_mentions, mentioning, mentions
from tests.recipes import with_overrides

from efficientnetv2.cli.main import app
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp
from efficientnetv2.training.overrides import TrainOverrides, requested_recipe, resumed_recipe
from efficientnetv2.training.recipe_io import diff_recipes, validate_recipe
from efficientnetv2.training.recipe_io import read_recipe as read_recipe
from efficientnetv2.training.recipes import custom_data, get_recipe, load_recipe, named_recipes
from efficientnetv2.training.run_dir import RunDir
from efficientnetv2.utils.errors import InputError


@pytest.mark.parametrize("name", named_recipes())
def test_recipe_is_read_back_equal_from_yaml(name, tmp_path):
    recipe = get_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe.name == name


@pytest.mark.parametrize("name", named_recipes())
def test_recipe_description_has_command_cost_source_and_differences(name):
    lines = [line.strip() for line in named_recipes()[name].description.splitlines()]
    said = {line.partition(":")[0]: line for line in lines if line.partition(":")[1]}
    assert {"Run", "Cost and result", "Source", "Ours"} <= set(said)
    assert mentions(said["Run"], "effnetv2 train")
    assert f"--recipe {name}" in said["Run"] or name == "finetune", "finetune is what is taken unasked"


@pytest.mark.parametrize("name", named_recipes())
def test_recipe_description_has_its_hours_or_a_command_that_estimates_them(name):
    """Hours of a source are stated. Otherwise, the command estimates the time of this recipe."""
    told = " ".join(named_recipes()[name].description.split())
    cost = told.partition("Cost and result: ")[2].partition(" Source: ")[0]
    asked = re.search(r"effnetv2 train (--dry-run .*)$", cost)
    assert asked or re.search(r"\d (hours|minutes)\b", cost), cost
    if asked:
        given_ = typer.main.get_command(app).commands["train"].make_context("train", shlex.split(asked[1])).params
        assert given_["recipe"] == name
        assert (given_["label_separator"] is not None) == (get_recipe(name).expected_dataset == "imagenet21k")


def test_stages_of_a_measured_run_have_their_epochs():
    """As its recipe.yaml stores them: ``stage_time`` stays, with the fractions that followed from it."""
    of_time = with_overrides(get_recipe("quick"), ["epochs=10", "stage_time=equal", "progressive.stages=2"])
    assert [stage["epochs"] for stage in of_time.stages()] == [None, None]
    measured = with_overrides(of_time, ["progressive.stage_fractions=[3, 1]"])
    assert [stage["epochs"] for stage in measured.stages()] == pytest.approx([7.5, 2.5])


@pytest.mark.parametrize("field", ["weights", "model"])
def test_settings_of_model_and_weights_are_those_of_the_options(field):
    """They decide the recipe, and which weights are looked for."""
    value, cpu = {"weights": "none", "model": "efficientnetv2_b1"}[field], torch.device("cpu")
    for recipe in (None, "finetune"):
        option, setting = TrainOverrides(recipe=recipe, **{field: value}), (f"{field} = {value}",)
        for found in (
            TrainOverrides(recipe=recipe, settings=setting),
            replace(TrainOverrides(recipe=recipe), settings=setting),
        ):
            assert found == option
    twice = TrainOverrides(settings=(f"{field}=null", f"{field}={value}"))
    assert twice == TrainOverrides(**{field: value})
    recipe, notes = requested_recipe(TrainOverrides(settings=("weights=none",)), cpu)
    assert (recipe.name, recipe.weights) == ("quick", "none")
    assert not any("Weights" in note for note in notes)


def test_run_is_resumed_only_with_the_options_that_it_was_started_with(tmp_path):
    """Or with fewer of them, or from another cache."""
    own, run = with_overrides(get_recipe("finetune"), ["epochs=2"]), RunDir(tmp_path)
    options = TrainOverrides(model=NETWORK, recipe=own, minutes=0.5, cache="ram", settings=("patience=5",))
    facts = {"command": "", "auto_choices": [], "microbatches": {}, "schema_version": 2}
    facts |= {"recipe": own.to_json()}
    facts |= {"preprocessing": Preprocessing(image_size=32).to_json()}
    run.recipe_file.write_text(own.to_yaml())
    run.beginning_file.write_text(json.dumps(facts | {"options": options.to_json()}))
    for accepted in (options, replace(options, cache="disk"), TrainOverrides(minutes=0.5), TrainOverrides()):
        assert resumed_recipe(accepted, run) == own
    for change, said in (
        ({"minutes": 5}, "`minutes`: 0.5 there, 5 here"),
        ({"settings": ("patience=6",)}, "`settings`: patience=5 there, patience=6 here"),
        ({"recipe": "quick"}, "`recipe`: finetune there, quick here"),
        ({"weights": "none"}, "`weights`: not given there, none here"),
        ({"recipe": with_overrides(own, ["epochs=3"])}, "epochs: 2.0 there, 3.0 here"),
        ({"model": replace(options.model, padding="symmetric")}, "padding: same there, symmetric here"),
    ):
        with pytest.raises(InputError, match=said):
            resumed_recipe(replace(options, **change), run)
    run.beginning_file.write_text(json.dumps(facts | {"options": {"epochs": 1}}))
    with pytest.raises(InputError, match="Leave out the options"):
        resumed_recipe(options, run)


def of_run(folder, *settings):
    """The recipe file of a run of seed 0, from a recipe with these settings."""
    recipe = with_overrides(get_recipe("quick"), ["seed=0", "progressive.stages=2", *settings])
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    return TrainOverrides(recipe=str(folder / "recipe.yaml"), weights="none")


@pytest.mark.parametrize("seed", [{"seed": 1}, {"settings": ("seed=1",)}])
def test_another_seed_of_a_recipe_of_a_run_draws_another_order_of_sizes(seed, tmp_path):
    words, cpu = of_run(tmp_path, "progressive.order=random", "progressive.seed=0"), torch.device("cpu")
    assert requested_recipe(words, cpu)[0].progressive.seed == 0
    assert requested_recipe(replace(words, **seed), cpu)[0].progressive.seed is None
    chosen = replace(words, seed=1, settings=("progressive.seed=0",))
    assert requested_recipe(chosen, cpu)[0].progressive.seed == 0
    words = of_run(tmp_path, "progressive.order=random", "progressive.seed=7")
    assert requested_recipe(replace(words, **seed), cpu)[0].progressive.seed == 7


@pytest.mark.parametrize(
    "change", [{"settings": ("stage_time=[1, 2]",)}, {"image_size": 96}, {"model": "efficientnetv2_b1"}]
)
def test_stage_lengths_of_a_run_are_measured_again_for_other_stages(change, tmp_path):
    words, cpu = of_run(tmp_path, "stage_time=equal", "progressive.stage_fractions=[3, 1]"), torch.device("cpu")
    assert requested_recipe(words, cpu)[0].progressive.stage_fractions == (3, 1)
    assert requested_recipe(replace(words, **change), cpu)[0].measures_stages
    assert requested_recipe(replace(words, settings=("progressive.stages=4",)), cpu)[0].measures_stages
    constant = requested_recipe(replace(words, settings=("stage_time=null",)), cpu)[0]
    assert constant.progressive.stage_fractions is None
    words = of_run(tmp_path, "progressive.stage_fractions=[3, 1]")
    assert requested_recipe(replace(words, image_size=96), cpu)[0].progressive.stage_fractions == (3, 1)


def test_learning_rate_follows_the_batch_by_the_optimizer_that_is_set():
    """Linearly for SGD, with the square root for AdamW, the optimizer of the recipe."""
    cpu, words = torch.device("cpu"), TrainOverrides(recipe="finetune", weights="none", batch_size=128)
    adamw, sgd = (
        requested_recipe(replace(words, settings=settings), cpu)[0].optimizer.lr
        for settings in ((), ("optimizer.name=sgd",))
    )
    assert (adamw, sgd) == pytest.approx((2e-4 * 2, 2e-4 * 4))


@pytest.mark.parametrize("batch", [16, 64])
def test_groups_of_a_run_follow_another_batch_size(batch, tmp_path):
    """A run stores its whole batch as the group of batch norm."""
    words, cpu = of_run(tmp_path, "batch_size=32", "ghost_batch_size=32"), torch.device("cpu")
    assert requested_recipe(words, cpu)[0].ghost_batch_size == 32
    assert requested_recipe(replace(words, batch_size=batch), cpu)[0].ghost_batch_size is None
    settings = (f"batch_size={batch}",)
    assert requested_recipe(replace(words, settings=settings), cpu)[0].ghost_batch_size is None
    given = replace(words, batch_size=batch, settings=("ghost_batch_size=8",))
    assert requested_recipe(given, cpu)[0].ghost_batch_size == 8


def test_only_own_recipes_use_sigmoid_for_multilabel():
    own = {name for name in named_recipes() if get_recipe(name).multilabel == "sigmoid"}
    assert own == {"proxy_small", *(named.recipe.name for named in custom_data.RECIPES)}
    assert {named.data for named in custom_data.RECIPES} == {"DATA"}
    recipe = get_recipe("finetune")
    assert (recipe.activation(";"), recipe.activation(None)) == ("sigmoid", "softmax"), (
        "of one label each it is a softmax"
    )


def test_five_transfer_seeds_of_the_paper_are_one_command():
    """Five seeds by default, as in the paper."""
    doc = " ".join(named_recipes()["transfer_paper"].description.split())
    [words] = re.findall(r"python -m benchmarks.paper ([\w -]*) makes", doc)
    [request] = requests(parse_options(words.split())[1])
    assert (request.table, request.scale, SCALES[request.scale].seeds) == ("8", "paper", 5)


def test_paper_and_released_recipe_of_s_differ_as_their_sources():
    """Batch norm momentum (0.99 and 0.9), sizes, RandAugment, dropout and minival, but nothing else."""
    names = {
        line.split(":")[0]
        for line in diff_recipes(get_recipe("efficientnetv2_s_paper"), get_recipe("efficientnetv2_s_released"))
    }
    roots = {
        name.split(".")[0] if not name.startswith("progressive") else ".".join(name.split(".")[:2]) for name in names
    }
    assert roots == {
        "name",
        "batch_norm_momentum",
        "minival",
        "progressive.image_size",
        "progressive.randaugment",
        "progressive.dropout",
    }


def test_imagenet_recipe_has_the_values_of_the_paper():
    """Section 5.1: RMSprop 0.9/0.9, 0.256 at 4096, x0.97 per 2.4 epochs, decay 1e-5, 350 epochs, EMA 0.9999."""
    recipe = get_recipe("efficientnetv2_s_paper")
    assert (recipe.epochs, recipe.batch_size, recipe.ema_decay) == (350, 4096, 0.9999)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("rmsprop", 0.256, 1e-5)
    assert (recipe.optimizer.momentum, recipe.optimizer.beta2) == (0.9, 0.9)
    assert (recipe.schedule.gamma, recipe.schedule.step_epochs) == (0.97, 2.4)
    assert recipe.progressive.stage(0).drop_path == pytest.approx(1 - 0.8)


def test_rates_missing_in_a_recipe_are_0():
    """In a custom loop they would remain as the model was built."""
    plan = ProgressiveSchedule(image_size=64, stages=2)
    assert (plan.last.dropout, plan.last.drop_path) == (None, None)
    recipe = get_recipe("quick")
    assert recipe.progressive.drop_path == 0.0
    silent = recipe.to_json() | {"progressive": {"image_size": 64, "dropout": None}}
    for given_ in (silent, silent | {"progressive": plan}):
        progressive = validate_recipe(given_, where="here").progressive
        assert (progressive.dropout, progressive.drop_path) == (0.0, 0.0)


def test_overrides_reach_nested_fields_and_ramps():
    recipe = with_overrides(
        get_recipe("quick"),
        [
            "epochs=3",
            "optimizer.lr=1e-3",
            "progressive.image_size={start: 32, end: 64}",
            "class_sampling=sqrt",
            "ema_decay=null",
            "augment.flip=d4",
            "progressive.dropout=0.25",
        ],
    )
    assert (recipe.epochs, recipe.optimizer.lr, recipe.class_sampling, recipe.ema_decay) == (3, 0.001, "sqrt", None)
    assert recipe.progressive.image_size == Ramp(32, 64)
    assert recipe.augment.flip == "d4"
    assert recipe.progressive.dropout == 0.25


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=3", "there is no field 'epoch'; did you mean 'epochs'"),
        ("optimizer.learning_rate=1", "did you mean `optimizer.lr=1`?"),
        ("lr=0.1", "did you mean `optimizer.lr=0.1`?"),
        ("batch=8", "did you mean `batch_size=8`?"),
        ("dropout=0.5", "did you mean `progressive.dropout=0.5`?"),
        ("frobnicate=1", "effnetv2 recipes --fields"),
        ("optimiser.lr=1", "there is no part 'optimiser'; did you mean 'optimizer'"),
        ("progressive.randaugment.end=5", "progressive.randaugment is None and has no parts"),
        ("epochs", "write it as name=value"),
        ("epochs=many", "epochs = 'many'"),
        ("epochs=-1", "epochs = -1: must be a number above 0"),
        ("epochs=1e300", "epochs = 1e+300: must be a number above 0 up to 1,000,000 or auto"),
        ("batch_size=2000000", "batch_size = 2000000: must be a whole number from 1 to 1,000,000"),
        ("batch_size=0", "batch_size = 0"),
        ("progressive.dropout=2", "dropout is 2"),
        ("ghost_batch_size=7", "ghost_batch_size is 7, which does not divide batch_size"),
        ("ghost_batch_size=1000000000", "batch_size (32); the next smaller that does is 32"),
        ("eval_image_size=100000", "eval_image_size = 100000: must be a whole number from 1 to 4,096"),
        ("progressive.image_size.end=128.5.1", "progressive.image_size.end = '128.5.1'"),
        ("ema_decay=.inf", "ema_decay"),
        ("epochs=aut", "or auto; did you mean 'auto'?"),
        ("seed=1.5", "seed = 1.5: must be a whole number"),
        ("val_fraction=1.5", "val_fraction = 1.5: must be a whole number from 2 or a number above 0 and below 1"),
        ("val_fraction=0", "val_fraction = 0: must be a whole number from 2 or a number above 0 and below 1"),
        ("minival=x", "= 'x': must be a whole number from 1, a number above 0 and below 1, auto or null"),
        ("stage_time=3", "stage_time = 3: must be equal, [a number, ...] or null"),
        ("progressive.randaugment=x", "must be a number from 0 to 30, {start, end, continuous} or null"),
        ("progressive.image_size={start: 3}", "must be a number from 1 to 4,096 or {start, end, continuous}"),
        ("progressive.image_size={start:3,end:9}", "put a space behind each colon"),
        *(
            (f"progressive.{name}={text}", "{start")
            for name, text in [
                ("image_size", "64-128"),
                ("image_size", "[64, 128]"),
                ("image_size", "128-64"),
                ("dropout", ".1-.3"),
                ("randaugment", "5:15"),  # YAML reads 315, minutes and seconds
            ]
        ),
        ("progressive.image_size={64, 128}", "progressive.image_size"),
        ("progressive.image_size={start: 64 end: 128}", "is not YAML"),
        ("progressive.image_size={start: 64, end: 128", "is not YAML"),
        *(  # a number in another notation, or no number
            (f"progressive.{name}={text}", f"progressive.{name} = '{text}': must be a number from")
            for name, text in [
                ("dropout", "0.3%"),
                ("dropout", "0,3"),
                ("image_size", "1,024"),
                ("image_size", "0.5x"),
                ("image_size", "1.2.3"),
                ("image_size", "128px"),
            ]
        ),
        ("augment={flip: none", "is not YAML: while parsing"),
        ("progressive.stage_fractions=1,1,2", "progressive.stage_fractions = '1,1,2': must be [a number, ...] or null"),
        ("seed=1:30", "seed = '1:30': must be a whole number"),
        ("eval_image_size=0.5", "eval_image_size = 0.5: must be a whole number"),
        ("augment.flip=vertical", "augment.flip = 'vertical'"),
        ("checkpoint_stages=true", "checkpoint_stages = True: must be a whole number from 0"),
        ("freeze_stages=yes", "freeze_stages = True: must be a whole number from 0 or all"),
        ("optimizer.clip_norm=true", "optimizer.clip_norm = True: must be a number above 0 or null"),
        ("progressive.randaugment=off", "progressive.randaugment = False: must be a number from 0 to 30"),
        ("progressive.randaugment={start: off, end: 10}", "progressive.randaugment.start = False"),
        ("progressive.cutout=true", "progressive.cutout = True: must be a number from 0 to 1"),
        ("progressive.stages=yes", "progressive.stages = True: must be a whole number from 1"),
        ("augment.color=on", "augment.color = True: must be a number from 0 to 1"),
        ("progressive.extra={noise: 1}", "does not apply"),
    ],
)
def test_invalid_override_is_rejected_with_name_value_and_rule(setting, message):
    with pytest.raises(InputError) as refused:
        with_overrides(get_recipe("quick"), [setting])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("field", "digits"),
    [(field, digits) for field in ("batch_size", "progressive.image_size") for digits in (400, 5_000)]
    + [("seed", 5_000)],
)
def test_number_with_many_digits_names_its_field(field, digits, tmp_path):
    number = "9" * digits
    with pytest.raises(InputError, match=field) as refused:
        with_overrides(get_recipe("quick"), [f"{field}={number}"])
    assert len(str(refused.value)) < 1_000
    whole, _, part = field.partition(".")
    text = f"{whole}: {{{part}: {number}}}" if part else f"{whole}: {number}"
    (tmp_path / "long.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"long\.yaml.*{whole}.*{part}") as refused:
        read_recipe(tmp_path / "long.yaml")
    assert len(str(refused.value)) < 1_000 + len(str(tmp_path))


def test_deeply_nested_recipe_is_rejected_immediately(tmp_path):
    deep = "[" * 10_000 + "]" * 10_000
    (tmp_path / "deep.yaml").write_text(deep)
    with pytest.raises(InputError, match=mentioning("deep.yaml")):
        read_recipe(tmp_path / "deep.yaml")
    with pytest.raises(InputError, match=mentioning("seed")):
        with_overrides(get_recipe("quick"), [f"seed={deep}"])


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(InputError, match=mentioning("did you mean", "quick")):
        get_recipe("quik")


@given(st.dictionaries(st.sampled_from(["epochs", "batch_size", "seed"]), st.integers(1, 1000)))
def test_diff_names_only_changed_fields(changes):
    base = get_recipe("quick")
    other = validate_recipe(base.to_json() | changes, where="test")
    names = {line.split(":")[0] for line in diff_recipes(base, other)}
    assert names == {name for name, value in changes.items() if getattr(base, name) != value}


@pytest.mark.parametrize(
    ("field", "start", "end"),
    [("image_size", 300, 128), ("randaugment", 15, 5), ("mixup_alpha", 0.2, 0), ("dropout", 0.3, 0.1)],
)
def test_start_above_end_is_rejected(field, start, end):
    """Table 6 gives minima and maxima. A ramp starts at the minimum."""
    plain = get_recipe("efficientnetv2_m_paper").to_json()
    plain["progressive"] |= {field: {"start": start, "end": end}}
    with pytest.raises(InputError, match=f"{field} goes from {start} down to {end}.*start: {end}, end: {start}"):
        validate_recipe(plain, where="here")
    plain["progressive"] |= {field: {"start": end, "end": end}}
    assert validate_recipe(plain, where="here")


def test_invalid_recipe_file_is_rejected(tmp_path):
    file = tmp_path / "recipe.yaml"
    with pytest.raises(InputError, match="No such file"):
        read_recipe(file)
    file.write_text("name: [")
    with pytest.raises(InputError, match=mentioning("YAML")):
        read_recipe(file)
    file.write_text("- just a list")
    with pytest.raises(InputError, match=mentioning("should be a valid dictionary")):
        read_recipe(file)


def test_recipe_is_a_name_a_file_or_a_run_folder(tmp_path, monkeypatch):
    mine = get_recipe("finetune").model_copy(update={"crop_scale_min": 0.7})
    for folder in ("run", "quick"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "recipe.yaml").write_text(mine.to_yaml())
    assert load_recipe(str(tmp_path / "run")) == load_recipe(str(tmp_path / "run/recipe.yaml")) == mine
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quick") == get_recipe("quick"), "a name is that, whatever a folder is called"
    with pytest.raises(InputError, match=mentioning("none.yaml", "recipe.yaml")):
        load_recipe("none.yaml")
    with pytest.raises(InputError, match=mentioning("nothing")):
        load_recipe("nothing")


def test_overrides_read_the_recipe_file_once(tmp_path):
    """Folds use it later, even if the file has changed."""
    (tmp_path / "mine.yaml").write_text(get_recipe("finetune").to_yaml())
    words = TrainOverrides(recipe=str(tmp_path / "mine.yaml"), weights="none")
    (tmp_path / "mine.yaml").unlink()
    recipe, _ = requested_recipe(words, torch.device("cpu"))
    assert recipe == get_recipe("finetune").model_copy(update={"weights": "none"})


def test_evaluation_size_follows_a_new_training_size_if_they_were_equal(tmp_path):
    """The recipe of a run always has an evaluation size. Otherwise a new size would be evaluated at the old one."""
    mine = get_recipe("finetune").model_copy(update={"eval_image_size": 224, "weights": "none"})
    (tmp_path / "recipe.yaml").write_text(mine.to_yaml())
    words, said, cpu = TrainOverrides(recipe=str(tmp_path)), logged_lines(), torch.device("cpu")
    for sizes in ({"image_size": 300}, {"settings": ("progressive.image_size={start: 128, end: 300}",)}):
        assert requested_recipe(replace(words, **sizes), cpu)[0].eval_image_size is None
    named_again = replace(words, image_size=300, settings=("eval_image_size=256",))
    assert requested_recipe(named_again, cpu)[0].eval_image_size == 256
    assert not said
    paper = TrainOverrides(recipe="efficientnetv2_s_paper", image_size=128)
    assert requested_recipe(replace(paper, settings=("eval_image_size=384",)), cpu)[0].eval_image_size == 384
    assert not said, "to whom it is their own word"
    assert requested_recipe(paper, cpu)[0].eval_image_size == 384
    assert each_mentions(said, ("384", "128", "eval_image_size"))


@pytest.mark.parametrize(("tried", "then"), [((224, 256, 288, 320), "auto"), ((192, 256), (192, 256))])
def test_automatic_evaluation_sizes_follow_a_new_training_size(tried, then, tmp_path):
    """Otherwise no larger size would be tried. Requested sizes remain."""
    mine = get_recipe("finetune").model_copy(update={"eval_image_size": 224, "minival": 0.1, "weights": "none"})
    (tmp_path / "recipe.yaml").write_text(mine.model_copy(update={"eval_image_size_candidates": tried}).to_yaml())
    for words, found in (({}, tried), ({"image_size": 300}, then)):
        recipe, _ = requested_recipe(TrainOverrides(recipe=str(tmp_path), **words), torch.device("cpu"))
        assert recipe.eval_image_size_candidates == found


@pytest.mark.parametrize(
    ("crop_mode", "trained", "crop_pct"), [("squash", None, 1), ("border", None, 1), ("center", "center", 0.875)]
)
def test_another_crop_mode_evaluates_the_whole_image(crop_mode, trained, crop_pct):
    """224 of 256 px belong to the center crop of the recipe."""
    words = TrainOverrides(recipe="efficientnetv2_b0_released", crop_mode=crop_mode)
    recipe, _ = requested_recipe(words, torch.device("cpu"))
    assert (recipe.crop_mode, recipe.train_crop_mode) == (crop_mode, trained)
    assert recipe.crop_pct == pytest.approx(crop_pct)
