"""What a network that has seen many pictures makes of these: which look alike to it, and which labels it doubts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from efficientnetv2.base.keys import Key
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.inspect.duplicates import Pair
from efficientnetv2.evaluation.inspect.found import Finding, Section, crossing, disagreeing, share
from efficientnetv2.inference.predict import Embeddings

# Distance to the nearest picture over that to the second: Lowe's test of whether a match stands out (IJCV 2004, where
# it is 0.8 for keypoints). Stricter here, by looking at pairs of aerial pictures: up to it they show one place. Ours.
STANDS_OUT = 0.65
# Folds whose pictures are answered by what the others taught. Ours, as many do.
FOLDS = 5
# Pictures of a class from which its labels can be doubted. Ours.
_LEAST_OF_A_CLASS = 10
# Inverse strengths of the L2 penalty to choose from, by a share of the pictures; steps of the fit. Ours.
_STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
_CHOOSING = 0.25
_ITERATIONS = 100
_BLOCK = 1024  # pictures whose distances to all are held at once

Floats = npt.NDArray[np.float32]


def lookalikes(
    manifest: Manifest, embeddings: Embeddings, contents: Ints, known: Sequence[Pair]
) -> tuple[Section, list[tuple[int, int]]]:
    """Pairs that a network finds far more alike than any other: one scene twice, shifted, turned, in other light.

    A pair is named if each is the other's nearest, and for both the second nearest is much further away. What is a
    duplicate by its pixels is not named again. Comparing all with all takes n² steps, but short ones: embedding a
    picture takes longer up to a million of them.

    Args:
        manifest: of the pictures.
        embeddings: of those that can be read.
        contents: (N,) equal for equal files.
        known: pairs that are duplicates by their pixels.

    Returns:
        The section, and the pairs.
    """
    alone = np.unique(contents[embeddings.samples], return_index=True)[1]  # of equal files one
    alone.sort()
    vectors = embeddings.vectors[alone].astype(np.float32)
    rows = embeddings.samples[alone]
    pairs = [(int(rows[one]), int(rows[other]), ratio) for one, other, ratio in standing_out(vectors)]
    named = {(pair.first, pair.second) for pair in known}
    new = [pair for pair in pairs if pair[:2] not in named]
    kinds = (
        (
            "lookalike_across_splits",
            [pair for pair in new if crossing(manifest, pair[:2])],
            "look like one scene, on both sides of a split",
            "What is learnt from the one is asked of the other. Look at them; put both into one split.",
        ),
        (
            "lookalike_other_label",
            [pair for pair in new if disagreeing(manifest, pair[:2])],
            "look like one scene, with different labels",
            "Look at them: one label may be wrong.",
        ),
        (
            "lookalike",
            [
                pair
                for pair in new
                if not crossing(manifest, pair[:2]) and not disagreeing(manifest, pair[:2])
            ],
            "look like one scene",
            "Shifted, turned, taken twice? Then name what they share with --group-column, so that no split parts them.",
        ),
    )
    findings = [
        Finding(
            kind,
            "note" if kind == "lookalike" else "doubtful",
            f"{len(found):,} {'pair' if len(found) == 1 else 'pairs'} of pictures {what}.",
            advice,
            tuple(pair[:2] for pair in found),
            tuple(f"{pair[2]:.2f} of the way to the next nearest" for pair in found),
        )
        for kind, found, what, advice in kinds
        if found
    ]
    facts = {"lookalikes": [{"paths": [manifest.paths[a], manifest.paths[b]], "ratio": r} for a, b, r in new]}
    return Section(facts, findings), [pair[:2] for pair in pairs]


def standing_out(vectors: Floats, *, most: float = STANDS_OUT) -> list[tuple[int, int, float]]:
    """Pairs of vectors that are each other's nearest by far, the clearest first.

    Args:
        vectors: (n, d); their directions count, not their lengths.
        most: distance to the nearest over that to the second nearest, for both.

    Returns:
        Places of the two, the lower first, and the greater of their ratios.
    """
    count = len(vectors)
    if count < 3:
        return []
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    nearest, ratio = np.empty(count, dtype=np.int64), np.empty(count)
    for start in range(0, count, _BLOCK):
        alike = unit[start : start + _BLOCK] @ unit.T
        places = np.arange(len(alike))
        alike[places, start + places] = -np.inf
        two = np.argpartition(-alike, 1, axis=1)[:, :2]
        values = np.take_along_axis(alike, two, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        two, values = np.take_along_axis(two, order, axis=1), np.take_along_axis(values, order, axis=1)
        distances = np.sqrt(np.maximum(0, 2 - 2 * values))
        nearest[start : start + _BLOCK] = two[:, 0]
        ratio[start : start + _BLOCK] = distances[:, 0] / np.maximum(distances[:, 1], 1e-6)
    mutual = np.flatnonzero((nearest[nearest] == np.arange(count)) & (np.arange(count) < nearest))
    worst = np.maximum(ratio[mutual], ratio[nearest[mutual]])
    clear = np.flatnonzero(worst <= most)
    order = clear[np.argsort(worst[clear], kind="stable")]
    return [(int(mutual[at]), int(nearest[mutual[at]]), round(float(worst[at]), 3)) for at in order]


def doubted_labels(
    manifest: Manifest,
    embeddings: Embeddings,
    together: Sequence[Sequence[int]],
    *,
    key: Key,
) -> Section:
    """Labels that a linear classifier contradicts on pictures it has not learnt from.

    Probabilities come from folds; which contradictions count is confident learning's rule, in cleanlab: those off the
    diagonal of the confident joint (Northcutt et al., JAIR 2021, arXiv:1911.00068).

    Args:
        manifest: labelled; unlabelled pictures are left aside, and so are classes of fewer than 10, or that show fewer
            different things than there are folds, so that a fold might teach nothing of them.
        embeddings: of those that can be read.
        together: rows that show the same; no fold parts them.
        key: of the folds.
    """
    groups = _joined(len(manifest), together)[embeddings.samples]
    usable, labels, names = _asked(manifest, embeddings, groups)
    if len(names) < 2:
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
    suspected = [
        {
            "path": manifest.paths[rows[at]],
            "label": names[labels[at]],
            "suggested": names[int(probabilities[at].argmax())],
            "probability": round(float(probabilities[at].max()), 3),
            "probability_of_label": round(float(probabilities[at, labels[at]]), 3),
        }
        for at in order
    ]
    facts = {
        "asked": len(labels),
        "out_of_fold_accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
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


def _asked(manifest: Manifest, embeddings: Embeddings, groups: Ints) -> tuple[Ints, Ints, list[str]]:
    """Places in the embeddings, their labels from 0, and the names of those."""
    labelled, many = embeddings.labels >= 0, len(manifest.class_names)
    counted = np.bincount(embeddings.labels[labelled], minlength=many)
    different = np.unique(np.stack([embeddings.labels, groups], axis=1)[labelled], axis=0)[:, 0]
    shown = np.bincount(different, minlength=many)
    classes = np.flatnonzero((counted >= _LEAST_OF_A_CLASS) & (shown >= FOLDS))
    usable = np.flatnonzero(np.isin(embeddings.labels, classes))
    labels = np.searchsorted(classes, embeddings.labels[usable])
    return usable, labels, [manifest.class_names[number] for number in classes]


def out_of_fold(vectors: Floats, labels: Ints, groups: Ints, *, key: Key) -> npt.NDArray[np.float64]:
    """(n, K) probabilities of each picture by a linear classifier that has not learnt from it.

    Args:
        vectors: (n, d).
        labels: (n,) 0 to K - 1, each often enough to be in every fold.
        groups: (n,) equal for pictures that no fold may part.
        key: of the folds.
    """
    strength = _strength(vectors, labels, key)
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=_seed(key.fold("folds")))
    for learning, asking in folds.split(vectors, labels, groups):
        if not len(asking):  # there are few groups, and they are large
            continue
        classifier = _learnt(vectors[learning], labels[learning], strength)
        probabilities[np.ix_(asking, classifier.classes_)] = classifier.predict_proba(vectors[asking])
    return probabilities


def _strength(vectors: Floats, labels: Ints, key: Key) -> float:
    """The inverse penalty whose probabilities are best, not its answers: a doubt is a matter of degree."""
    draw = StratifiedShuffleSplit(1, test_size=_CHOOSING, random_state=_seed(key.fold("choosing")))
    learning, choosing = next(draw.split(vectors, labels))

    def loss(strength: float) -> float:
        classifier = _learnt(vectors[learning], labels[learning], strength)
        return float(log_loss(labels[choosing], classifier.predict_proba(vectors[choosing])))

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


def _joined(count: int, together: Sequence[Sequence[int]]) -> Ints:
    """(count,) numbers, equal for rows that are joined, directly or by others."""
    edges = [(group[0], other) for group in together for other in group[1:]]
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    joined: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return joined
