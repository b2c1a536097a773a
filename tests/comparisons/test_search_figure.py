"""The plot of the recorded study."""

import numpy as np
from benchmarks import search_figure
from benchmarks.surrogate import Table

from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.space import small_space

SPACE = small_space()


def test_pareto_front_has_no_dominated_point():
    cost = np.array([3.0, 1.0, 2.0, 2.0, 4.0])
    accuracy = np.array([0.7, 0.5, 0.6, 0.7, 0.9])
    assert [int(index) for index in search_figure.front(cost, accuracy)] == [1, 3, 4]


def test_every_model_and_every_sampler_is_plotted():
    base = Measurement(1_000_000, 1, top1=0.5, step_seconds=0.1)
    top1, step_seconds = np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.2, 0.1])
    table = Table(SPACE, base, [SPACE.encode(SPACE.backbone)] * 3, top1, step_seconds, np.full(3, 1e6))
    figure = search_figure.draw(table, {"random": [0.4, 0.5], "policy_gradient": [0.4, 0.6]})
    left, right = figure.axes
    points, star = (np.asarray(collection.get_offsets()) for collection in left.collections)
    assert np.allclose(points, [[100, 50], [200, 60], [100, 70]])
    assert np.allclose(star, [[100, 70]])
    assert np.allclose(left.lines[0].get_xydata(), [[100, 70]])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["random", "policy gradient"]
    assert np.allclose(right.lines[1].get_xydata(), [[1, 0.4], [2, 0.6]])
