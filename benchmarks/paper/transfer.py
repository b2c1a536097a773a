"""Tables 8 and 9: transfer from ImageNet weights to other datasets, and those datasets."""

from __future__ import annotations

import torch
from benchmarks.paper import published
from benchmarks.paper.accuracy import table_of_runs
from benchmarks.paper.params_flops import Say
from benchmarks.paper.runs import TOP1, Cell, Runs
from benchmarks.paper.scale import Scale
from benchmarks.paper.table import Measurement, Row, Table, untrained

from efficientnetv2.architectures.registry import get_model_info as published_network
from efficientnetv2.data.builtin_datasets import VARIABLE, DatasetNotFoundError, read_builtin
from efficientnetv2.utils.errors import InputError

# The paper's columns -> the standard sets (data.builtin_datasets).
_SETS = {"cifar10": "cifar10", "cifar100": "cifar100", "flowers102": "flowers102", "cars": "stanford_cars"}
#: Scale -> Table 8's default for ``--data``: every column, or at small the first one. Not Imagenette, the default of
#: the other tables there: ImageNet's weights have learned its classes already.
DATA = {"small": "cifar10", "paper": ",".join(_SETS.values())}
_OTHER = "these pictures"  # the column of images that the paper has not; stored in records
_SETTINGS = {
    "tiny": ("steps=3", "batch_size=16", "progressive.image_size=32", "eval_image_size=32"),
    # The paper's learning rate is for a batch of 512; in proportion.
    "small": (
        "steps=1500", "batch_size=64", "optimizer.lr=1.25e-4", "progressive.image_size=96", "eval_image_size=96",
    ),
}  # fmt: skip


def refuse_weights(scale: Scale, weights: str | None) -> None:
    """Refuse ``--weights`` that do not fit Table 8: at scale paper each network has its own.

    Raises:
        InputError: they are missing, or given for all networks.
    """
    if scale.name == "paper" and weights not in (None, "none"):
        raise InputError(
            f"--weights {weights}: at scale paper Table 8 trains several networks, each from weights of its own "
            "(efficientnetv2_s.in1k and so on). Leave --weights out; --weights none shows that everything runs."
        )
    if scale.name != "paper" and weights is None:
        raise InputError(
            "Table 8 transfers trained weights: give weights of efficientnetv2_b0 with --weights FILE or "
            "--weights NAME (effnetv2 models --pretrained), or --weights none to see that everything runs."
        )


def table_8(scale: Scale, runs: Runs) -> Table:
    """Transfer: the paper's recipe from given weights to other datasets."""
    whole = scale.name == "paper"
    names = list(published.rows("8"))
    models = {name: name for name in names} if whole else {"efficientnetv2_s": "efficientnetv2_b0"}
    sets = _columns(runs.source.data)
    cells = [
        Cell(
            row,
            column,
            "transfer_paper",
            model,
            _own_size(model) if whole else _SETTINGS[scale.name],
            data=data,
            weights=f"{model}.in1k" if whole and runs.weights is None else None,
        )
        for row, model in models.items()
        for column, data in sets.items()
    ]
    found = runs.measurements(cells)
    absent = Measurement(unit="%", why=f"not run at scale {scale.name}")
    rows = [
        Row(
            row,
            published.row("8", row),
            {column: found[row, column][TOP1] if row in models else absent for column in sets},
        )
        for row in names
    ]
    length = ", 1,500 steps of 64 images at 96 px" if scale.name == "small" else ""
    note = "" if whole else f"EfficientNetV2-B0 in the place of S{length}. "
    note += "Evaluated on test, as in the paper; without a test split on val, held out of train."
    return table_of_runs("8", rows, scale, runs, cells, note)


def _own_size(model: str) -> tuple[str, ...]:
    """Settings of the model's own size, where the recipe has that of S."""
    px = published_network(model).preprocessing.image_size
    return f"progressive.image_size={px}", f"eval_image_size={px}"


def _columns(data: str) -> dict[str, str]:
    """Column -> DATA: the paper's sets by name, separated by commas, or any other images."""
    known = {name: column for column, name in _SETS.items()} | {column: column for column in _SETS}
    names = [name.strip() for name in data.split(",")]
    if all(name in known for name in names):
        return {known[name]: _SETS[known[name]] for name in names}
    return {_OTHER: data}


def table_9(scale: Scale, device: torch.device, say: Say) -> Table:
    """The datasets of Table 8: what the paper counts, and what is available here."""
    rows = [Row(column, published.row("9", column), _available(name, say)) for column, name in _SETS.items()]
    note = (
        f"{untrained(scale.name)}what is at hand here, under data/ or where {VARIABLE} says; a val of the set's own "
        "counts as train, as in the paper."
    )
    return published.table("9", rows, note, scale.name)


def _available(name: str, say: Say) -> dict[str, Measurement]:
    """Images and classes of a standard set."""
    try:
        found = read_builtin(name).table
    except InputError as error:
        say(str(error))
        absent = isinstance(error, DatasetNotFoundError)
        why = "the set is not at hand" if absent else "the set is not at hand whole; log.txt says why"
        return dict.fromkeys(("train", "eval", "classes"), Measurement(why=why))
    evaluated = int((found["split"] == "test").sum())
    counts = {"train": len(found) - evaluated, "eval": evaluated}
    return {name: Measurement((float(count),), "images") for name, count in counts.items()} | {
        "classes": Measurement((float(found["label"].nunique()),), "classes")
    }
