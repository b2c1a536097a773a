"""Search for an architecture: `efficientnetv2.search`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd
import torch
from markupsafe import escape

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.config import default_check_dir
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.results import TrialRow, best
from efficientnetv2.progressive.schedule import IMAGE_SIZE
from efficientnetv2.training.recipe import MAX_COUNT
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import absolute_path, shown_path
from efficientnetv2.utils.logs import shown_by_default
from efficientnetv2.workflows.arguments import (
    PathLike,
    TableArguments,
    api,
    number,
    path_of,
    path_text,
    refuse_unknown,
    settings_of,
    source_of,
)
from efficientnetv2.workflows.results import html_table
from efficientnetv2.workflows.search_config import SearchConfig, SearchOptions, WorkerOptions
from efficientnetv2.workflows.search_report import LoadedStudy, show_study
from efficientnetv2.workflows.search_run import resume_study, run_study
from efficientnetv2.workflows.study_dir import REPORT_FILES, StudyDir, absolute_source

_SHOWN = 10  # Trials of the HTML table. Ours.


class Study:
    """A study of architectures: its trials so far, and the best of them.

    Example::

        import efficientnetv2 as ev2

        study = ev2.Study("studies/photos")
        print(study.trials, study.best_trial)
        ev2.count_flops(study.architecture(), image_size=64).total.parameters

    Args:
        path: Folder of the study.
        storage: URL of its database, where that is not known from the folder.

    Raises:
        InputError: On first use, where there is no such study.
    """

    def __init__(self, path: str | os.PathLike[str], storage: str | None = None) -> None:
        self.path, self.storage = absolute_path(path), storage

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial that has ended: number, state, reward, seconds, and what was measured of its architecture.

        ``state`` is "finished", "stopped" (early) or "failed".
        """
        rows = [row.to_json() for row in self._load().rows]
        measured = [row.pop("measurement") for row in rows]
        columns, more = ([field.name for field in fields(kind)] for kind in (TrialRow, Measurement))
        columns.remove("measurement")
        table = pd.DataFrame(rows, columns=columns).rename(columns={"end": "state"})
        return pd.concat([table, pd.DataFrame(measured, columns=more)], axis=1)

    @property
    def best_trial(self) -> int:
        """Number of the finished trial with the largest reward."""
        return best(self._load().rows)[0].number

    def architecture(self, trial: int | None = None) -> Architecture:
        """The architecture of a trial, for `train`, `create` or `count_flops`. None is the best trial.

        Raises:
            InputError: There is no such trial.
        """
        loaded = self._load()
        return loaded.study.config.space.decode(loaded.row(trial).point)

    @property
    def report_path(self) -> Path:
        """The HTML page that `write_report` writes."""
        return self.path / REPORT_FILES[0]

    def write_report(self) -> Path:
        """Write the page and its plots: accuracy against step time and size, reward over trials."""
        return show_study(self.path, self.storage, 1.0).page

    def _load(self) -> LoadedStudy:
        return LoadedStudy.of(self.path, self.storage, 1.0)

    def __repr__(self) -> str:
        try:
            loaded = self._load()
        except InputError:
            return f"Study({shown_path(self.path)!r}, cannot be read)"
        has_finished = any(row.end == "finished" for row in loaded.rows)
        reward = f", best_reward={best(loaded.rows)[0].reward:.4f}" if has_finished else ""
        return f"Study({shown_path(self.path)!r}, trials={len(loaded.rows)} of {loaded.study.target}{reward})"

    def _repr_html_(self) -> str:
        try:
            rows = self._load().rows
        except InputError:
            return f"<code>{escape(repr(self))}</code>"
        cells = [
            (row.number, f"{row.reward:.4f}", row.measurement.top1, row.measurement.step_seconds, row.end)
            for row in sorted(rows, key=lambda row: -row.reward)[:_SHOWN]
        ]
        page = self.report_path if self.report_path.is_file() else None
        return html_table(repr(self), ["trial", "reward", "top1", "step_seconds", "state"], cells, page)


@api
def search(
    data: PathLike,
    *,
    output: PathLike | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    preset: Literal["small", "paper"] = "small",
    space: PathLike | None = None,
    sampler: Literal["policy", "evolution", "random", "tpe", "nsga2"] | None = None,
    step_exponent: float | None = None,
    parameters_exponent: float | None = None,
    inference_exponent: float | None = None,
    memory_exponent: float | None = None,
    prune: bool = True,
    step_time: Literal["measured", "cached"] = "measured",
    recipe: PathLike | None = None,
    epochs: float | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    seeds: Sequence[int] = (0,),
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    storage: str | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    threads: int | None = None,
    memory_gib: float | None = None,
    strict: bool = False,
    wait_minutes: float = 10.0,
    **table: Unpack[TableArguments],
) -> Study:
    """Search for an architecture that is accurate and fast to train, on these images and this machine.

    A further process that calls it with the same arguments works for the same study. The progress is printed as by
    `train`.

    Example::

        import efficientnetv2 as ev2

        study = ev2.search("photos/", trials=2, epochs=1, image_size=64)
        print(study.trials[["number", "reward", "top1", "step_seconds"]])
        ev2.train("photos/", model=study.architecture(), epochs=2, image_size=64)

    Args:
        data: Dataset of one label per image, see `train`. Only ``train`` is used.
        output: Folder of the study. None takes ``studies/NAME``, by the name of ``data``.
        trials: Architectures to try in all. None takes the number of the preset.
        minutes: Start no trial that would end later, except the first one of the study.
        resume: Resume the study in ``output`` as it was begun; ``trials`` may then be larger. All arguments but
            ``minutes``, ``storage`` and those of the machine are taken from the study.
        preset: "small" for 64 px on a CPU; "paper" for 1,000 trials around EfficientNet-B4 on GPUs.
        space: Architectures to choose from: "small", "paper", a published model, or a file. None is the preset's.
        sampler: Who proposes architectures. None is "policy", the policy gradient of the paper.
        step_exponent: Exponent of the step time in the reward, w of the paper. None is -0.07.
        parameters_exponent: Exponent of the number of parameters, v of the paper. None is -0.05.
        inference_exponent: Exponent of the inference time of one image. None is 0.
        memory_exponent: Exponent of the memory of training. None is 0.
        prune: Stop trials early that are among the worst quarter.
        step_time: "measured" times each architecture; "cached" adds up what its blocks took in others.
        recipe, epochs, image_size, batch_size, settings: Hyperparameters of a trial, see `train`. None is the preset's.
        seeds: Seeds of the runs of a trial, whose mean top-1 counts.
        seed: Seed of the sampler.
        storage: URL of a database for workers on several machines. None is a file in the folder.
        device, workers, memory_gib, strict, table: See `train`.
        threads: CPU threads that a model trains with. None is all.
        wait_minutes: How long to try again while the database does not respond.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    refuse_unknown(search, table, TableArguments)
    source = source_of(data, table)
    folder = path_of("output", output) or Path("studies") / default_check_dir(source.data).name
    trials = number("trials", trials, 1, MAX_COUNT)
    minutes = number("minutes", minutes, 0, whole=False)
    worker = WorkerOptions(
        str(device),
        number("workers", workers, 0),
        number("threads", threads, 1),
        number("memory_gib", memory_gib, 0, whole=False),
        strict,
        number("wait_minutes", wait_minutes, 0, whole=False, default=WorkerOptions.wait),
    )
    if resume:
        study_data = StudyDir(folder).source(storage).data
        if os.path.realpath(study_data) != os.path.realpath(absolute_source(source.data)):
            raise InputError(
                f"`resume`: the study in {folder} is of {study_data}, not of {source.data}. Pass its data."
            )
        with shown_by_default():
            resume_study(folder, storage, trials, minutes, worker)
        return Study(folder, storage)
    options = SearchOptions(
        preset=preset,
        space=None if space is None else path_text("space", space),
        sampler=sampler,
        w=number("step_exponent", step_exponent, -math.inf, 0, whole=False),
        v=number("parameters_exponent", parameters_exponent, -math.inf, 0, whole=False),
        inference_exponent=number("inference_exponent", inference_exponent, -math.inf, 0, whole=False),
        memory_exponent=number("memory_exponent", memory_exponent, -math.inf, 0, whole=False),
        prune=prune,
        step_time=step_time,
        recipe=None if recipe is None else path_text("recipe", recipe),
        epochs=number("epochs", epochs, 0, whole=False),
        image_size=number("image_size", image_size, *IMAGE_SIZE),
        batch_size=number("batch_size", batch_size, 1, MAX_COUNT),
        seeds=",".join(map(str, np.atleast_1d(0 if seeds is None else seeds).tolist())),
        seed=number("seed", seed, 0, default=SearchOptions.seed),
        settings=settings_of(settings or {}),
    )
    with shown_by_default():
        run_study(SearchConfig(folder, source, options, worker, storage, trials, minutes))
    return Study(folder, storage)
