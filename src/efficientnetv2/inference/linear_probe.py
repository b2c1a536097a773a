"""A linear probe: how far the features of given weights go before any training.

It takes seconds, and says what training has to beat.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch.utils.flop_counter import FlopCounterMode

from efficientnetv2.data.augmented_copies import copy_groups, is_copy
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import Grouping, groupings
from efficientnetv2.data.records import Ints
from efficientnetv2.data.stratified_split import stratified_group_split
from efficientnetv2.inference.predict import Embeddings, embed_dataset
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.memory_profile import infer_shapes
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, count_of
from efficientnetv2.utils.rng import Key

# Share of the pictures to learn from that chooses the strength. Ours.
_CHOOSING = 0.25
# Where pictures hang together: pictures asked, over so many draws at most. Ours: a quarter of 400 satellite pictures
# is some twenty places, and which strength wins on these is chance.
_ASKED, _MOST_DRAWS = 500, 4
# As many parts as the strength is chosen by one of; each has to leave every class to learn from. Ours.
_PARTS = 4


@dataclass(frozen=True, eq=False)
class GroupedData:
    """What hangs together among some pictures.

    Args:
        clusters: (n,) numbers, equal where pictures must not part.
        family: (n,) numbers, equal for an image and its copies (``data.augmented_copies``); none has two clusters.
        made: (n,) whether it was made from another.
    """

    clusters: Ints
    family: Ints
    made: npt.NDArray[np.bool_]

    @classmethod
    def nothing(cls, count: int) -> Self:
        """So many pictures, each by itself."""
        return cls(np.arange(count), np.arange(count), np.zeros(count, dtype=bool))

    @classmethod
    def by(cls, clusters: Ints, pictures: ImageDataset) -> Self:
        """By clusters that are known.

        Args:
            clusters: (n,) as above.
            pictures: n of them.
        """
        family = copy_groups(pictures)
        return cls(clusters, np.arange(len(pictures)) if family is None else family, is_copy(pictures))

    @classmethod
    def of(cls, pictures: ImageDataset, contents: Ints | None, *, key: Key) -> Self:
        """By the strictest level that leaves enough clusters to choose by.

        Args:
            pictures: labelled, of one label each.
            contents: (n,) ids, equal for identical files; None if not known.
            key: of the draw that shows whether there are enough.
        """
        levels = groupings(pictures, contents)
        level = levels[-1]
        # Where no class has a picture for each part nothing is chosen by parts.
        if len(levels) > 1 and np.bincount(pictures.labels).max() >= _PARTS:
            level, _ = strictest_grouping(levels, pictures.labels, parts=_PARTS, key=key)
        return cls.by(level.clusters, pictures)

    def select(self, which: npt.NDArray[np.generic]) -> Self:
        """Of some of the pictures: positions, or (n,) whether a picture is one of them."""
        return type(self)(self.clusters[which], self.family[which], self.made[which])

    @property
    def lone(self) -> bool:
        """Whether of the originals each is by itself."""
        return len(np.unique(self.clusters[self.originals])) == len(self.originals)

    @property
    def originals(self) -> Ints:
        """Positions of one picture of each family, ascending: the one that was taken, where it is there."""
        order = np.lexsort((self.made, self.family))
        first = np.unique(self.family[order], return_index=True)[1]
        return np.sort(order[first])

    def drawn(
        self, labels: Ints, *, key: Key, draws: int = 1, teach: int | None = None, ask: float | None = None
    ) -> list[tuple[Ints, Ints]]:
        """Parts to teach and to ask, stratified by class; nothing that hangs together is on both sides.

        Args:
            labels: (n,) class ids, of each two originals or more.
            key: of the draws.
            draws: how many.
            teach: number of originals to teach, met as nearly as whole clusters allow; or else
            ask: share of them to ask.

        Returns:
            Positions, of each draw: to teach, originals first and then their copies; and to ask, originals alone.
        """
        originals = self.originals
        asked, clusters = labels[originals], np.unique(self.clusters[originals], return_inverse=True)[1]
        if self.lone:
            seed = key.torch_seed() % 2**32
            split = StratifiedShuffleSplit(draws, train_size=teach, test_size=ask, random_state=seed)
            parts = list(split.split(asked, asked))
        else:
            share = 1 - ask if ask is not None else (teach or 0) / len(originals)
            classes = np.unique(asked, return_inverse=True)[1]
            target = np.outer([share, 1 - share], np.bincount(classes).astype(np.float64))
            # Of many draws each may be as it comes: to deal thousands of clusters well takes a second.
            attempts = {} if draws == 1 else {"attempts": 1}
            sides = [
                stratified_group_split(
                    clusters, classes, target=target, key=key.fold("draw", one), **attempts
                )
                for one in range(draws)
            ]
            parts = [(np.flatnonzero(side == 0), np.flatnonzero(side == 1)) for side in sides]
        copies = np.setdiff1d(np.arange(len(labels)), originals)
        return [
            (
                np.append(
                    originals[sample_training_rows],
                    copies[np.isin(self.family[copies], self.family[originals[sample_training_rows]])],
                ),
                originals[others],
            )
            for sample_training_rows, others in parts
        ]


def deduplicate(pictures: ImageDataset, contents: Ints | None) -> npt.NDArray[np.bool_]:
    """(N,) whether a picture is the one that stands for its copies, and for files with the same bytes.

    Args:
        pictures: N of them.
        contents: (N,) ids, equal for identical files; None if not known.
    """
    originals = GroupedData.by(np.arange(len(pictures)), pictures).originals
    if contents is not None:
        originals = originals[np.unique(contents[originals], return_index=True)[1]]
    found = np.zeros(len(pictures), dtype=bool)
    found[originals] = True
    return found


def tuning_splits(together: GroupedData, labels: Ints, *, key: Key) -> list[tuple[Ints, Ints]]:
    """Parts of some pictures by which the strength of a classifier's penalty is chosen.

    Args:
        together: what hangs together among them.
        labels: (n,) class ids.
        key: of the draws.

    Returns:
        Positions to teach and to ask, of each draw, as ``Together.drawn`` gives them; none where there are too few
        pictures to put some of each class aside, or what hangs together is too large.
    """
    _, counts = np.unique(labels[together.originals], return_counts=True)
    if counts.min() < 2 or _CHOOSING * counts.sum() < len(counts):
        return []
    # One draw of lone pictures; of whole clusters, which are few, as many as ask enough pictures.
    draws = 1 if together.lone else max(1, min(_MOST_DRAWS, math.ceil(_ASKED / (_CHOOSING * counts.sum()))))
    parts = together.drawn(labels, key=key, ask=_CHOOSING, draws=draws)
    if any(
        not len(asked) or len(np.unique(labels[sample_training_rows])) < 2
        for sample_training_rows, asked in parts
    ):
        return []
    return parts


def strictest_grouping(
    levels: Sequence[Grouping], labels: Ints, *, parts: int, key: Key
) -> tuple[Grouping, list[tuple[Ints, Ints]]]:
    """The strictest level by whose folds every class can be learnt; the last where there is none.

    Args:
        levels: as ``data.groups.groupings`` gives them.
        labels: (n,) class ids.
        parts: number of folds.
        key: of the folds.

    Returns:
        The level, and positions to learn from and to answer, of each fold.
    """
    for level in levels:
        if len(np.unique(level.clusters)) < parts and level is not levels[-1]:
            continue
        seed = key.fold("folds").torch_seed() % 2**32
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # A class may have fewer pictures than there are folds.
            warnings.simplefilter("ignore", UserWarning)
            folds = list(splitter.split(labels, labels, level.clusters))
        if all(len(np.unique(labels[learning])) == len(np.unique(labels)) for learning, _ in folds):
            break
    return level, folds


# Inverse strengths of the L2 penalty to choose from. Ours: wide enough that neither end is taken on the pictures
# it was tried on (satellite pictures, photographs), which want 0.001 to 0.01.
_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03)
# Where nothing chooses among them.
DEFAULT_STRENGTH = 0.003
# Nor where that would take more than about a minute on a core, as of a hundred classes and 5,000 pictures in V2-B0:
# multiply-adds of all those fits, in each iteration once for the answers and once for their gradients. Ours.
_MOST_CHOOSING = 5e11
# On standardised features 50 to 90 are enough; more changed no answer there. Ours.
_ITERATIONS = 100
# At most so many pictures of either part; and on a CPU, where that would take minutes, so many that they cost about
# this many multiply-adds, the work of 5,000 pictures in V2-B0 at 224 px (half a minute on two cores). Ours.
_MOST_PICTURES = 5_000
_MOST_MULTIPLY_ADDS = 3.6e12
# But no fewer than these. Ours.
_LEAST_PICTURES, _LEAST_OF_A_CLASS = 500, 5


@dataclass(frozen=True)
class ProbeMetrics:
    """What a linear classifier on frozen features reaches.

    Args:
        top1: share of right answers.
        macro_f1: mean of the classes' F1.
        pictures: that it was evaluated on.
        train_pictures: that it learnt from.
        strength: inverse of the L2 penalty, chosen within the pictures it learnt from.
        seconds: that it took, reading included.
    """

    top1: float
    macro_f1: float
    pictures: int
    train_pictures: int
    strength: float
    seconds: float


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """A probe with all that it came by.

    Args:
        probe: what it reaches.
        learnt: what predicts classes from vectors.
        train: embeddings that it learnt from.
        val: embeddings that it was evaluated on.
        asked: pictures that these are of; ``val.samples`` counts them.
        answers: (n,) to ``val``.
        together: what hangs together in ``train``.
        lost: how many pictures to learn from could not be read, not counting copies.
    """

    probe: ProbeMetrics
    learnt: Pipeline
    train: Embeddings
    val: Embeddings
    asked: ImageDataset
    answers: npt.NDArray[np.int64]
    together: GroupedData
    lost: int


def linear_probe(
    network: Network,
    train: ImageDataset,
    val: ImageDataset,
    *,
    preprocessing: Preprocessing,
    key: Key,
    balanced: bool = False,
    contents: npt.NDArray[np.int64] | None = None,
    device: str | torch.device = "cpu",
    workers: int = 0,
    most: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ProbeResult:
    """Logistic regression on a network's embeddings, each picture embedded once.

    Args:
        network: with weights that have learnt something; it stays as it is.
        train: labelled pictures to learn from; of more than ``max_probe_images`` so many at random (``taught``).
        val: labelled pictures to evaluate on, likewise.
        preprocessing: of the network.
        key: of the draws.
        balanced: weigh classes by the inverse of their number.
        contents: (N,) of ``train``, equal for identical files; None if not known.
        device: to compute on.
        workers: processes that read pictures.
        most: Number of images of either part, at most. None takes ``max_probe_images``.
        progress: called with the number of pictures embedded so far.

    Raises:
        InputError: the network's features are NaN or infinite; or of either part nothing can be read, or of those to
            learn from only one class.
    """
    begun = time.perf_counter()
    if most is None:
        most = max_probe_images(network, preprocessing.image_px, len(train.class_names), torch.device(device))
    rows = sample_training_rows(train.labels, most, key.fold("train"), deduplicate(train, contents))
    parts = [
        train.select(rows),
        val.select(_at_most(len(val), most, key.fold("val"))),
    ]
    before, embedded = 0, []
    for part in parts:
        embedded.append(
            embed_dataset(
                network,
                part,
                preprocessing=preprocessing,
                device=device,
                workers=workers,
                progress=None if progress is None else _shifted(progress, before),
            )
        )
        before += len(part)
    _refuse_too_few(parts, embedded)
    together = GroupedData.of(
        parts[0], None if contents is None else contents[rows], key=key.fold("together")
    )
    together = together.select(embedded[0].samples)
    learnt, strength = fit_probe(embedded[0], key=key, balanced=balanced, together=together)
    truth, answers = embedded[1].labels, learnt.predict(embedded[1].vectors)
    probe = ProbeMetrics(
        top1=float((truth == answers).mean()),
        macro_f1=macro_f1(truth, answers),
        pictures=len(truth),
        train_pictures=len(embedded[0].labels),
        strength=strength,
        seconds=round(time.perf_counter() - begun, 2),
    )
    unread = [row for row, _ in embedded[0].unreadable]
    lost = int((~is_copy(parts[0])[unread]).sum())
    return ProbeResult(probe, learnt, embedded[0], embedded[1], parts[1], answers, together, lost)


def _refuse_too_few(parts: Sequence[ImageDataset], embedded: Sequence[Embeddings]) -> None:
    """Refuse what can't be fitted or measured: a picture damaged within a shard shows only when it is read."""
    for part, read, what in zip(parts, embedded, ("learn from", "measure on"), strict=True):
        if len(read.samples) == 0 < len(part):
            row, reason = read.unreadable[0]
            raise InputError(
                f"Of the {count_of(len(part), 'picture')} to {what} none can be read. The first, {part.where(row)}: "
                f"{reason.removesuffix('.')}. Bring them back or repair them, or give others."
            )
    if len(classes := np.unique(embedded[0].labels)) < 2:
        raise InputError(
            f"Of the pictures to learn from only those of '{parts[0].class_names[classes[0]]}' can be read "
            f"({count_of(len(embedded[0].unreadable), 'other')} can't), and two classes are needed. Bring the others "
            "back or repair them, or give other pictures."
        )


def to_linear_layer(learnt: Pipeline, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The probe's classifier as a linear layer on the features as they are.

    Args:
        learnt: as ``fit_probe`` gives it.
        num_classes: K; a class that the probe has not seen is as likely as the one of the others with the least bias.

    Returns:
        Weight (K, D) and bias (K,), whose softmax is what ``learnt`` predicts.
    """
    scaler, regression = learnt[0], learnt[1]
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn keeps one row, of the second class against the first
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    rows = coefficients / scaler.scale_
    seen = intercepts - rows @ scaler.mean_
    weight = np.tile(rows[seen.argmin()], (num_classes, 1))
    bias = np.full(num_classes, seen.min())
    weight[regression.classes_], bias[regression.classes_] = rows, seen
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def out_of_fold_predictions(
    embeddings: Embeddings,
    folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    *,
    key: Key,
    balanced: bool,
    together: GroupedData | None = None,
) -> npt.NDArray[np.int64]:
    """Answers of linear probes, each to pictures that it has not learnt from; every picture is embedded only once.

    Args:
        embeddings: of the pictures, labelled.
        folds: positions in the dataset to learn from and to answer.
        key: of the draws.
        balanced: weigh classes by the inverse of their number.
        together: what hangs together in ``embeddings``; None where nothing does.

    Returns:
        (n,) classes, in the order of ``embeddings``; -1 for what no fold answers.
    """
    answers = np.full(len(embeddings.labels), -1, dtype=np.int64)
    for number, (learning, answering) in enumerate(folds):
        train_rows, test_rows = (np.isin(embeddings.samples, part) for part in (learning, answering))
        lesson = Embeddings(
            embeddings.samples[train_rows],
            embeddings.labels[train_rows],
            embeddings.vectors[train_rows],
        )
        if not test_rows.any() or len(np.unique(lesson.labels)) < 2:
            continue  # of few pictures drawn from many
        of_lesson = None if together is None else together.select(train_rows)
        learnt, _ = fit_probe(lesson, key=key.fold("fold", number), balanced=balanced, together=of_lesson)
        answers[test_rows] = learnt.predict(embeddings.vectors[test_rows])
    return answers


def max_probe_images(network: Network, image_px: int, num_classes: int, device: torch.device) -> int:
    """How many pictures of either part the probe looks at: what takes seconds, on a CPU too.

    Args:
        network: any.
        image_px: side of the pictures.
        num_classes: of the pictures.
        device: to compute on.
    """
    if device.type != "cpu":
        return _MOST_PICTURES
    least = max(_LEAST_PICTURES, _LEAST_OF_A_CLASS * num_classes)
    return int(min(_MOST_PICTURES, max(least, _MOST_MULTIPLY_ADDS / multiply_adds(network, image_px))))


def multiply_adds(network: Network, image_px: int) -> float:
    """Of one picture; nothing is computed.

    Args:
        network: any.
        image_px: side of the picture.
    """
    with FlopCounterMode(display=False) as counter:
        infer_shapes(network, in_channels=network.in_channels, image_px=image_px, images=2)
    return float(counter.get_total_flops()) / 2 / 2  # of two pictures; two operations each


def fit_probe(
    embeddings: Embeddings, *, key: Key, balanced: bool, together: GroupedData | None = None
) -> tuple[Pipeline, float]:
    """The classifier itself: standardised features, L2 penalty chosen on a quarter of them.

    Args:
        embeddings: labelled, of two classes or more.
        key: of the draw of that quarter.
        balanced: weigh classes by the inverse of their number.
        together: what hangs together in ``embeddings``, which that quarter leaves whole; None where nothing does.

    Returns:
        What predicts classes from vectors, and the strength chosen.
    """
    vectors, labels = embeddings.vectors, embeddings.labels
    together = GroupedData.nothing(len(labels)) if together is None else together
    strength = _chosen_strength(vectors, labels, together, key=key, balanced=balanced)
    return fit_classifier(vectors, labels, strength, balanced), strength


def _chosen_strength(
    vectors: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    together: GroupedData,
    *,
    key: Key,
    balanced: bool,
) -> float:
    parts = tuning_splits(together, labels, key=key.fold("choosing"))
    work = sum(len(learning) for learning, _ in parts) * len(np.unique(labels)) * vectors.shape[1]
    if not parts or 2 * work * _ITERATIONS * len(_STRENGTHS) > _MOST_CHOOSING:
        return DEFAULT_STRENGTH
    true = np.concatenate([labels[asked] for _, asked in parts])

    def score(strength: float) -> float:
        answers = np.concatenate(
            [
                fit_classifier(vectors[learning], labels[learning], strength, balanced).predict(
                    vectors[asked]
                )
                for learning, asked in parts
            ]
        )
        return macro_f1(true, answers) if balanced else float((answers == true).mean())

    return max(_STRENGTHS, key=score)


def fit_classifier(
    vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], strength: float, balanced: bool
) -> Pipeline:
    """The classifier of a given strength; arguments as of ``fit_probe``."""
    classifier = LogisticRegression(
        C=strength, class_weight="balanced" if balanced else None, max_iter=_ITERATIONS
    )
    pipeline = make_pipeline(StandardScaler(), classifier)
    # The matrices are small: on two cores beside another process, threads made it ten times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is good enough here
        pipeline.fit(vectors, labels)
    return pipeline


def macro_f1(truth: npt.NDArray[np.int64], answers: npt.NDArray[np.int64]) -> float:
    """Over the classes there are, as in ``metrics.classification``."""
    return float(f1_score(truth, answers, labels=np.unique(truth), average="macro"))


def _at_most(count: int, most: int, key: Key) -> npt.NDArray[np.int64]:
    """So many of the positions below ``count`` at random, in ascending order; all if there are no more."""
    return np.arange(count) if count <= most else np.sort(key.generator().permutation(count)[:most])


def sample_training_rows(
    labels: npt.NDArray[np.int64],
    most: int,
    key: Key,
    distinct: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """Positions of pictures to learn from, ascending.

    Of each class as many as a draw from all has, so that classes which copies make larger stay so; but copies only
    where the class has no further picture of its own, for they would teach little else.
    Where those drawn are of one class only, as of a rare defect, some of the others are beside them.

    Args:
        labels: (N,) of all, two classes or more.
        most: of those drawn.
        key: of the draw.
        distinct: (N,) whether a picture is none's copy (``together.distinct``); None where none is.
    """
    drawn = _at_most(len(labels), most, key)
    if len(drawn) < len(labels) and distinct is not None and not distinct.all():
        order = key.generator().permutation(len(labels))
        order = order[
            np.lexsort((~distinct[order], labels[order]))
        ]  # by class; in each as drawn, copies last
        many = np.bincount(labels[drawn], minlength=int(labels.max()) + 1)
        first = np.searchsorted(labels[order], np.arange(len(many)))
        drawn = np.sort(order[np.arange(len(order)) - first[labels[order]] < many[labels[order]]])
    of_first = labels == labels[drawn[0]]
    if of_first[drawn].all():
        drawn = np.union1d(drawn, np.flatnonzero(~of_first)[:_LEAST_OF_A_CLASS])
    return drawn


def _shifted(progress: Callable[[int], object], before: int) -> Callable[[int], object]:
    return lambda done: progress(before + done)
