from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.messages import mentioning

from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.loader import TrainingImages, evaluation_batches, training_batches, worker_errors
from efficientnetv2.data.sampler import BatchRequest, TrainSampler
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.progressive.schedule import ProgressiveSchedule, Ramp, StepSettings
from efficientnetv2.utils.errors import InputError, ReaderKilledError
from efficientnetv2.utils.random_key import Key

PLAN = ProgressiveSchedule(image_size=Ramp(24, 40), stages=2)
WHOLE = Preprocessing(image_size=40)


def pictures(dataset, threads=1, area_min=0.3, preprocessing=WHOLE):
    return TrainingImages(dataset, preprocessing, area_min, Key.of(0), threads)


def request(samples, turns=None, px=32):
    samples = np.array(samples, dtype=np.int64)
    turns = np.zeros_like(samples) if turns is None else np.array(turns, dtype=np.int64)
    return BatchRequest(0, 0, StepSettings(image_size=px), samples, turns)


def sampler(dataset):
    return TrainSampler(dataset.labels, PLAN, 6, 8, 4, "equal", Key.of(3))


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), (2, 1)])
def test_batches_do_not_depend_on_who_reads_them(workers, threads, class_folders):
    dataset = load_dataset(class_folders)
    alone = list(training_batches(pictures(dataset), sampler(dataset), workers=0))
    shared = list(training_batches(pictures(dataset, threads), sampler(dataset), workers=workers))
    assert len(alone) == len(shared) == 12
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert [batch.images.shape[-1] for batch in alone] == [24] * 6 + [40] * 6, "the picture grows under way"


def test_batches_are_uint8_in_channels_last_memory_with_their_labels(class_folders):
    dataset = load_dataset(class_folders)
    batch = pictures(dataset).batch(request([0, 20, 40]))
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.tolist() == dataset.labels[[0, 20, 40]].tolist()
    # blue, green, red in the order of their names: the channel that is strongest is the label's
    assert batch.images.float().mean((2, 3)).argmax(1).tolist() == [2, 1, 0]


def test_every_draw_of_a_image_is_cut_anew_and_can_be_repeated(class_folders):
    reader = pictures(load_dataset(class_folders))
    first, again, later = (reader.batch(request([5], [turn])).images for turn in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_an_unreadable_image_is_replaced_by_another_of_its_class_and_told(class_folders):
    dataset = load_dataset(class_folders)
    gone = int(np.flatnonzero(dataset.labels == 1)[3])
    (class_folders / dataset.paths[gone]).write_bytes(b"no longer a picture")
    batch = pictures(dataset).batch(request([gone]))
    assert batch.labels.tolist() == [1]
    ((sample, reason),) = batch.unreadable
    assert sample == gone
    assert "not an image" in reason


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_that_has_vanished_stops_the_run_with_a_plain_message(workers, class_folders):
    dataset = load_dataset(class_folders)
    for path in (class_folders / "green").iterdir():
        path.unlink()
    reading = training_batches(pictures(dataset), sampler(dataset), workers=workers)
    with pytest.raises(InputError, match=mentioning("green", "unreadable")) as stopped:
        list(reading)
    assert "Traceback" not in str(stopped.value)


def test_padding_is_of_the_networks_mean(class_folders, tmp_path):
    from PIL import Image

    Image.new("RGB", (80, 20), (0, 0, 0)).save(class_folders / "red/wide.png")
    dataset = load_dataset(class_folders)
    padded = Preprocessing(image_size=32, crop_mode="border", mean=(1.0, 0.5, 0.0), std=(1.0, 1.0, 1.0))
    wide = dataset.paths.index("red/wide.png")
    image = pictures(dataset, area_min=1.0, preprocessing=padded).batch(request([wide])).images[0]
    assert image[:, 0, 0].tolist() in ([255, 127, 0], [255, 128, 0])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_readable_image_once_in_order(workers, class_folders):
    dataset = load_dataset(class_folders)
    (class_folders / dataset.paths[7]).write_bytes(b"")
    batches = list(evaluation_batches(dataset, WHOLE, batch_size=10, workers=workers))
    seen = np.concatenate([batch.samples for batch in batches]).tolist()
    assert seen == [row for row in range(48) if row != 7]
    assert [row for batch in batches for row, _ in batch.unreadable] == [7]
    assert all(batch.images.shape[1:] == (3, 40, 40) for batch in batches)


class FromMemory:
    """A reader that holds the files' bytes, and lacks some."""

    def __init__(self, dataset, lacking=()):
        self.content = [Path(dataset.file(row)).read_bytes() for row in range(len(dataset))]
        self.lacking = lacking

    def source(self, sample):
        if sample in self.lacking:
            raise UnreadableImageError(self.name(sample), "is lost")
        return self.content[sample]

    def name(self, sample):
        return f"memory#{sample}"

    def ahead(self, samples):
        return self


def test_images_are_the_same_wherever_their_bytes_come_from(class_folders):
    dataset = load_dataset(class_folders)
    reader = TrainingImages(dataset, WHOLE, 0.3, Key.of(0), reader=FromMemory(dataset))
    assert torch.equal(reader.batch(request([4, 30])).images, pictures(dataset).batch(request([4, 30])).images)


def test_what_a_reader_lacks_is_replaced_and_named_by_it(class_folders):
    dataset = load_dataset(class_folders)
    lost = TrainingImages(dataset, WHOLE, 0.3, Key.of(0), reader=FromMemory(dataset, lacking={4}))
    batch = lost.batch(request([4]))
    assert batch.unreadable == ((4, "is lost"),)
    assert batch.labels.tolist() == [dataset.labels[4]]
    all_lost = TrainingImages(dataset, WHOLE, 0.3, Key.of(0), reader=FromMemory(dataset, range(16)))
    with pytest.raises(InputError, match=mentioning("blue", "memory#3")):
        all_lost.batch(request([4]))


def test_more_workers_than_cores_are_warned_of_by_whoever_counted_them_alone(class_folders, monkeypatch):
    """PyTorch would do so at every loader again, in the middle of a progress bar."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    dataset = load_dataset(class_folders)
    assert len(list(training_batches(pictures(dataset), sampler(dataset), workers=2))) == 12
    assert len(list(evaluation_batches(dataset, WHOLE, batch_size=24, workers=2))) == 2


def test_readers_read_on_when_a_window_is_closed(class_folders):
    """The signal reaches them too; whether the run stops, and after which step, the main process says."""
    dataset = load_dataset(class_folders)
    batches = training_batches(pictures(dataset), sampler(dataset), workers=1)
    next(batches)
    [reader] = multiprocessing.active_children()
    # Whoever waits for a killed one tells of it, not PyTorch in the middle of anything.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        os.kill(reader.pid, signal.SIGHUP)
        assert len(list(batches)) == 11
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_reader_without_shared_memory_was_not_killed_by_a_network():
    """Images alone lie there, and as many of them whatever is trained."""
    with pytest.raises(InputError, match=mentioning("workers")) as error, worker_errors():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that")
    assert not isinstance(error.value, ReaderKilledError)


@pytest.mark.parametrize(
    "said",
    ["DataLoader worker (pid 7) is killed by signal: Killed. ", "DataLoader worker (pid(s) 7) exited unexpectedly"],
)
def test_a_killed_reader_is_told_of_wherever_the_main_process_is(said):
    with pytest.raises(InputError, match=mentioning("workers")), worker_errors():
        raise RuntimeError(said)
    with pytest.raises(ReaderKilledError), worker_errors():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="other"), worker_errors():
        raise RuntimeError("other")
