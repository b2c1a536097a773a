"""``effnetv2 compare``: runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.utils.errors import format_duration
from efficientnetv2.workflows.outputs import refuse_others, tell_replaced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from efficientnetv2.evaluation.compare import FinishedRun, RunComparison, UnpairedComparison
    from efficientnetv2.evaluation.predictions import PairedDifference

_ENDS = 10  # classes shown at either end, of more than twice as many: ours
# Of report.json.
_TAKEN = ("top1", "macro_f1", "optimistic", "epochs", "wall_s", "images_per_s", "split_by")
_TOLD = "comparison.json"
_DRAWN = ("accuracy_over_time.png", "settings.png", "stage_costs.png")
_TITLE = "effnetv2 compare"  # in the drawings, so that they are known for these


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of two runs or more that have come to their end, of cross-validations or evaluations.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for comparison.json and pictures: accuracy against training time, settings, cost by stage.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show what runs reached in which time, and how sure the difference to the first is, over all and by class.

    Differences are of the same images. Runs that were evaluated on different images are compared as two independent
    samples, which is less precise. Where a run held out, or
    dealt into folds, whole places or groups, chance draws these as a whole too, which makes intervals wider. Of a run
    whose report calls its figures optimistic it is said that they are.

    Examples:
    - `effnetv2 compare runs/fixed runs/progressive`
    - `effnetv2 compare runs/fixed runs/progressive --out comparison/`
    """
    from efficientnetv2.evaluation.compare import FinishedRun, compare_runs, compare_unpaired
    from efficientnetv2.utils.errors import InputError
    from efficientnetv2.utils.io import check_writable_dir

    if len(runs) < 2:
        raise InputError("compare takes two runs or more. Give the folders of both: effnetv2 compare RUN RUN")
    if out is not None:
        check_writable_dir(out, "--out")
        _refuse_others(out)
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    finished = [FinishedRun.read(run, name) for run, name in zip(runs, names, strict=True)]
    gains = [compare_runs(one, finished[0]) for one in finished[1:]]
    apart = [
        None if found is not None else compare_unpaired(one, finished[0])
        for one, found in zip(finished[1:], gains, strict=True)
    ]
    plain = _as_json(finished, gains, apart)
    with Screen(quiet=as_json) as screen:
        if out is not None:
            tell_replaced(out / _TOLD)
            _write(out, finished, plain)
        if as_json:
            print_json(plain)
        else:
            _tell(finished, gains, apart, screen)
        if out is not None:
            screen.say(f"Pictures: {out}")


def _refuse_others(out: Path) -> None:
    """Refuse a folder with files of the user's by the names of those that will be written."""
    from efficientnetv2.evaluation.plot_style import is_titled

    why = "is of no comparison of effnetv2 compare"
    refuse_others(out / _TOLD, f"--out {out}:", _is_comparison, why)
    for name in _DRAWN:
        refuse_others(out / name, f"--out {out}:", lambda file: is_titled(file, _TITLE), why)


def _is_comparison(file: Path) -> bool:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.keys() - {"unpaired"} == {"runs", "gains"}


def _as_json(
    finished: Sequence[FinishedRun],
    gains: Sequence[RunComparison | None],
    unpaired: Sequence[UnpairedComparison | None],
) -> dict[str, Any]:
    rows = [
        {
            "run": one.name,
            **{key: one.report.get(key) for key in _TAKEN},
            "top1_interval": one.report["intervals"]["top1"],
            "train_s": None if one.train_s is None else round(one.train_s, 2),
            "sizes": list(one.sizes),
        }
        for one in finished
    ]
    apart = [
        {"run": one.name, "over": finished[0].name, **found.to_json()}
        for one, found in zip(finished[1:], gains, strict=True)
        if found is not None
    ]
    different = [
        {"run": one.name, "over": finished[0].name, **found.to_json()}
        for one, found in zip(finished[1:], unpaired, strict=True)
        if found is not None
    ]
    return {"runs": rows, "gains": apart, "unpaired": different}


def _write(out: Path, finished: Sequence[FinishedRun], plain: dict[str, Any]) -> None:
    from functools import partial

    from efficientnetv2.evaluation.plot_style import png
    from efficientnetv2.evaluation.plots import (
        draw_costs,
        draw_hyperparameters,
        draw_top1_over_time,
        stage_costs,
    )
    from efficientnetv2.utils.io import write_atomically, write_text_atomically

    histories = {one.name: one.history for one in finished}
    costs = {name: stage_costs(history) for name, history in histories.items()}
    figures = (draw_top1_over_time(histories), draw_hyperparameters(histories), draw_costs(costs))
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out / _TOLD, json.dumps(plain, indent=2) + "\n")
    for name, figure in zip(_DRAWN, figures, strict=True):
        if figure is None:
            (out / name).unlink(missing_ok=True)  # that of an earlier comparison says nothing of this one
        else:
            write_atomically(out / name, partial(Path.write_bytes, data=png(figure, title=_TITLE)))


def _tell(
    finished: Sequence[FinishedRun],
    gains: Sequence[RunComparison | None],
    unpaired: Sequence[UnpairedComparison | None],
    screen: Screen,
) -> None:
    from efficientnetv2.evaluation.summary import describe_difference

    rows = []
    for one in finished:
        report, sizes = one.report, one.sizes
        low, high = report["intervals"]["top1"]
        rows.append(
            [
                one.name,
                f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else ", ".join(map(str, sizes)),
                "–" if report.get("epochs") is None else f"{report['epochs']:g}",
                f"{report['top1']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{report['macro_f1']:.3f}",
                "–" if one.train_s is None else format_duration(one.train_s),
            ]
        )
    columns = ["run", "px", "epochs", "top-1", "95 % interval", "macro-F1", "training"]
    screen.table("Runs", columns, rows)
    first = finished[0].name
    for one, found, different in zip(finished[1:], gains, unpaired, strict=True):
        if found is None:
            screen.say(_unpaired(one.name, first, different))
            continue
        screen.say(f"Is {one.name} better than {first}? {describe_difference(found.over)}")
        if found.time_ratio is not None:
            screen.say(f"{one.name} took {found.time_ratio:.2f} of the training time of {first}.")
        if unlike := _dealt_unlike(one, finished[0]):
            screen.say(unlike)
        _tell_classes(one.name, found.over, screen)


def _unpaired(name: str, first: str, found: UnpairedComparison | None) -> str:
    """The difference of two runs on different images, in sentences."""
    if found is None:
        return (
            f"{name} and {first} were evaluated on images of different classes, so they cannot be compared."
        )
    names = {"top1": "top-1", "macro_f1": "macro-F1"}
    points = ", ".join(
        f"{names[metric]} {100 * one.value:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f})"
        for metric, one in found.metrics.items()
    )
    many, others = found.images
    shared = f" {found.shared:,} images are in both, so the intervals are too wide." if found.shared else ""
    warning = f" {found.optimistic}" if found.optimistic else ""
    return (
        f"{name} and {first} were evaluated on different images ({many:,} and {others:,}), so they are compared as two "
        f"independent samples. {name} - {first}: {points}; 95 % intervals.{shared} The difference is due to the models "
        "only if both samples come from the same population. Evaluate both on the same images for narrower intervals."
        f"{warning}"
    )


def _dealt_unlike(one: FinishedRun, first: FinishedRun) -> str | None:
    """A sentence on cross-validations whose folds keep other things whole."""
    mine, theirs = (each.report.get("split_by") for each in (one, first))
    if mine is None or theirs is None or mine == theirs:
        return None
    return (
        f"Warning: the folds of {one.name} are by {mine}, those of {first.name} by {theirs}, so that the difference is "
        "also that of what their networks could learn from neighbours. To compare recipes, deal both by one rule."
    )


def _tell_classes(name: str, found: PairedDifference, screen: Screen) -> None:
    """The classes whose F1 differs most, the losses first."""
    rows = [
        [
            label,
            f"{one.value:+.3f}",
            f"{one.low:+.3f} to {one.high:+.3f}",
            "beyond chance" if one.certain else "",
        ]
        for label, one in sorted(found.f1.items(), key=lambda item: item[1].value)
    ]
    shown = rows if len(rows) <= 2 * _ENDS else [*rows[:_ENDS], *rows[-_ENDS:]]
    some = f" (the {2 * _ENDS} farthest of {len(rows)})" if len(shown) < len(rows) else ""
    screen.table(f"F1 of {name} by class{some}", ["class", "difference", "95 % interval", ""], shown)
