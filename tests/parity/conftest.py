"""Fixtures of tests on parity with equal weights. The weights and the distance are those of ``make parity``."""

import pytest
import torch
from benchmarks import random_weights


@pytest.fixture(autouse=True)
def _one_thread():
    """These models are too small to benefit from threads, and one thread has a fixed order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def randomise():
    """Set random weights, also in batch norm, with activations of usual size."""
    return random_weights.randomise


@pytest.fixture
def distance():
    """Largest difference between the logits of two models on random images, relative to their standard deviation."""

    def measure(ours, theirs, image_size):
        torch.manual_seed(image_size)
        pictures = torch.randn(2, 3, image_size, image_size)
        with torch.inference_mode():
            return random_weights.distance(ours.eval()(pictures), theirs(pictures))

    return measure
