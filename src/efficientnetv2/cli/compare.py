"""``effnetv2 compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import argument, expanded, option
from efficientnetv2.utils.errors import format_duration

if TYPE_CHECKING:
    from efficientnetv2.evaluation.predictions import PairedDifference
    from efficientnetv2.evaluation.run_comparison import FinishedRun
    from efficientnetv2.workflows.compare import Comparison

_ENDS = 10  # classes shown at either end, of more than twice as many. Ours


def compare(
    runs: Annotated[list[Path], argument("RUN", "Folders of finished runs, cross-validations or evaluations.")],
    out: Annotated[Path | None, option("Folder for comparison.json and plots.", "FOLDER", "--output")] = None,
    as_json: options.Json = False,
) -> None:
    """Compare the metrics and training times of runs.

    Differences are of the same images, or of independent samples if the images differ.

    Examples:
    - `effnetv2 compare runs/fixed runs/progressive`
    - `effnetv2 compare runs/fixed runs/progressive --output comparison/`
    """
    from efficientnetv2.workflows import compare as workflow

    with Screen(quiet=as_json) as screen:
        found = workflow.compare(expanded(map(str, runs)), output=out)
        if as_json:
            print_json(found.to_json())
        else:
            _print_comparison(found, screen)


def _print_comparison(found: Comparison, screen: Screen) -> None:
    rows = []
    for run in found.runs:
        report, sizes = run.report, run.sizes
        low, high = report["intervals"]["top1"]
        rows.append(
            [
                run.name, f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else ", ".join(map(str, sizes)),
                "–" if report.get("epochs") is None else f"{report['epochs']:g}", f"{report['top1']:.3f}",
                f"{low:.3f} to {high:.3f}", f"{report['macro_f1']:.3f}",
                "–" if run.train_s is None else format_duration(run.train_s),
            ]
        )  # fmt: skip
    columns = ["run", "px", "epochs", "top-1", "95 % interval", "macro-F1", "training"]
    screen.table("Runs", columns, rows)
    first, *others = found.runs
    for run, paired, unpaired in zip(others, found.paired, found.unpaired, strict=True):
        if paired is not None:
            screen.say(f"Is {run.name} better than {first.name}? {paired.over.verdict} {paired.over.text}")
            if paired.time_ratio is not None:
                screen.say(f"Training time of {run.name} / {first.name}: {paired.time_ratio:.2f}")
            _warn_of_folds(run, first, screen)
            _print_classes(run.name, paired.over, screen)
        elif unpaired is not None:
            screen.say(unpaired.describe(run.name, first.name))
            _warn_of_folds(run, first, screen)
        else:
            screen.say(f"{run.name} and {first.name} have images of different classes, so they cannot be compared.")


def _warn_of_folds(run: FinishedRun, first: FinishedRun, screen: Screen) -> None:
    """Name the rules of the folds, if they differ: then metrics differ for this reason."""
    rules = [each.report.get("split_by") for each in (run, first)]
    if None not in rules and rules[0] != rules[1]:
        screen.say(
            f"Warning: the folds of {run.name} are by {rules[0]}, those of {first.name} by {rules[1]}. To compare "
            "recipes, use the same rule for both."
        )


def _print_classes(name: str, found: PairedDifference, screen: Screen) -> None:
    """The classes with the lowest and the highest differences of F1."""
    rows = [
        [label, f"{one.value:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}", "beyond chance" if one.certain else ""]
        for label, one in sorted(found.f1.items(), key=lambda item: item[1].value)
    ]  # fmt: skip
    shown = rows if len(rows) <= 2 * _ENDS else [*rows[:_ENDS], *rows[-_ENDS:]]
    some = f" (the {_ENDS} lowest and {_ENDS} highest of {len(rows)})" if len(shown) < len(rows) else ""
    screen.table(f"F1 of {name} by class{some}", ["class", "difference", "95 % interval", ""], shown)
