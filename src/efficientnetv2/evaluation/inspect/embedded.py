"""What a network that has seen many pictures makes of these: which look alike to it, and which labels it doubts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from efficientnetv2.base.keys import Key
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.inspect.found import (
    Finding,
    Section,
    crossing,
    disagreeing,
    how_many,
    joined,
    share,
)
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.inference.probe import USUAL_STRENGTH
from efficientnetv2.inference.together import Together, choosing

# Distance to the last picture of a scene over that to the next: Lowe's test of whether a match stands out (IJCV 2004,
# where it is 0.8 for keypoints). Stricter here, by looking at pairs of aerial pictures: up to it they show one place.
# Ours.
STANDS_OUT = 0.65
# Pictures of a scene that are told as such, as many as a square has symmetries: what is more and looks alike may be a
# whole class. Ours.
LARGEST_SCENE = 8
# Vectors that are nearer count as equal: what float32 leaves of a distance of 0. Ours.
_EQUAL = 1e-3
# Folds whose pictures are answered by what the others taught. Ours, as many do.
FOLDS = 5
# Pictures of a class from which its labels can be doubted. Ours.
_LEAST_OF_A_CLASS = 10
# Inverse strengths of the L2 penalty to choose from; steps of the fit. Ours.
_STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
_ITERATIONS = 100
_AT_ONCE = 2**25  # distances that are held at once, with their order half a gigabyte

Floats = npt.NDArray[np.float32]


def lookalikes(
    manifest: Manifest, embeddings: Embeddings, copies: Sequence[Sequence[int]]
) -> tuple[Section, list[tuple[int, ...]]]:
    """Pictures that a network finds far more alike than any other: one scene again, shifted, turned, in other light.

    A group is named if each of it finds the first picture outside much further away than the last inside. Copies by
    their pixels count as one picture: else the nearest of a scene would be its own copy. Comparing all with all takes
    n² steps, but short ones: embedding a picture takes longer up to a million of them.

    Args:
        manifest: of the pictures.
        embeddings: of those that can be read.
        copies: rows that are duplicates by their pixels, two or more each.

    Returns:
        The section, and the groups, with all their copies.
    """
    same = joined(len(manifest), copies)[embeddings.samples]
    alone = np.unique(same, return_index=True)[1]
    alone.sort()
    family: dict[int, list[int]] = {}
    for number, row in zip(same.tolist(), embeddings.samples.tolist(), strict=True):
        family.setdefault(number, []).append(row)
    scenes = [
        (tuple(sorted(row for place in places for row in family[int(same[alone[place]])])), ratio)
        for places, ratio in standing_out(embeddings.vectors[alone].astype(np.float32))
    ]
    across = [scene for scene in scenes if crossing(manifest, scene[0])]
    unlike = [scene for scene in scenes if disagreeing(manifest, scene[0])]
    kinds = (
        (
            "lookalike_across_splits",
            across,
            "look like one scene, on both sides of a split",
            "What is learnt from the one is asked of the other. Look at them; put them into one split.",
        ),
        (
            "lookalike_other_label",
            unlike,
            "look like one scene, with different labels",
            "Look at them: one label may be wrong.",
        ),
        (
            "lookalike",
            [scene for scene in scenes if scene not in across and scene not in unlike],
            "look like one scene",
            "Shifted, turned, taken twice? Then name what they share with --group-column, so that no split parts them.",
        ),
    )
    findings = [
        Finding(
            kind,
            "note" if kind == "lookalike" else "doubtful",
            f"{how_many([group for group, _ in found])} of pictures {what}.",
            advice,
            tuple(group for group, _ in found),
            tuple(f"{ratio:.2f} of the way to the next nearest" for _, ratio in found),
        )
        for kind, found, what, advice in kinds
        if found
    ]
    facts = {
        "lookalikes": [{"paths": [manifest.paths[row] for row in group], "ratio": r} for group, r in scenes]
    }
    return Section(facts, findings), [group for group, _ in scenes]


def standing_out(vectors: Floats, *, most: float = STANDS_OUT) -> list[tuple[tuple[int, ...], float]]:
    """Groups of vectors that are near each other and far from all others, the clearest first.

    Args:
        vectors: (n, d); their directions count, not their lengths.
        most: distance to the farthest inside over that to the nearest outside, for each of a group. Of a pair that is
            the nearest over the second nearest.

    Returns:
        Places of each group, ascending, of two to ``LARGEST_SCENE``, and the greatest of their ratios. None is in
        two groups: where a group is part of another, the larger is named.
    """
    largest = min(LARGEST_SCENE, len(vectors) - 1)  # one at least is outside
    nearest, distances = _neighbours(vectors, max(0, largest))
    found: list[tuple[tuple[int, ...], float]] = []
    named = np.zeros(len(vectors), dtype=bool)
    for size in range(largest, 1, -1):
        ratio = np.maximum(distances[:, size - 2], _EQUAL) / np.maximum(distances[:, size - 1], _EQUAL)
        clear = np.flatnonzero((ratio <= most) & ~named)
        balls = np.sort(np.column_stack([clear, nearest[clear, : size - 1]]), axis=1)  # each with its nearest
        groups, agreeing = np.unique(balls, axis=0, return_counts=True)
        for group in groups[agreeing == size]:
            found.append((tuple(group.tolist()), round(float(ratio[group].max()), 3)))
            named[group] = True
    return sorted(found, key=lambda one: one[1])


def _neighbours(vectors: Floats, many: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """(n, many) which others are nearest to each, and (n, many) their distances on the sphere's chord."""
    count = len(vectors)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    nearest, distances = np.empty((count, many), dtype=np.int64), np.empty((count, many))
    rows = max(1, _AT_ONCE // max(1, count))
    for start in range(0, count if many else 0, rows):
        alike = unit[start : start + rows] @ unit.T
        places = np.arange(len(alike))
        alike[places, start + places] = -np.inf
        some = np.argpartition(-alike, many - 1, axis=1)[:, :many]
        values = np.take_along_axis(alike, some, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        block = slice(start, start + len(alike))
        nearest[block] = np.take_along_axis(some, order, axis=1)
        distances[block] = np.sqrt(np.maximum(0, 2 - 2 * np.take_along_axis(values, order, axis=1)))
    return nearest, distances


def doubted_labels(
    manifest: Manifest,
    embeddings: Embeddings,
    together: Sequence[Sequence[int]],
    *,
    key: Key,
) -> Section:
    """Labels that a linear classifier contradicts on pictures it has not learnt from.

    Probabilities come from folds; which contradictions count is confident learning's rule, in cleanlab: those off the
    diagonal of the confident joint (Northcutt et al., JAIR 2021, arXiv:1911.00068). A picture of several labels stands
    for its rarest, as in a hold-out, and is not contradicted by another of its own.

    Args:
        manifest: labelled; unlabelled pictures are left aside, and so are classes of fewer than 10, or that show fewer
            different things than there are folds, so that a fold might teach nothing of them.
        embeddings: of those that can be read.
        together: rows that show one thing or are of one group; no fold parts them.
        key: of the folds.
    """
    groups = joined(len(manifest), together)[embeddings.samples]
    usable, labels, classes = _asked(manifest, embeddings, groups)
    if len(classes) < 2:
        return Section({})
    groups = groups[usable]
    probabilities = out_of_fold(embeddings.vectors[usable], labels, groups, key=key)
    from cleanlab.filter import find_label_issues  # takes a second to load, and only here

    order = find_label_issues(
        labels,
        probabilities,
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    )
    rows = embeddings.samples[usable]
    own = manifest.targets[rows].reshape(len(rows), -1)
    answers = classes[probabilities.argmax(axis=1)]
    agreeing = (own == answers[:, None]).any(axis=1)
    order = order[~agreeing[order]]
    names = manifest.class_names
    suspected = [
        {
            "path": manifest.paths[rows[at]],
            "label": (manifest.separator or "").join(names[label] for label in own[at] if label >= 0),
            "suggested": names[answers[at]],
            "probability": round(float(probabilities[at].max()), 3),
            "probability_of_label": round(float(probabilities[at, labels[at]]), 3),
        }
        for at in order
    ]
    facts = {
        "asked": len(labels),
        "out_of_fold_accuracy": float(agreeing.mean()),
        "suspected_labels": suspected,
    }
    if not len(order):
        return Section(facts)
    finding = Finding(
        "label",
        "doubtful",
        f"{share(len(order), len(labels))} may be labelled wrongly, the likeliest first.",
        "A linear classifier that had learnt from the others calls them something else "
        f"(it agrees with {100 * float(str(facts['out_of_fold_accuracy'])):.0f} % of all labels). Look at each; hard "
        "pictures of a right label are among them. Never drop them from what a model is judged by.",
        tuple((int(rows[at]),) for at in order),
        tuple(
            f"looks like {one['suggested']}, {100 * float(str(one['probability'])):.0f} %"
            for one in suspected
        ),
    )
    return Section(facts, [finding])


def _asked(manifest: Manifest, embeddings: Embeddings, groups: Ints) -> tuple[Ints, Ints, Ints]:
    """Places in the embeddings, their labels from 0, and the classes of those."""
    labelled, many = embeddings.labels >= 0, len(manifest.class_names)
    counted = np.bincount(embeddings.labels[labelled], minlength=many)
    different = np.unique(np.stack([embeddings.labels, groups], axis=1)[labelled], axis=0)[:, 0]
    shown = np.bincount(different, minlength=many)
    classes = np.flatnonzero((counted >= _LEAST_OF_A_CLASS) & (shown >= FOLDS))
    usable = np.flatnonzero(np.isin(embeddings.labels, classes))
    labels = np.searchsorted(classes, embeddings.labels[usable])
    return usable, labels, classes


def out_of_fold(vectors: Floats, labels: Ints, groups: Ints, *, key: Key) -> npt.NDArray[np.float64]:
    """(n, K) probabilities of each picture by a linear classifier that has not learnt from it.

    Args:
        vectors: (n, d).
        labels: (n,) 0 to K - 1, each often enough to be in every fold.
        groups: (n,) equal for pictures that no fold may part, nor the choice of the classifier's strength.
        key: of the folds.
    """
    strength = _strength(vectors, labels, groups, key)
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=_seed(key.fold("folds")))
    for learning, asking in folds.split(vectors, labels, groups):
        if not len(asking):  # there are few groups, and they are large
            continue
        classifier = _learnt(vectors[learning], labels[learning], strength)
        probabilities[np.ix_(asking, classifier.classes_)] = classifier.predict_proba(vectors[asking])
    return probabilities


def _strength(vectors: Floats, labels: Ints, groups: Ints, key: Key) -> float:
    """The inverse penalty whose probabilities are best, not its answers: a doubt is a matter of degree."""
    together = replace(Together.nothing(len(labels)), clusters=groups)
    parts = choosing(together, labels, key=key.fold("choosing"))
    if not parts:
        return USUAL_STRENGTH
    every = np.arange(labels.max() + 1)
    true = np.concatenate([labels[asked] for _, asked in parts])

    def loss(strength: float) -> float:
        probabilities = np.zeros((len(true), len(every)), dtype=vectors.dtype)
        ends = np.cumsum([len(asked) for _, asked in parts])
        for (learning, asked), end in zip(parts, ends.tolist(), strict=True):
            classifier = _learnt(vectors[learning], labels[learning], strength)
            # A class that is one large group may have nothing to learn from.
            rows = np.arange(end - len(asked), end)
            probabilities[np.ix_(rows, classifier.classes_)] = classifier.predict_proba(vectors[asked])
        return float(log_loss(true, probabilities, labels=every))

    return min(_STRENGTHS, key=loss)


def _learnt(vectors: Floats, labels: Ints, strength: float) -> Pipeline:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_ITERATIONS))
    # As in ``inference.probe``: the matrices are small, and nearly converged is good enough.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(vectors, labels)
    return pipeline


def _seed(key: Key) -> int:
    """For scikit-learn."""
    return key.torch_seed() % 2**32
