"""The batch sampler for other people's loops, and the examples that use it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from efficientnetv2.base.errors import InputError
from efficientnetv2.data.own_loop import ProgressiveBatches
from efficientnetv2.progressive import Progressive, Ramp

PLAN = Progressive(stages=3, image_px=Ramp(32, 64), dropout=Ramp(0.0, 0.2))
EXAMPLES = Path(__file__).parents[2] / "examples" / "loops"


@given(images=st.integers(1, 50), batch=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_picture_comes_once_an_epoch(images, batch, epochs, seed):
    steps = max(3, -(-images * epochs // batch))
    batches = ProgressiveBatches(images, batch_images=batch, progressive=PLAN, steps=steps, seed=seed)
    drawn = [index for group in batches for index, _ in group]
    for epoch in range(epochs):
        part = drawn[epoch * images : (epoch + 1) * images]
        assert sorted(part) == list(range(len(part))) or len(part) < images


def test_each_index_comes_with_the_setting_of_its_step():
    batches = list(ProgressiveBatches(10, batch_images=4, progressive=PLAN, steps=6))
    assert [{setting.image_px for _, setting in batch} for batch in batches] == [
        {32}, {32}, {48}, {48}, {64}, {64}
    ]  # fmt: skip


def test_going_on_gives_what_would_have_come():
    whole = list(ProgressiveBatches(7, batch_images=4, progressive=PLAN, steps=6, seed=3))
    rest = ProgressiveBatches(7, batch_images=4, progressive=PLAN, steps=6, seed=3, first_step=4)
    assert list(rest) == whole[4:]
    assert len(rest) == 2


@given(images=st.integers(1, 40), share=st.integers(1, 8), world=st.integers(1, 5), steps=st.integers(3, 12))
def test_processes_share_the_pictures_of_each_step(images, share, world, steps):
    """As many each; together those of one process alone, each as often as there, with the same setting."""
    words = {"batch_images": share * world, "progressive": PLAN, "steps": steps}
    ranks = [list(ProgressiveBatches(images, **words, rank=rank, world=world)) for rank in range(world)]
    assert {len(batch) for batches in ranks for batch in batches} == {share}
    drawn = [sorted((index, setting.image_px) for batch in step for index, setting in batch)
             for step in zip(*ranks, strict=True)]  # fmt: skip
    alone = ProgressiveBatches(images, **words)
    assert drawn == [sorted((index, setting.image_px) for index, setting in batch) for batch in alone]


def test_two_processes_never_train_on_the_same_picture():
    first, second = (
        list(ProgressiveBatches(48, batch_images=16, progressive=PLAN, steps=3, rank=rank, world=2))
        for rank in (0, 1)
    )
    seen = [{index for batch in batches for index, _ in batch} for batches in (first, second)]
    assert seen[0] | seen[1] == set(range(48))
    assert not seen[0] & seen[1]


def test_epochs_and_seeds_differ_in_order():
    batches = list(ProgressiveBatches(32, batch_images=32, progressive=PLAN, steps=3))
    orders = [[index for index, _ in batch] for batch in batches]
    assert orders[0] != orders[1]
    other = list(ProgressiveBatches(32, batch_images=32, progressive=PLAN, steps=3, seed=1))
    assert [index for index, _ in other[0]] != orders[0]


class _Sizes(Dataset):
    def __getitem__(self, asked):
        index, setting = asked
        return np.full((setting.image_px, setting.image_px), index)


def test_a_dataloader_with_workers_reads_it_in_order():
    batches = ProgressiveBatches(8, batch_images=4, progressive=PLAN, steps=3)
    loader = DataLoader(_Sizes(), batch_sampler=batches, num_workers=1)
    assert [images.shape[-1] for images in loader] == [32, 48, 64]
    again = [[int(image[0, 0]) for image in images] for images in loader]
    assert again == [[index for index, _ in batch] for batch in batches]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": 0}, "images is 0"),
        ({"batch_images": 0}, "batch_images is 0"),
        ({"steps": 2}, "3 stages do not fit into 2 steps"),
        ({"first_step": 9}, "step 9 lies outside a run of 9 steps"),
        ({"world": 3}, "batch_images is 2, but 3 processes share each step evenly. Take a multiple of 3"),
        ({"rank": 2, "world": 2}, "rank is 2 and world is 2"),
        ({"world": 0}, "rank is 0 and world is 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    words = {"images": 5, "batch_images": 2, "progressive": PLAN, "steps": 9} | changes
    with pytest.raises(InputError, match=sentence):
        ProgressiveBatches(words.pop("images"), **words)


@pytest.mark.parametrize(
    ("script", "needs"),
    [("plain", "torchvision"), ("with_lightning", "lightning"), ("with_transformers", "transformers")],
)
def test_the_examples_grow_pictures_and_dropout_in_other_loops(script, needs):
    if find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed (pip install '.[loops]')")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{script}.py", "3"],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [line.split("dropout")[0] for line in steps] == [
        "step 0: 32 px, ",
        "step 1: 48 px, ",
        "step 2: 64 px, ",
    ]
    assert [line.split("dropout ")[1][:4] for line in steps] == ["0.00", "0.10", "0.20"]


def test_the_page_on_schedules_says_what_each_example_shows():
    page = (EXAMPLES.parents[1] / "docs" / "progressive.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for example in EXAMPLES.glob("*.py"):
        assert any(f"`{example.name}`" in row for row in rows), example.name
