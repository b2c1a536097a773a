"""Whether the pictures that a model is evaluated on have trained it, or the weights that its training begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.image_metadata import content_hashes
from efficientnetv2.evaluation.clusters import Clusters, resolved_files
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.metric_intervals import metric_intervals
from efficientnetv2.metrics.multilabel import MACRO_METRICS, compute_metrics, macro_metric
from efficientnetv2.metrics.subgroups import SMALL_SLICE
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.provenance import TrainingFingerprint
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.previous_runs import KINDS


@dataclass(frozen=True, eq=False)
class TrainOverlap:
    """What is known about that.

    Args:
        pictures: how many of those evaluated trained the model; None where nothing is known about what did.
        exact: whether all were compared with all; else it was judged by a sample.
        of: how many are evaluated.
        unseen: places of those that neither trained nor chose it; None where it is not known of each.
        least: whether ``pictures`` are those that are known, and nobody can say how many more there are.
        before: whether some are known to have trained only the weights that the model's own training began with.
        chose: how many of the others are known to have chosen it, as minival: its weights, its size, its temperature.
            Of the very many of which ``unseen`` is None these may not be all.
        chose_before: how many of those have chosen only the weights that its training began with.
    """

    pictures: int | None
    exact: bool
    of: int
    unseen: npt.NDArray[np.intp] | None = None
    least: bool = False
    before: bool = False
    chose: int = 0
    chose_before: int = 0

    @property
    def none(self) -> bool:
        """Whether it is known of each that it did not train the model."""
        return self.pictures == 0 and self.unseen is not None

    @property
    def choosing(self) -> str | None:
        """A sentence on those that chose the model; None where none is known to have."""
        if not self.chose:
            return None
        least = "At least " if self.unseen is None else ""
        how = "or those that it began with, as minival" if self.chose_before else "as its minival"
        return f"{least}{self.chose} of these {self.of} pictures chose its weights, {how}."

    @property
    def note(self) -> str | None:
        """A sentence for the user; None where there is nothing to say."""
        if self.pictures is None:
            return "Whether some of these pictures trained the model is not known: its file does not say which did."
        if not self.pictures:
            return None
        trained = f"of these {self.of} pictures trained the model"
        if self.before:
            trained += ", or the weights that it began with"
        if self.exact:
            return f"{self.pictures} {trained}."
        if self.least:
            return f"At least {self.pictures} {trained}, judging by samples of the contents of each training."
        return f"About {self.pictures} {trained}, judging by a sample of their contents."


@dataclass(frozen=True)
class PretrainOverlap:
    """What of the pictures that a run holds out has trained, or chosen, the weights that it begins with.

    Args:
        pictures: how many of those that its figures are of have trained them.
        chose: how many of the others have chosen them, as the minival of an earlier run.
        lines: sentences for the user, that on these pictures first.
        chooser: whether pictures of the run's minival have trained them, so that these choose nothing.
    """

    pictures: int = 0
    chose: int = 0
    lines: tuple[str, ...] = ()
    chooser: bool = False

    @property
    def flattering(self) -> bool:
        """Whether the run's figures are optimistic by that."""
        return bool(self.pictures or self.chose)

    def to_json(self) -> dict[str, object]:
        """Plain values for the run's beginning, and its report."""
        return {"pictures": self.pictures, "chose": self.chose, "note": self.lines[0]}


def pretrain_overlap(
    word: str, network: Network, prepared: DataModule, *, refuse: bool = True
) -> PretrainOverlap:
    """Whether a run is measured by pictures that have trained, or chosen, the weights that it begins with.

    And whether it chooses by some that have trained them.

    Pictures of minival that have trained them for the very classes of the run are refused: their labels are known by
    heart, so of all weights they would choose those closest to the given ones, and a temperature that is far too low.
    Where only the features have seen them, with other classes, as in training on a large set before its part, they
    choose well enough, and it is said. Nothing is said of those that have chosen them before: their labels are in no
    weights.

    Args:
        word: for the weights, as the recipe has it; "none" for none.
        network: fitted to the run's classes, with these weights.
        prepared: the pictures.
        refuse: whether such a minival is refused; else it chooses nothing.

    Raises:
        InputError: minival is refused, or a store of another machine does not answer.
    """
    place = Path(word)
    if word == "none" or not place.exists():  # of weights by name nobody says what trained them
        return PretrainOverlap()
    lines, chooser = [], False
    measured = train_overlap(place, network.trained_on, prepared.val)
    trained, chose = _trained_them(measured, prepared.answered), _chose_them(measured, prepared.answered)
    said = " and ".join(one for one in (trained, chose) if one)
    if said:
        lines.append(
            f"Weights {word}: {said}, so the figure on them is optimistic. For an honest one hold out others, by a "
            "column split or the --seed of that training."
        )
    if prepared.minival is not None:
        # By the last training alone: for which classes those before it were, nobody knows.
        last = None if network.trained_on is None else network.trained_on.parts[0]
        said = _trained_them(train_overlap(place, last, prepared.minival), "minival")
        chooser = bool(said and network.class_names)
        if chooser and refuse:
            raise InputError(
                f"--weights {word}: {said}, for the same classes, so they can't choose among those of this run. Give "
                "others as minival, by a column split, or leave it out (--set minival=null)."
            )
        if chooser:
            lines.append(
                f"Weights {word}: {said}, for the same classes. So these images choose no model and no image size, and "
                "fit no temperature. Name others in a column split, with the value minival."
            )
        elif said:
            lines.append(f"Weights {word}: {said}, for other classes; they choose all the same.")
    return PretrainOverlap(measured.pictures or 0, measured.chose, tuple(lines), chooser)


def _trained_them(known: TrainOverlap, name: str) -> str:
    """How many pictures of a part are known to have trained given weights, in words; '' where none is."""
    if not known.pictures:
        return ""
    about, by = ("", "") if known.exact else ("about ", ", judging by a sample of their contents")
    have = "has" if known.pictures == 1 else "have"
    of = f"of the {pluralize(known.of, 'picture')} of {name}"
    return f"{about}{known.pictures:,} {of} {have} trained them{by}"


def _chose_them(known: TrainOverlap, name: str) -> str:
    """How many of the others are known to have chosen given weights, in words; '' where none is."""
    if not known.chose:
        return ""
    least, have = "at least " if known.unseen is None else "", "has" if known.chose == 1 else "have"
    others = "other" if known.chose == 1 else "others"
    of = others if known.pictures else f"of the {pluralize(known.of, 'picture')} of {name}"
    return f"{least}{known.chose:,} {of} {have} chosen them, as the minival of an earlier run"


def train_overlap(model: Path, trained_on: TrainingFingerprint | None, part: ImageDataset) -> TrainOverlap:
    """How many pictures trained a model: by their contents, as its file remembers them, and by their paths.

    Those that trained the weights that its training began with count as well, where the file remembers them.

    A picture that was changed since, were it only saved anew, is another one by its content; it is known by its path
    where the dataset of the run lies beside the model. Those of minival, which chose the model, are found likewise.

    Args:
        model: its file, or the run folder.
        trained_on: what its file remembers; None for nothing.
        part: the pictures that it was evaluated on.

    Raises:
        InputError: a store of another machine does not answer.
    """
    run = find_run(model)
    if trained_on is None and run is None:
        return TrainOverlap(None, exact=True, of=len(part))
    known, chose = np.zeros((2, len(part)), dtype=bool) if run is None else _by_path(run, part)
    if trained_on is None:
        return TrainOverlap(int(known.sum()), exact=True, of=len(part))
    rows, marks = content_hashes(part)
    looked_at, (last, *before) = len(rows) / max(1, len(part)), trained_on.parts
    same = np.isin(marks, last.marks)
    known[rows] |= same
    own, estimate = int(known.sum()), _estimate(last, same, looked_at)
    for earlier in before:
        further = np.isin(marks, earlier.marks) & ~known[rows]
        estimate = max(estimate, own + _estimate(earlier, further, looked_at))
        known[rows] |= further
    if trained_on.chose is None:  # it left aside what the table of its run may call minival
        chose[:] = False
    else:
        chose[rows] |= np.isin(marks, trained_on.chose.marks)
    own_chose = chose & ~known
    if trained_on.earlier is not None and trained_on.earlier.chose is not None:
        chose[rows] |= np.isin(marks, trained_on.earlier.chose.marks)
    chose &= ~known
    found, several = int(known.sum()), any(one.of_several for one in trained_on.parts)
    whole = len(rows) == len(part) and trained_on.whole
    return TrainOverlap(
        max(found, min(len(part), estimate)),
        # Where all was compared with all, the estimate is the count itself.
        exact=estimate <= found and not several,
        of=len(part),
        unseen=np.flatnonzero(~(known | chose)) if whole else None,
        least=several and estimate <= found,
        before=found > own,
        chose=int(chose.sum()),
        chose_before=int((chose & ~own_chose).sum()),
    )


def find_run(model: Path) -> Path | None:
    """The folder of the run, or of the cross-validation, that a model lies in, with its dataset; None without.

    Args:
        model: its file, or the folder.
    """
    folder = model if model.is_dir() else model.parent
    # Beside anything else a manifest.csv is a table of the user's own, which says nothing of this model.
    is_run = any((folder / name).is_file() for name in KINDS) and (folder / "manifest.csv").exists()
    return folder if is_run else None


def _estimate(training: TrainingFingerprint, same: npt.NDArray[np.bool_], looked_at: float) -> int:
    """How many pictures were in a training, by those of a part that are known again; 0 where nobody can say.

    Args:
        training: with a sample of its pictures.
        same: (n,) whether a picture that was looked at is in the sample.
        looked_at: share of the pictures.
    """
    share = looked_at * training.share
    return round(int(same.sum()) / share) if share and not training.of_several else 0


def _by_path(run: Path, part: ImageDataset) -> npt.NDArray[np.bool_]:
    """(2, N) whether a picture lies where one lay that the run trained on; and where one that chose, of minival."""
    there = ImageDataset.from_csv(run / "manifest.csv", root=run.absolute(), source=str(run))
    asked, places = resolved_files(part), np.array(resolved_files(there), dtype=object)
    found = []
    for split in ("train", "minival"):
        theirs = set(places[there.split == split])
        found.append([place in theirs for place in asked])
    return np.array(found, dtype=bool)


@dataclass(frozen=True)
class UnseenMetrics:
    """Figures of the pictures that neither trained nor chose a model, where others did.

    Args:
        words: for people.
        told: for programs: how many there are, their figures, their 95 % intervals.
    """

    words: str
    told: Mapping[str, Any]


def unseen_metrics(
    predictions: Predictions, known: TrainOverlap, class_names: Sequence[str], whole: Clusters | None = None
) -> UnseenMetrics | None:
    """The figures of those alone; of an ensemble, of those that trained or chose no member of it.

    Args:
        predictions: of all pictures.
        known: which of them trained or chose the model, in the same order.
        class_names: of the network.
        whole: what hangs together among all pictures, in the same order; None where nothing does.

    Returns:
        None where there is nothing to part: all or none did, it is not known of each, or fewer than 30 did neither.
    """
    rows = known.unseen
    if rows is None or not SMALL_SLICE <= len(rows) < known.of:
        return None
    labels, shares = predictions.labels[rows], predictions.probabilities[rows]
    found = compute_metrics(labels, shares, class_names, predictions.answer)
    clusters = None if whole is None else whole.clusters[rows]
    intervals = metric_intervals(found, labels, shares, clusters=clusters, key=Key.of(0).fold("unseen"))
    name, mean = macro_metric(found)
    figures = {"top1": found.top1, name: mean}
    reach = {one: intervals[one] for one in figures if one in intervals}

    def said(one: str) -> str:
        low_high = f" ({reach[one][0]:.1%} to {reach[one][1]:.1%})" if one in reach else ""
        return f"{figures[one]:.1%}{low_high}"

    which = "neither trained nor chose it" if known.chose else "did not train it"
    return UnseenMetrics(
        f"On the {len(rows):,} of these {known.of:,} pictures that {which}: top-1 {said('top1')}, "
        f"{MACRO_METRICS[name]} {said(name)}; 95 % intervals.",
        {"pictures": len(rows), **figures, "intervals": reach},
    )
