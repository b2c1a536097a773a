"""Train a classifier: `efficientnetv2.train`."""

from __future__ import annotations

import time
from typing import Unpack

import torch

from efficientnetv2.commands.train_job import train_and_report
from efficientnetv2.commands.within import refuse_run_within
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.workflows.arguments import Overrides, PathLike, api, notes_screen, run_arguments
from efficientnetv2.workflows.results import Run


@api
def train(
    data: PathLike,
    *,
    output: PathLike | None = None,
    recipe: PathLike | Recipe | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    workers: int | None = None,
    baseline: PathLike | None = None,
    **overrides: Unpack[Overrides],
) -> Run:
    """Train a classifier and write its report.

    The run is the one of ``effnetv2 train`` with the same options and seed, to the bit. Notes go to stderr. With
    ``workers`` above 0 on macOS or Windows, call it under ``if __name__ == "__main__":``.

    Example::

        import efficientnetv2 as ev2

        run = ev2.train(
            "photos/", output="runs/mine", model="efficientnetv2_b0", weights="none", epochs=2, image_size=64
        )
        print(run.metrics["top1"], run.intervals["top1"], run.report_path)

    Args:
        data: Folder with a sub-folder per class, a table (CSV, TSV, Parquet) of paths and labels, shards, or the name
            of a standard dataset.
        output: Folder of the run. None makes a new one under ``runs/``.
        recipe: Name of a recipe, a ``recipe.yaml``, a run, or a recipe. None chooses by the weights.
        resume: Resume the run in ``output``, or the newest under ``runs/``.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        workers: Processes that read images; 0 reads in this one. None chooses by the machine.
        baseline: Another run to compare with on the same images. None takes the newest that predicted them.
        overrides: Hyperparameters, and how ``data`` is read: ``model``, ``weights``, ``epochs``, ``minutes``,
            ``image_size``, ``batch_size``, ``lr``, ``crop_mode``, ``seed``, ``cache``, ``memory_gib``, ``strict``,
            ``path_column``, ``label_column``, ``group_column``, ``labels``, ``label_separator``, ``bands``,
            ``nodata``, ``layout``, ``min_images_per_class``. Any other field of the recipe goes into ``settings``,
            a mapping of dotted names: ``settings={"progressive.stages": 1, "patience": 5}``.

    Returns:
        The finished run.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    began = time.monotonic()
    words, source, place = run_arguments(
        train, data, recipe, overrides,
        output=output, device=device, workers=workers, resume=resume, baseline=baseline,
    )  # fmt: skip
    if not resume:
        refuse_run_within(source.data, place.out, "train")
    return Run(train_and_report(words, source, place, notes_screen(), began=began))
