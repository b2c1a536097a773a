"""Tables 8 and 9: going on from ImageNet's weights to other sets, and what those sets are."""

from __future__ import annotations

from efficientnetv2.arch.published import published
from efficientnetv2.base.errors import InputError
from efficientnetv2.commands.reproduction import columns, table
from efficientnetv2.commands.reproduction.cells import TOP1, Cell, Runs
from efficientnetv2.commands.reproduction.counts import Say
from efficientnetv2.commands.reproduction.runs import table_of_runs
from efficientnetv2.commands.reproduction.scale import Scale
from efficientnetv2.commands.reproduction.table import Figure, Row, Table
from efficientnetv2.data.standard import VARIABLE, NotAtHandError, read_standard

# The paper's columns -> the standard sets (data.standard).
_SETS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "flowers102": "flowers102",
    "cars": "stanford_cars",
}
#: Scale -> as ``--data``, what table 8 trains on unless the user names pictures: every column, or at small the first.
#: Imagenette, which the other tables take there, is of classes that ImageNet's weights have learnt already.
DATA = {"small": "cifar10", "paper": ",".join(_SETS.values())}
_OTHERS = "these pictures"  # the column of pictures that the paper has none of


def refuse_weights(scale: Scale, weights: str | None) -> None:
    """Table 8 goes on from weights of the network of each row.

    Args:
        scale: of the runs.
        weights: as ``--weights`` says it.

    Raises:
        InputError: there are none, or the same for every network.
    """
    if scale.name == "paper" and weights not in (None, "none"):
        raise InputError(
            f"--weights {weights}: at scale paper table 8 trains several networks, each from weights of its own "
            "(efficientnetv2_s.in1k and so on). Leave --weights out; --weights none shows that everything runs."
        )
    if scale.name != "paper" and weights is None:
        raise InputError(
            "Table 8 is about going on from trained weights: name some of efficientnetv2_b0 with --weights FILE or "
            "--weights NAME (effnetv2 models --pretrained), or --weights none to see that everything runs."
        )


def table_8(scale: Scale, runs: Runs) -> Table:
    """Transfer: the paper's recipe from given weights to other sets."""
    figures, headings = columns.figures("8"), columns.headings("8")
    settings = {
        "tiny": ("steps=3", "batch_images=16", "progressive.image_px=32", "eval_px=32"),
        # The paper's rate is for a batch of 512; in proportion.
        "small": (
            "steps=1500", "batch_images=64", "optimizer.lr=1.25e-4", "progressive.image_px=96", "eval_px=96",
        ),
        "paper": (),  # each network's own size
    }[scale.name]  # fmt: skip
    names = [name for name in figures if name != "columns"]
    whole = scale.name == "paper"
    models = {name: name for name in names} if whole else {"efficientnetv2_s": "efficientnetv2_b0"}
    sets = _columns(runs.source.data)
    cells = [
        Cell(
            row, column, "transfer_paper", model, _own_size(model) if whole else settings, data=data,
            weights=f"{model}.in1k" if whole and runs.weights is None else None,
        )
        for row, model in models.items() for column, data in sets.items()
    ]  # fmt: skip
    found = runs.of(cells)
    missing = Figure(unit="%", why=f"not run at scale {scale.name}")
    rows = [
        Row(
            row,
            table.row_of(figures, row, headings),
            {column: found[row, column][TOP1] if row in models else missing for column in sets},
        )
        for row in names
    ]
    length = {"tiny": "", "small": ", 1,500 steps of 64 pictures at 96 px", "paper": ""}[scale.name]
    beside = "" if whole else f"EfficientNetV2-B0 in the place of S{length}. "
    beside += "On test, as the paper's; of pictures without a test split on val, held out of train."
    title = "Table 8: transfer (top-1 in %)"
    return table_of_runs(
        "8", title, rows, scale, runs, cells, beside, "top-1 on each set, means of five runs."
    )


def _own_size(model: str) -> tuple[str, ...]:
    """The recipe names that of S, whose weights it begins with."""
    px = published(model).preprocessing.image_px
    return f"progressive.image_px={px}", f"eval_px={px}"


def _columns(data: str) -> dict[str, str]:
    """Column -> DATA of its runs: sets of the paper's by name, with commas between several, or any other pictures."""
    known = {name: column for column, name in _SETS.items()} | {column: column for column in _SETS}
    words = [word.strip() for word in data.split(",")]
    if all(word in known for word in words):
        return {known[word]: _SETS[known[word]] for word in words}
    return {_OTHERS: data}


def table_9(scale: Scale, say: Say) -> Table:
    """The sets of table 8: what the paper counts, and what is at hand here."""
    figures, headings = columns.figures("9"), columns.headings("9")
    rows = [
        Row(column, table.row_of(figures, column, headings), _at_hand(name, say))
        for column, name in _SETS.items()
    ]
    return Table(
        "9",
        "Table 9: the sets of table 8",
        tuple(rows),
        "pictures and classes of the sets as it used them.",
        f"{table.untrained(scale.name)}what is at hand here, under data/ or where {VARIABLE} says; a val of the set's "
        "own counts as train, as in the paper.",
        scale.name,
    )


def _at_hand(name: str, say: Say) -> dict[str, Figure]:
    """Pictures and classes of a standard set."""
    try:
        found = read_standard(name).table
    except InputError as error:
        say(str(error))
        absent = isinstance(error, NotAtHandError)
        missing = Figure(
            why="the set is not at hand" if absent else "the set is not at hand whole; log.txt says why"
        )
        return dict.fromkeys(("train", "eval", "classes"), missing)
    evaluated = int((found["split"] == "test").sum())
    return {
        "train": Figure((float(len(found) - evaluated),), "pictures"),
        "eval": Figure((float(evaluated),), "pictures"),
        "classes": Figure((float(found["label"].nunique()),), "classes"),
    }
