"""Which pictures a report shows, and how."""

from __future__ import annotations

import numpy as np

from efficientnetv2.evaluation.explain import Example, gallery_section, select_galleries
from efficientnetv2.evaluation.html import render

NAMES = ("forest", "pasture", "<maize>")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [
        [0.9, 0.1, 0.0],
        [0.2, 0.8, 0.0],  # forest called pasture
        [0.3, 0.7, 0.0],  # again
        [0.4, 0.3, 0.3],  # right, but the least sure
        [0.6, 0.4, 0.0],  # pasture called forest
        [0.0, 1.0, 0.0],
        [0.99, 0.01, 0.0],  # maize called forest: the most surprising
    ]
)


def test_the_galleries_by_hand():
    pairs, other, last, unsure, surprising = select_galleries(LABELS, PROBABILITIES, NAMES)
    assert (pairs.title, pairs.places.tolist()) == ("forest, predicted as pasture", [1, 2])
    assert {one.title for one in (other, last)} == {"pasture, predicted as forest", "<maize>, predicted as forest"}
    assert unsure.places[0] == 3
    assert surprising.places.tolist()[:2] == [6, 1]


def test_a_network_that_is_always_right_has_no_pairs():
    galleries = select_galleries(np.array([0, 1]), np.eye(2), NAMES[:2])
    assert [one.title.split(":")[0] for one in galleries] == ["Least confident", "Least probable labels"]


def test_names_are_escaped_and_pictures_stand_beside_their_maps():
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    part = gallery_section(
        select_galleries(LABELS, PROBABILITIES, NAMES), LABELS, PROBABILITIES, NAMES, [f"{n}.jpg" for n in range(7)],
        {place: Example(np.zeros((4, 4, 3), np.uint8), heat) for place in range(1, 7)},
    )  # fmt: skip
    page = render(part.template, part=part)
    assert "<maize>" not in page
    assert "&lt;maize&gt;, predicted as forest" in page
    pictures = sum(len(pictures) for _, pictures in part.galleries)
    without = sum(one["path"] == "0.jpg" for _, pictures in part.galleries for one in pictures)
    assert page.count("data:image/jpeg") == 2 * (pictures - without)
    assert part.data["galleries"][0]["paths"] == ["1.jpg", "2.jpg"]
