"""What parity on equal weights needs; the weights and the distance are those of ``make parity``."""

import pytest
import torch
from benchmarks import random_weights


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are small enough that threads cost more than they bring; and sums stay in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def randomise():
    """Make every number of a network random, batch-norm's too, with activations of ordinary size."""
    return random_weights.randomise


@pytest.fixture
def distance():
    """The largest difference of two networks' logits on random images, over the logits' spread."""

    def measure(ours, theirs, image_size):
        torch.manual_seed(image_size)
        pictures = torch.randn(2, 3, image_size, image_size)
        with torch.inference_mode():
            return random_weights.distance(ours.eval()(pictures), theirs(pictures))

    return measure
