"""A run that has come to its end, and is asked to go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.base.files import read_object
from efficientnetv2.base.typed import typed
from efficientnetv2.commands.earlier import Other
from efficientnetv2.commands.resumed import longer
from efficientnetv2.commands.screen import Screen, answer
from efficientnetv2.evaluation.answered import over, read_answers
from efficientnetv2.evaluation.answers import Beside, lines
from efficientnetv2.evaluation.roots import root_of
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resume import drop, steps_saved


@dataclass(frozen=True)
class Finished:
    """A run with nothing left to do.

    Args:
        path: of its folder.
        recipe: its.
        against: another that it is to be compared with; None if none was named.
    """

    path: Path
    recipe: Recipe
    against: Other | None = None

    @classmethod
    def compared(cls, path: Path, recipe: Recipe, against: Path) -> Finished:
        """One that is compared, its report made, with another.

        Raises:
            InputError: its report is gone, or see ``Other.named``.
        """
        folder = RunFolder(path, lambda line: None)
        if not folder.reported:
            again = typed(["effnetv2", "evaluate", str(path), "DATA", "--against", str(against)])
            raise InputError(
                f"--against {against}: the report of the run in {path} is not there any more. To compare: {again}"
            )
        separator = folder.beginning().get("label_separator")
        own = read_answers(path)
        root = root_of(path, list(own.index))
        other = Other.beside(against, read_answers(against), own, root=root, separator=separator)
        return cls(path, recipe, other)


def tell_finished(run: Finished, screen: Screen, *, as_json: bool) -> None:
    """Say that nothing is left to do, where the result lies, and how to train longer.

    Nothing in the folder changes, but that checkpoints go which a kill has left behind.

    Args:
        run: that has finished.
        screen: to say it on.
        as_json: answer with the report again.
    """
    folder = RunFolder(run.path, screen.say)
    report = folder.path / "report.json"
    fix = f"Remove it. For metrics: {typed(['effnetv2', 'evaluate', str(folder.path), 'DATA'])}"
    told = read_object(report, "epochs", fix=fix) if folder.reported else {}
    if as_json and told:
        answer(told)
    # It may have ended before all of the recipe's epochs.
    epochs = count_of(float(told.get("epochs", run.recipe.epochs)), "epoch")
    screen.say(f"The run in {folder.path} has finished after {epochs}: nothing is left to do.")
    screen.say(f"Model: {folder.model_file}")
    if folder.reported:
        screen.say(f"Report: {report.with_suffix('.html')}")
        for line in _compared(run):
            screen.say(line)
    else:
        again = typed(["effnetv2", "evaluate", str(folder.path), "DATA"])
        screen.say(f"Its report is not there any more. For figures: {again}")
    if steps_saved(folder.checkpoints):
        drop(folder.checkpoints)
        screen.say("Its checkpoints, which nothing needs any more, were removed.")
    screen.say(longer(folder.path))


def _compared(run: Finished) -> list[str]:
    """Whether it is better than the other, as its report would have said it."""
    if run.against is None:
        return []
    own = read_answers(run.path)
    found = over(own, run.against.answers)
    if found is None:
        return []
    return lines(Beside(last=(run.against.name, run.against.qualified(found))))
