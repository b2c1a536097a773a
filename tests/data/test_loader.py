from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import paint
from tests.messages import mentioning
from torch.utils.data import Dataset

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.loader import (
    TrainingImages,
    evaluation_batches,
    iter_batches,
    thread_map,
    training_batches,
    worker_errors,
)
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp, StepSettings
from efficientnetv2.utils.errors import InputError, ReaderKilledError
from efficientnetv2.utils.random_key import Key

PLAN = ProgressiveSchedule(image_size=Ramp(24, 40), stages=2)
PREPROCESSING = Preprocessing(image_size=40)


def training_images(dataset, threads=1, area_min=0.3, preprocessing=PREPROCESSING):
    return TrainingImages(dataset, preprocessing, area_min, Key.of(0), threads)


def request(samples, turns=None, px=32):
    samples = np.array(samples, dtype=np.int64)
    turns = np.zeros_like(samples) if turns is None else np.array(turns, dtype=np.int64)
    return BatchRequest(0, 0, StepSettings(image_size=px), samples, turns)


def sampler(dataset):
    return TrainSampler(dataset.labels, PLAN, 6, 8, 4, "equal", Key.of(3))


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), (2, 1)])
def test_batches_do_not_depend_on_workers_and_threads(workers, threads, class_folders):
    dataset = load_dataset(class_folders)
    single = list(training_batches(training_images(dataset), sampler(dataset), workers=0))
    parallel = list(training_batches(training_images(dataset, threads), sampler(dataset), workers=workers))
    assert len(single) == len(parallel) == 12
    for first, second in zip(single, parallel, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    assert [batch.images.shape[-1] for batch in single] == [24] * 6 + [40] * 6, "the image size grows"


def test_threads_leave_no_warning_filter_behind():
    """Two calls that overlap: the first one ends before the second one does."""
    before = list(warnings.filters)
    began, ended = threading.Event(), threading.Event()

    def first(index):
        began.set()
        time.sleep(0.2)

    def second(index):
        ended.wait(10)

    def call():
        thread_map(first, 2, 2)
        ended.set()

    thread = threading.Thread(target=call)
    thread.start()
    began.wait(10)
    thread_map(second, 2, 2)
    thread.join()
    assert warnings.filters == before


def test_batches_are_uint8_channels_last_with_labels(class_folders):
    dataset = load_dataset(class_folders)
    batch = training_images(dataset).batch(request([0, 20, 40]))
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.tolist() == dataset.labels[[0, 20, 40]].tolist()
    # classes blue, green, red: the strongest channel is that of the label
    assert batch.images.float().mean((2, 3)).argmax(1).tolist() == [2, 1, 0]


def test_every_draw_of_an_image_has_another_crop_and_is_reproducible(class_folders):
    reader = training_images(load_dataset(class_folders))
    first, second, next_draw = (reader.batch(request([5], [turn])).images for turn in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, next_draw)


def test_unreadable_image_is_replaced_by_one_of_its_class(class_folders):
    dataset = load_dataset(class_folders)
    unreadable = int(np.flatnonzero(dataset.labels == 1)[3])
    (class_folders / dataset.paths[unreadable]).write_bytes(b"not an image")
    batch = training_images(dataset).batch(request([unreadable]))
    assert batch.labels.tolist() == [1]
    ((sample, reason),) = batch.unreadable
    assert sample == unreadable
    assert "not an image" in reason


@pytest.mark.parametrize("workers", [0, 1])
def test_class_without_readable_images_stops_the_run(workers, class_folders):
    dataset = load_dataset(class_folders)
    for path in (class_folders / "green").iterdir():
        path.unlink()
    batches = training_batches(training_images(dataset), sampler(dataset), workers=workers)
    with pytest.raises(InputError, match=mentioning("green", "unreadable")) as error:
        list(batches)
    assert "Traceback" not in str(error.value)


def test_padding_has_the_mean_of_the_preprocessing(class_folders, tmp_path):
    from PIL import Image

    Image.new("RGB", (80, 20), (0, 0, 0)).save(class_folders / "red/wide.png")
    dataset = load_dataset(class_folders)
    padded = Preprocessing(image_size=32, crop_mode="border", mean=(1.0, 0.5, 0.0), std=(1.0, 1.0, 1.0))
    wide = dataset.paths.index("red/wide.png")
    image = training_images(dataset, area_min=1.0, preprocessing=padded).batch(request([wide])).images[0]
    assert image[:, 0, 0].tolist() in ([255, 127, 0], [255, 128, 0])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_has_every_readable_image_once_in_order(workers, class_folders):
    dataset = load_dataset(class_folders)
    (class_folders / dataset.paths[7]).write_bytes(b"")
    batches = list(evaluation_batches(dataset, PREPROCESSING, batch_size=10, workers=workers))
    samples = np.concatenate([batch.samples for batch in batches]).tolist()
    assert samples == [row for row in range(48) if row != 7]
    assert [row for batch in batches for row, _ in batch.unreadable] == [7]
    assert all(batch.images.shape[1:] == (3, 40, 40) for batch in batches)


class FromMemory:
    """A reader of bytes in memory, with some images missing."""

    def __init__(self, dataset, missing=()):
        self.content = [Path(dataset.file(row)).read_bytes() for row in range(len(dataset))]
        self.missing = missing

    def source(self, sample):
        if sample in self.missing:
            raise UnreadableImageError(self.name(sample), "is lost")
        return self.content[sample]

    def name(self, sample):
        return f"memory#{sample}"

    def ahead(self, samples):
        return self


def test_images_do_not_depend_on_the_reader(class_folders):
    dataset = load_dataset(class_folders)
    reader = TrainingImages(dataset, PREPROCESSING, 0.3, Key.of(0), reader=FromMemory(dataset))
    assert torch.equal(reader.batch(request([4, 30])).images, training_images(dataset).batch(request([4, 30])).images)


def test_missing_image_is_replaced_and_named_by_the_reader(class_folders):
    dataset = load_dataset(class_folders)
    lost = TrainingImages(dataset, PREPROCESSING, 0.3, Key.of(0), reader=FromMemory(dataset, missing={4}))
    batch = lost.batch(request([4]))
    assert batch.unreadable == ((4, "is lost"),)
    assert batch.labels.tolist() == [dataset.labels[4]]
    all_lost = TrainingImages(dataset, PREPROCESSING, 0.3, Key.of(0), reader=FromMemory(dataset, range(16)))
    with pytest.raises(InputError, match=mentioning("blue", "memory#3")):
        all_lost.batch(request([4]))


def test_more_workers_than_cores_give_no_warning_of_pytorch(class_folders, monkeypatch):
    """PyTorch would repeat the warning for each loader, inside a progress bar."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    dataset = load_dataset(class_folders)
    assert len(list(training_batches(training_images(dataset), sampler(dataset), workers=2))) == 12
    assert len(list(evaluation_batches(dataset, PREPROCESSING, batch_size=24, workers=2))) == 2


def test_workers_ignore_hangup(class_folders):
    """The signal reaches the workers too. The main process decides when to stop."""
    dataset = load_dataset(class_folders)
    batches = training_batches(training_images(dataset), sampler(dataset), workers=1)
    next(batches)
    [reader] = multiprocessing.active_children()
    # The default handler, not that of PyTorch, which raises anywhere in the main process.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        os.kill(reader.pid, signal.SIGHUP)
        assert len(list(batches)) == 11
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_worker_without_shared_memory_was_not_killed_for_its_memory():
    """Only images are in shared memory, with the same size for any model."""
    with pytest.raises(InputError, match=mentioning("workers")) as error, worker_errors():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that")
    assert not isinstance(error.value, ReaderKilledError)


@pytest.mark.parametrize(
    "message",
    ["DataLoader worker (pid 7) is killed by signal: Killed. ", "DataLoader worker (pid(s) 7) exited unexpectedly"],
)
def test_killed_worker_is_reported(message):
    with pytest.raises(InputError, match=mentioning("workers")), worker_errors():
        raise RuntimeError(message)
    with pytest.raises(ReaderKilledError), worker_errors():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="other"), worker_errors():
        raise RuntimeError("other")


class _Lost(Dataset):
    """Images whose worker has lost its queue."""

    def __getitem__(self, request):
        raise ConnectionResetError("by peer")


def test_connection_error_means_a_killed_worker_only_where_images_are_read():
    with pytest.raises(ReaderKilledError):
        list(iter_batches(_Lost(), [[0]], workers=0, pin_memory=False))
    with pytest.raises(ReaderKilledError), worker_errors(ConnectionError):
        raise ConnectionResetError("by peer")
    with pytest.raises(ConnectionRefusedError), worker_errors():  # of a callback
        raise ConnectionRefusedError("dashboard")


def test_training_images_have_the_interpolation_of_the_model(class_folders):
    dataset = load_dataset(class_folders)
    one, other = (
        training_images(dataset, preprocessing=Preprocessing(image_size=40, interpolation=name)).batch(request([5]))
        for name in ("bilinear", "bicubic")
    )
    assert not torch.equal(one.images, other.images)


def test_replacement_of_an_unreadable_image_has_its_own_labels(tmp_path):
    """Both are drawn by their rarest label, cat; only the second one shows a tree too."""
    cells = ("cat;animal", "cat;tree;animal", "tree;animal")
    for number in range(3):
        paint(tmp_path / f"{number}.jpg", (60, 60, 60), number)
    rows = "".join(f"{number}.jpg,{cell}\n" for number, cell in enumerate(cells))
    (tmp_path / "images.csv").write_text(f"path,label\n{rows}")
    dataset = load_dataset(tmp_path / "images.csv", label_separator=";")
    assert dataset.class_names == ("animal", "cat", "tree")
    (tmp_path / "0.jpg").write_bytes(b"not an image")
    batch = training_images(dataset).batch(request([0]))
    assert [sample for sample, _ in batch.unreadable] == [0]
    assert batch.labels.tolist() == [[1, 2, 0]]
