import importlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.messages import mentioning, mentions
from torch.utils.data import DataLoader, Dataset

from efficientnetv2.data.sampler import (
    ProgressiveBatchSampler,
    TrainSampler,
    class_fractions,
    class_members,
    effective_number,
    epoch_order,
    image_weights,
    rank_in_class,
)
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.presets import paper_schedule
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp, StepSettings
from efficientnetv2.training.losses import cross_entropy
from efficientnetv2.transforms.pipeline import AugmentPlan, augment
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

LABELS = np.array([0] * 30 + [1] * 10 + [2] * 4)
SCHEDULE_64 = ProgressiveSchedule(image_size=Ramp(32, 64), stages=2)

SCHEDULE = ProgressiveSchedule(stages=3, image_size=Ramp(32, 64), dropout=Ramp(0.0, 0.2))
EXAMPLES = Path(__file__).parents[2] / "examples" / "loops"
PAGE = EXAMPLES.parents[1] / "docs/how-to/own-training-loop.md"


def sampler(**changes):
    base = {
        "labels": LABELS,
        "progressive": SCHEDULE_64,
        "steps": 11,
        "batch_size": 8,
        "ghost_batch_size": 4,
        "class_sampling": None,
        "key": Key.of(1),
    }
    return TrainSampler(**(base | changes))


def rows(requests):
    return [(r.step, r.group, r.setting.image_size, r.samples.tolist(), r.turns.tolist()) for r in requests]


def test_every_image_is_drawn_once_per_epoch_across_steps():
    """88 draws of 44 images are two epochs for any batch size."""
    drawn = np.concatenate([r.samples for r in sampler()])
    epochs = np.concatenate([r.turns for r in sampler()])
    for epoch in (0, 1):
        assert sorted(drawn[epochs == epoch]) == list(range(44))


@given(first=st.integers(0, 10))
def test_sampler_resumes_in_the_middle_of_a_run(first):
    assert rows(sampler(first_step=first)) == rows(sampler())[2 * first :]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_groups_of_a_run(processes):
    """With more groups than processes, each process has every ``processes``-th group."""
    options = {"ghost_batch_size": 2}
    samplers = [sampler(**options, world=World(rank=rank, size=processes)) for rank in range(processes)]
    parts = [rows(one) for one in samplers]
    together = sorted(row for part in parts for row in part)
    assert together == sorted(rows(sampler(**options)))
    assert [len(part) for part in parts] == [len(one) for one in samplers]
    for rank, part in enumerate(parts):
        assert {group for _, group, *_ in part} == set(range(rank, 4, processes))


def test_request_has_the_hyperparameters_of_its_step():
    for request in sampler():
        assert request.setting == SCHEDULE_64.at(request.step, total_steps=11)


def test_equal_sampling_draws_classes_and_images_equally_often():
    """44 draws over 3 classes: 15, 15, 14 by largest remainder; over many epochs all images are equally frequent."""
    order, _ = epoch_order(LABELS, "equal", Key.of(0), 0)
    assert sorted(np.bincount(LABELS[order])) == [14, 15, 15]
    draws = np.bincount(
        np.concatenate([epoch_order(LABELS, "equal", Key.of(0), epoch)[0] for epoch in range(20)]), minlength=44
    )
    for cls in range(3):
        counts = draws[cls == LABELS]
        assert counts.max() - counts.min() <= 1


def test_square_root_sampling_follows_the_class_size():
    """Roots 5.477, 3.162, 2 of 10.64: 22.65, 13.08, 8.27 of 44; by largest remainder 23, 13, 8."""
    order, _ = epoch_order(LABELS, "sqrt", Key.of(0), 3)
    assert np.bincount(LABELS[order]).tolist() == [23, 13, 8]


def test_common_label_that_stands_alone_is_not_drawn_like_a_rare_one():
    """Dog and animal, cat and animal, animal alone: 500, 480 and 10 images. All 990 have the label animal."""
    labels = np.repeat([0, 1, 2], [500, 480, 10])
    for class_sampling in ("equal", "sqrt"):
        order, _ = epoch_order(labels, class_sampling, Key.of(0), 0, sizes=np.array([500, 480, 990]))
        each = np.bincount(labels[order], minlength=3) / [500, 480, 10]
        assert each[2] <= each[:2].min()


def test_balanced_classes_are_evenly_distributed_over_the_epoch():
    labels = np.repeat([0, 1], [900, 100])
    order = labels[epoch_order(labels, "equal", Key.of(5), 0)[0]]
    halves = order.reshape(10, 100).mean(axis=1)  # each tenth of the epoch has about half of each class
    assert np.abs(halves - 0.5).max() < 0.06


@given(epoch=st.integers(0, 2**20))
def test_order_depends_only_on_seed_and_epoch(epoch):
    first, second = (epoch_order(LABELS, None, Key.of(4), epoch) for _ in range(2))
    assert (first == second).all()
    assert (first != epoch_order(LABELS, None, Key.of(4), epoch + 1)).any()
    assert (first != epoch_order(LABELS, None, Key.of(5), epoch)).any()


@pytest.mark.parametrize("class_sampling", [None, "sqrt", "equal"])
def test_draw_ids_are_unique_in_a_run(class_sampling):
    """Repeated images of a rare class have different crops and augmentations."""
    ids = np.concatenate([r.ids for r in sampler(class_sampling=class_sampling, steps=60)])
    assert len(set(ids.tolist())) == len(ids)


@given(labels=st.lists(st.integers(0, 6), max_size=40))
def test_class_members_are_grouped(labels):
    found = class_members(np.array(labels, dtype=np.int64), 7)
    assert [members.tolist() for members in found] == [
        [position for position, label in enumerate(labels) if label == cls] for cls in range(7)
    ]


COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=8).map(np.array)


def test_effective_number_by_hand():
    """With beta 0.9: 1, 1 + 0.9, 1 + 0.9 + 0.81, and nearly 10."""
    assert effective_number([1, 2, 3, 10_000], 0.9) == pytest.approx([1, 1.9, 2.71, 10])


@given(COUNTS)
def test_effective_number_is_between_one_and_the_count(counts):
    assert effective_number(counts, 0.0) == pytest.approx(np.ones(len(counts)))
    assert effective_number(counts, 1 - 1e-9) == pytest.approx(counts, rel=1e-4)
    assert class_fractions(counts, "effective", 0.0) == pytest.approx(class_fractions(counts, None))
    assert class_fractions(counts, "effective", 1 - 1e-9) == pytest.approx(class_fractions(counts, "equal"), rel=1e-4)


def test_class_fractions_by_hand():
    """30, 10 and 4: original fractions; a third each; roots 5.477, 3.162, 2."""
    assert class_fractions([30, 10, 4], None) == pytest.approx([30 / 44, 10 / 44, 4 / 44])
    assert class_fractions([30, 10, 4], "equal") == pytest.approx([1 / 3] * 3)
    assert class_fractions([30, 10, 4], "sqrt") == pytest.approx([0.5148, 0.2972, 0.1880], abs=1e-4)


def test_class_without_images_has_fraction_0():
    assert class_fractions([8, 0, 8], "equal").tolist() == [0.5, 0, 0.5]
    assert image_weights([8, 0], "sqrt")[1] == 0


@given(COUNTS, st.sampled_from(["sqrt", "effective", "equal"]))
def test_rare_classes_become_more_frequent_but_not_the_most_frequent(counts, class_sampling):
    before, after = class_fractions(counts, None), class_fractions(counts, class_sampling)
    rarest, most_frequent = counts.argmin(), counts.argmax()
    assert after[rarest] >= before[rarest] - 1e-12
    assert after[rarest] <= after[most_frequent] + 1e-12


def test_epoch_follows_the_effective_number():
    labels = np.repeat([0, 1], [900, 100])
    drawn = np.bincount(labels[epoch_order(labels, "effective", Key.of(0), 0, beta=0.99)[0]])
    fraction = class_fractions([900, 100], "effective", 0.99)
    assert drawn.tolist() == np.round(1000 * fraction).astype(int).tolist()
    assert 100 < drawn[1] < 500


@given(images=st.integers(1, 50), batch=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_image_is_drawn_once_per_epoch(images, batch, epochs, seed):
    steps = max(3, -(-images * epochs // batch))
    batches = ProgressiveBatchSampler(images, batch_size=batch, progressive=SCHEDULE, steps=steps, seed=seed)
    drawn = [index for group in batches for index, _ in group]
    for epoch in range(epochs):
        part = drawn[epoch * images : (epoch + 1) * images]
        assert sorted(part) == list(range(len(part))) or len(part) < images


@pytest.mark.parametrize(("name", "value"), [("steps", 31.25), ("images", [1, 2]), ("batch_size", True)])
def test_counts_of_the_batch_sampler_are_whole_numbers(name, value):
    counts = {"images": 100, "batch_size": 4, "steps": 10} | {name: value}
    with pytest.raises(InputError, match=mentioning(name, "whole number")):
        ProgressiveBatchSampler(counts.pop("images"), progressive=SCHEDULE, **counts)


def test_index_has_the_hyperparameters_of_its_step():
    batches = list(ProgressiveBatchSampler(10, batch_size=4, progressive=SCHEDULE, steps=6))
    assert [{setting.image_size for _, setting in batch} for batch in batches] == [
        {32}, {32}, {48}, {48}, {64}, {64}
    ]  # fmt: skip


def test_resumed_sampler_gives_the_remaining_batches():
    complete = list(ProgressiveBatchSampler(7, batch_size=4, progressive=SCHEDULE, steps=6, seed=3))
    rest = ProgressiveBatchSampler(7, batch_size=4, progressive=SCHEDULE, steps=6, seed=3, first_step=4)
    assert list(rest) == complete[4:]


def test_finished_run_has_no_batches():
    """Lightning requests batches before it ends; the length is that of the complete run."""
    rest = ProgressiveBatchSampler(7, batch_size=4, progressive=SCHEDULE, steps=6, first_step=6)
    assert (list(rest), len(rest)) == ([], 6)


def test_length_is_that_of_the_complete_run():
    """Lightning adds the finished batches of a resumed run and ends at the length."""
    rest = ProgressiveBatchSampler(7, batch_size=4, progressive=SCHEDULE, steps=6, first_step=4, accumulate=2)
    assert (len(rest), len(list(rest))) == (12, 4)


@given(images=st.integers(1, 40), micro=st.integers(1, 4), accumulate=st.integers(1, 4), world=st.integers(1, 3))
def test_micro_batches_of_a_step_are_its_images(images, micro, accumulate, world):
    """They are the images of the step in one process, with its hyperparameters, in equal numbers per process."""
    options = {"batch_size": micro * accumulate * world, "progressive": SCHEDULE, "steps": 4}
    ranks = [
        list(ProgressiveBatchSampler(images, **options, rank=rank, world=world, accumulate=accumulate))
        for rank in range(world)
    ]
    assert {len(batch) for batches in ranks for batch in batches} == {micro}
    for step, single in enumerate(ProgressiveBatchSampler(images, **options)):
        parts = [batches[step * accumulate : (step + 1) * accumulate] for batches in ranks]
        drawn = [item for part in parts for batch in part for item in batch]
        assert sorted(index for index, _ in drawn) == sorted(index for index, _ in single)
        assert all(setting == single[0][1] for _, setting in drawn)


@given(images=st.integers(1, 40), share=st.integers(1, 8), world=st.integers(1, 5), steps=st.integers(3, 12))
def test_processes_share_the_images_of_each_step(images, share, world, steps):
    """Equal numbers per process; together they are the images of one process, with the same hyperparameters."""
    options = {"batch_size": share * world, "progressive": SCHEDULE, "steps": steps}
    ranks = [list(ProgressiveBatchSampler(images, **options, rank=rank, world=world)) for rank in range(world)]
    assert {len(batch) for batches in ranks for batch in batches} == {share}
    drawn = [sorted((index, setting.image_size) for batch in step for index, setting in batch)
             for step in zip(*ranks, strict=True)]  # fmt: skip
    single = ProgressiveBatchSampler(images, **options)
    assert drawn == [sorted((index, setting.image_size) for index, setting in batch) for batch in single]


def test_epochs_and_seeds_have_different_orders():
    batches = list(ProgressiveBatchSampler(32, batch_size=32, progressive=SCHEDULE, steps=3))
    orders = [[index for index, _ in batch] for batch in batches]
    assert orders[0] != orders[1]
    other = list(ProgressiveBatchSampler(32, batch_size=32, progressive=SCHEDULE, steps=3, seed=1))
    assert [index for index, _ in other[0]] != orders[0]


class _Sizes(Dataset):
    def __getitem__(self, request):
        index, setting = request
        return np.full((setting.image_size, setting.image_size), index)


def test_dataloader_with_workers_preserves_the_order():
    batches = ProgressiveBatchSampler(8, batch_size=4, progressive=SCHEDULE, steps=3)
    loader = DataLoader(_Sizes(), batch_sampler=batches, num_workers=1)
    assert [images.shape[-1] for images in loader] == [32, 48, 64]
    indices = [[int(image[0, 0]) for image in images] for images in loader]
    assert indices == [[index for index, _ in batch] for batch in batches]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"images": 0}, ("0", "image")),
        ({"batch_size": 0}, ("batch_size", "0")),
        ({"steps": 2}, ("3", "2", "stage")),
        ({"steps": -1}, ("-1", "1", "steps")),
        ({"first_step": 10}, ("first_step", "10", "9", "0")),
        ({"first_step": -1}, ("first_step", "-1", "9", "0")),
        ({"world": 3}, ("batch_size", "2", "3")),
        ({"accumulate": 0}, ("accumulate", "0", "1")),
        ({"accumulate": 4}, ("batch_size", "2", "4")),
        ({"world": 2, "accumulate": 2}, ("2", "4", "batch_size")),
        ({"rank": 2, "world": 2}, ("rank", "world", "2")),
        ({"world": 0}, ("rank", "world", "0")),
        ({"progressive": "paper"}, ("progressive", "'paper'", "ProgressiveSchedule", "paper_schedule")),
    ],
)
def test_invalid_arguments_are_rejected(changes, facts):
    arguments = {"images": 5, "batch_size": 2, "progressive": SCHEDULE, "steps": 9} | changes
    with pytest.raises(InputError, match=mentioning(*facts)):
        ProgressiveBatchSampler(arguments.pop("images"), **arguments)


NEEDS = {"plain": "torchvision", "with_lightning": "lightning", "with_transformers": "transformers"}
# Runs of each example in one process, because its start takes longer than its steps. sys.argv[1] is a folder.
# In Lightning and in Hugging Face's Trainer, "resumed" saves a checkpoint after each step and stops after two.
RUNS = {
    "plain": {
        "progressive": "train(3); train(6, accumulate=2)",
        "resumed": "train(2 + 4, 2, accumulate=2)",
        "other_model": """
            import torchvision, plain
            plain.efficientnet_b0 = torchvision.models.resnet18
            train(3)
        """,
    },
    "with_lightning": {
        "progressive": "train(3); train(6, accumulate_grad_batches=2)",
        "resumed": """
            class Stop(lightning.Callback):
                def on_train_batch_end(self, trainer, *_):
                    trainer.should_stop = trainer.global_step == 2
            keep = lightning.pytorch.callbacks.ModelCheckpoint(sys.argv[1], filename="saved", every_n_train_steps=1)
            train(6, callbacks=[keep, Stop()], enable_checkpointing=True, accumulate_grad_batches=2)
            train(6, checkpoint=keep.best_model_path, accumulate_grad_batches=2)
        """,
        "finished": """
            keep = lightning.pytorch.callbacks.ModelCheckpoint(sys.argv[1], filename="end", every_n_train_steps=1)
            train(3, callbacks=[keep], enable_checkpointing=True)
            print("ended after", train(3, checkpoint=keep.best_model_path).global_step)
        """,
        "validated": """
            class Recorder(lightning.Callback):
                def on_validation_batch_start(self, trainer, module, batch, *_):
                    print(f"validated after {trainer.global_step}: {batch['images'].shape[-1]} px")
            train(4, val_check_interval=2, num_sanity_val_steps=0, callbacks=[Recorder()])
        """,
        "other_model": """
            import torchvision
            ev2.create = lambda name, num_classes: torchvision.models.resnet18(num_classes=num_classes)
            train(3)
        """,
    },
    "with_transformers": {
        "progressive": "train(3); train(6, gradient_accumulation_steps=2, per_device_train_batch_size=8)",
        "resumed": """
            import transformers
            class Stop(transformers.TrainerCallback):
                def on_step_end(self, args, state, control, **_):
                    control.should_training_stop = state.global_step == 2
            options = {"output_dir": sys.argv[1], "save_strategy": "steps", "save_steps": 1}
            options |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
            train(6, callbacks=[Stop()], **options)
            train(6, checkpoint=True, **options)
        """,
        # The throughput and the batch size in the log depend on per_device_train_batch_size.
        "validated": """
            import with_transformers
            class Recorder(ProgressiveTrainer):
                def compute_loss(self, model, inputs, *args, **kwargs):
                    if model.training:
                        assert len(inputs["pixel_values"]) == self.args.train_batch_size == 16
                    else:
                        print(f"validated after {self.state.global_step}: {inputs['pixel_values'].shape[-1]} px")
                    return super().compute_loss(model, inputs, *args, **kwargs)
            with_transformers.ProgressiveTrainer = Recorder
            train(4, eval_steps=2)
        """,
        "summed": """
            import torch
            norms = {}
            class ConstantBatch(ProgressiveTrainer):
                def training_step(self, model, inputs, *args):
                    inputs["pixel_values"] = torch.ones_like(inputs["pixel_values"])
                    inputs["labels"] = torch.zeros_like(inputs["labels"])
                    model.dropout.forward = lambda features: features
                    loss = super().training_step(model, inputs, *args)
                    norms[self.args.gradient_accumulation_steps] = float(model.classifier.bias.grad.norm())
                    return loss
            with_transformers.ProgressiveTrainer = ConstantBatch
            for accumulate in (1, 2):
                torch.manual_seed(0)
                size = {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 16 // accumulate}
                train(3, learning_rate=0.0, eval_strategy="no", **size)
            print("norms", norms[1], norms[2])
            with_transformers.ProgressiveTrainer = ProgressiveTrainer
        """,
        "other_model": """
            with_transformers.network_for = lambda classes: transformers.ResNetForImageClassification(
                transformers.ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], num_labels=len(classes)))
            train(3)
        """,
    },
}

# Print the dropout of the modules after each call, independent of the output of the example.
RECORDING = """
import sys; sys.path.insert(0, {!r})
import efficientnetv2 as ev2
apply = ev2.apply_regularization
def recorded(model, setting):
    changed = apply(model, setting)
    rates = [model.get_submodule(name).p for name in changed.dropout_modules]
    print(f"actual {{max(rates, default=0):.2f}}")
    return changed
ev2.apply_regularization = recorded
from {} import *
"""


@cache
def _outputs(script):
    """The output of each run of an example."""
    if find_spec(NEEDS[script]) is None:
        pytest.skip(f"{NEEDS[script]} is not installed (pip install -e '.[loops]')")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    runs = [f"print('@@ {name}')\n{dedent(code)}" for name, code in RUNS[script].items()]
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", "\n".join([RECORDING.format(str(EXAMPLES), script), *runs]), folder],
            capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return dict(part.split("\n", 1) for part in result.stdout.split("@@ ")[1:])


def _steps(output):
    """(step, px, dropout) of each micro-batch, checked against the modules of the model."""
    line = r"^actual (\d\.\d\d)\nstep (\d+): (\d+) px, dropout (\d\.\d\d); set: dropout in"
    lines = re.findall(line, output, re.MULTILINE)
    assert all(actual == dropout for actual, _, _, dropout in lines)
    return [(int(step), int(px), float(dropout)) for _, step, px, dropout in lines]


def _expected_steps(steps, *, accumulate=1, first_step=0):
    """The same from the schedule."""
    settings = [(step, SCHEDULE.at(step, total_steps=steps)) for step in range(first_step, steps)]
    return [(step, values.image_size, round(values.dropout, 2)) for step, values in settings for _ in range(accumulate)]


@pytest.mark.parametrize("script", NEEDS)
def test_examples_change_image_size_and_dropout_by_the_schedule(script):
    """Micro-batches have the hyperparameters of their step. Other models run too, and missing effects are reported."""
    outputs = _outputs(script)
    assert _steps(outputs["progressive"]) == [*_expected_steps(3), *_expected_steps(6, accumulate=2)]
    lines = re.findall(r"^step (\d): (\d+) px, dropout (?:.*?); set: (.*)$", outputs["other_model"], re.MULTILINE)
    assert [(step, px) for step, px, _ in lines] == [("0", "32"), ("1", "48"), ("2", "64")]
    assert mentions(lines[-1][2], "0.2", "dropout")
    assert all(mentions(missing, "randaugment") for _, _, missing in lines)


def test_trainer_sums_micro_batches_to_the_same_gradient():
    """For a model of transformers, whose forward accepts more arguments than its loss uses."""
    output = _outputs("with_transformers")["summed"]
    full, halves = re.search(r"^norms (\S+) (\S+)$", output, re.MULTILINE).groups()
    assert float(full) == pytest.approx(float(halves), rel=0.05) != 0


@pytest.mark.parametrize("script", NEEDS)
def test_examples_resume_where_they_stopped(script):
    steps = _steps(_outputs(script)["resumed"])
    assert steps[-8:] == _expected_steps(6, accumulate=2, first_step=2)
    assert steps[:-8] == ([] if script == "plain" else _expected_steps(6, accumulate=2)[:4])


def test_finished_lightning_run_does_not_train_again():
    lines = _outputs("with_lightning")["finished"].splitlines()
    assert [line for line in lines if line.startswith(("step ", "ended "))][3:] == ["ended after 3"]


@pytest.mark.parametrize("script", ["with_lightning", "with_transformers"])
def test_validation_runs_at_the_last_size(script):
    validations = re.findall(r"^validated after (\d+): (\d+) px", _outputs(script)["validated"], re.MULTILINE)
    assert "evaluation mode" not in _outputs(script)["validated"]
    assert set(validations) == {("2", "64"), ("4", "64")}


def test_examples_use_the_randaugment_magnitude_of_the_schedule(monkeypatch):
    """Magnitude 10 is the maximum in a schedule; in torchvision it is the last of 31 bins, so three times the value."""
    photos = _photos(monkeypatch)
    calls = []
    rand_augment = photos.v2.RandAugment
    monkeypatch.setattr(photos.v2, "RandAugment", lambda *args: calls.append(args) or rand_augment(*args))
    dataset = photos.Growing(photos.Photos())
    for magnitude in (photos.PLAN.last.randaugment, 15, 0.1, 0, None):
        dataset[0, StepSettings(image_size=32, randaugment=magnitude)]
    assert photos.PLAN.last.randaugment == 6
    assert calls == [(2, 18), (2, 30), (2, 0)]
    assert rand_augment().num_magnitude_bins == 31


@pytest.mark.parametrize("plan", ["documentation", "efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l"])
def test_example_dataset_supports_every_stage_of_any_schedule(plan, monkeypatch):
    """All operations of RandAugment at the magnitudes of the paper, at 16 px to be fast."""
    photos = _photos(monkeypatch)
    progressive = _run_page("PLAN = ")["PLAN"] if plan == "documentation" else paper_schedule(plan)
    images = photos.Growing([(Image.new("RGB", (20, 20)), 3)])
    for index in range(progressive.stages):
        setting = replace(progressive.stage(index), image_size=16)
        for _ in range(20):
            image, label, hyperparameters = images[0, setting]
            assert (tuple(image.shape), label, hyperparameters) == ((3, 16, 16), 3, setting)


def _photos(monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("photos")


def test_validation_photos_are_not_cropped_and_have_the_last_size(monkeypatch):
    photos = _photos(monkeypatch)
    train, held_out = photos.Photos(), photos.Photos(held_out=True)
    validation = photos.Whole(held_out, photos.PLAN.last)
    image, label, setting = validation[0]
    assert (tuple(image.shape), setting, len(validation)) == ((3, 64, 64), photos.PLAN.last, len(held_out))
    assert torch.equal(image, validation[0][0])
    assert (train.classes, 0 <= label < len(train.classes)) == (held_out.classes, True)
    paths = [{row["path"] for row in part.rows} for part in (train, held_out)]
    assert (len(paths[0] & paths[1]), len(train) > len(held_out) > 0) == (0, True)


def _blocks():
    """The Python code blocks of the page."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def _run_page(*pieces):
    """The names defined by code blocks of the page; each block is selected by a substring."""
    names = {"__name__": "page"}
    for piece in pieces:
        (code,) = [block for block in _blocks() if piece in block]
        exec(code, names)
    return names


def test_code_blocks_of_the_page_are_a_complete_script(monkeypatch):
    """Schedule, dataset and loop, in a clone."""
    monkeypatch.chdir(EXAMPLES.parents[1])
    names = _run_page("PLAN = ", "class ProgressiveImages", "for batch in loader")
    assert names["batch"]["images"].shape == (8, 3, 64, 64)
    assert names["batch"]["setting"] == names["PLAN"].last
    assert torch.isfinite(names["loss"])


def test_schedule_of_the_page_has_the_documented_sizes():
    (code,) = [block for block in _blocks() if "PLAN = " in block]
    expression, documented = re.search(r"^(PLAN\.stage.*?) +# (.*)$", code, re.MULTILINE).groups()
    names = _run_page("PLAN = ")
    assert eval(expression, names) == eval(documented)


def test_loss_with_mixing_on_the_page_is_that_of_training():
    """With MixUp, CutMix and label smoothing."""
    (code,) = [block for block in _blocks() if "import mix" in block]
    assert "step, setting = 5, " in code
    setting = StepSettings(image_size=8, mixup_alpha=0.4, cutmix_alpha=0.4, label_smoothing=0.1)
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, to_floats = torch.arange(8) % 3, Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3))
    names = {
        "torch": torch,
        "model": model,
        "dataset": SimpleNamespace(classes=("a", "b", "c")),
        "batch": {"images": pixels / 127.5 - 1, "labels": labels, "setting": setting},
    }
    exec(code, names)
    images, soft_labels = augment(
        pixels,
        labels,
        setting=setting,
        key=Key.of(0),
        ids=range(8),
        mix_key=Key.of(0).fold("mix", 5),
        plan=AugmentPlan(flip="none"),
        preprocessing=to_floats,
        num_classes=3,
    )
    torch.testing.assert_close(names["loss"], cross_entropy(model(images), soft_labels))


# Only the standard library, three packages and their requirements can be imported.
MINIMAL_ENVIRONMENT = """
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement

def plain(name):
    return name.lower().replace("_", "-")

queue, found = ["torch", "numpy", "pydantic"], {"efficientnetv2"}
while queue:
    name = plain(queue.pop())
    try:
        lines = [] if name in found else requires(name) or []
    except PackageNotFoundError:
        lines = []
    found.add(name)
    needs = [Requirement(line) for line in lines]
    queue += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
missing = {name for name, owners in packages_distributions().items() if not found & set(map(plain, owners))}
assert {"PIL", "packaging", "torchvision", "pandas", "yaml"} <= missing
for name in [name for name in sys.modules if name.partition(".")[0] in missing]:
    del sys.modules[name]

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_rank_in_class_counts_the_images_before():
    assert rank_in_class(np.array([2, -1, 2, 0, -1, 2])).tolist() == [0, 0, 1, 0, 1, 2]


def test_custom_loop_needs_three_packages():
    """All imports and names on the page before models are saved."""
    minimal = PAGE.read_text(encoding="utf-8").partition("## Save and use the model")[0]
    code = "\n".join(block for block in _blocks() if block.strip() in minimal)
    assert code
    names = sorted(
        {f"ev2.{name}" for name in re.findall(r"\bev2\.(\w+)", code)} | {"ev2.paper_schedule", "ev2.InputError"}
    )
    imports = re.findall(r"^(?:from|import) efficientnetv2.*$", code, re.MULTILINE)
    script = "\n".join(
        [MINIMAL_ENVIRONMENT, *imports, "import efficientnetv2.transforms.pipeline", *names, "print('all')"]
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert result.stdout == "all\n", result.stderr


def test_page_lists_every_example():
    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for example in EXAMPLES.glob("*.py"):
        assert any(f"/{example.name}`" in row for row in rows), example.name
