"""``effnetv2 search``: architecture search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from efficientnetv2.cli import options, parsing
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import advanced, argument, between, flag, option, spread
from efficientnetv2.cli.parsing import ADVANCED

app = parsing.app(
    name="search",
    help="Search for an architecture that is accurate and fast to train.\n\n"
    "Start with: `effnetv2 search run STUDY --data DATA`",
)
_REWARD = f"{ADVANCED}: what is searched"
_TRIAL = f"{ADVANCED}: a trial"

Study = Annotated[Path, argument("STUDY", "Folder of the study.")]
Storage = Annotated[
    str | None, advanced("postgresql://USER@HOST/DATABASE for many machines.  [default: STUDY/study.db]", "URL")
]
Trials = Annotated[int | None, option("Number of trials.  [default: the preset's]", "N", check=between(1, 1_000_000))]
Minutes = Annotated[float | None, option("Time limit: start no trial that would end later.", "N", check=between(0))]
Wait = Annotated[float, advanced("How long to retry while the database does not respond.", "MINUTES", check=between(0))]


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and for what."""

    preset: Annotated[
        Literal["small", "paper"], option("small: at 64 px, minutes per trial on a CPU; paper: ImageNet on GPUs.")
    ] = "small"
    space: Annotated[str | None, option("small, paper, a model, or a file.", "NAME")] = None
    sampler: Annotated[
        Literal["policy", "evolution", "random", "tpe", "nsga2"] | None,
        option("policy, evolution, random, tpe or nsga2.  [default: policy]", "NAME"),
    ] = None
    w: Annotated[
        float | None, option("Exponent of the step time in the reward.  [default: -0.07]", "X", panel=_REWARD)
    ] = None
    v: Annotated[
        float | None, option("Exponent of the number of parameters.  [default: -0.05]", "X", panel=_REWARD)
    ] = None
    inference_exponent: Annotated[
        float | None, option("Exponent of the inference time of an image.  [default: 0]", "X", panel=_REWARD)
    ] = None
    memory_exponent: Annotated[
        float | None, option("Exponent of the memory of training.  [default: 0]", "X", panel=_REWARD)
    ] = None
    prune: Annotated[
        bool, flag("--prune/--no-prune", "Stop trials in the worst quarter at two points.", panel=_REWARD)
    ] = True
    step_time: Annotated[
        Literal["measured", "cached"],
        option("Measure each training step, or add up times of its blocks.", panel=_REWARD),
    ] = "measured"


@dataclass(frozen=True)
class ProxyOptions:
    """How an architecture is tried."""

    epochs: Annotated[float | None, option("Epochs of a trial.  [default: the recipe's]", "N")] = None
    image_size: options.ImageSize = None
    batch_size: options.BatchSize = None
    seed: Annotated[int, option("Random seed of the sampler.", "N")] = 0
    recipe: Annotated[
        str | None, option("Recipe of a trial.  [default: proxy_small or proxy_paper]", "NAME", panel=_TRIAL)
    ] = None
    seeds: Annotated[str, option("Seeds of each trial, whose top-1 is averaged.", "N,N", panel=_TRIAL)] = "0"
    settings: options.Settings = None


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker takes of the machine."""

    device: options.Device = "auto"
    workers: options.Workers = None
    threads: Annotated[
        int | None, advanced("CPU threads, for several workers on one machine.  [default: all]", "N", check=between(1))
    ] = None
    memory_gib: options.MemoryGib = None
    strict: options.Strict = False
    wait: Wait = 10.0


@app.command(cls=parsing.Command)
@spread
def run(
    study: Study,
    data: Annotated[str, option("Images, as for train.", "DATA", show_default=False)],
    searched: SearchOptions,
    proxy: ProxyOptions,
    table: options.OneLabelOptions,
    worker: WorkerOptions,
    storage: Storage = None,
    trials: Trials = None,
    minutes: Minutes = None,
    dry_run: Annotated[bool, flag("--dry-run", "Estimate the cost, and run nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Start a study, or join it as another worker.

    The reward is top-1 · (step time)^w · parameters^v. Only training images are used.

    Examples:
    - `effnetv2 search run studies/photos --data photos/ --dry-run`
    - `effnetv2 search run studies/photos --data photos/ --trials 50`
    """
    from efficientnetv2.cli import progress_bars, search_tables  # torch, which takes seconds
    from efficientnetv2.workflows import search_config, search_run

    config = search_config.SearchConfig(
        study,
        table.data_config(data),
        search_config.SearchOptions(**vars(searched), **vars(proxy)),
        search_config.WorkerOptions(**vars(worker)),
        storage,
        trials,
        minutes,
    )
    with Screen(quiet=as_json) as screen:
        if dry_run:
            search_tables.print_cost(search_run.dry_run(config), screen, as_json=as_json)
            return
        with progress_bars.StudyBar(screen) as bar:
            result = search_run.run_study(config, bar)
        search_tables.print_end(result, screen, as_json=as_json)


@app.command(cls=parsing.Command)
@spread
def resume(
    study: Study,
    worker: WorkerOptions,
    storage: Storage = None,
    trials: Trials = None,
    minutes: Minutes = None,
    as_json: options.Json = False,
) -> None:
    """Continue a study of this machine; --trials extends it.

    Examples:
    - `effnetv2 search resume studies/photos`
    - `effnetv2 search resume studies/photos --trials 200 --minutes 60`
    """
    from efficientnetv2.cli import progress_bars, search_tables  # torch, which takes seconds
    from efficientnetv2.workflows import search_config, search_run

    with Screen(quiet=as_json) as screen:
        with progress_bars.StudyBar(screen) as bar:
            options = search_config.WorkerOptions(**vars(worker))
            result = search_run.resume_study(study, storage, trials, minutes, options, bar)
        search_tables.print_end(result, screen, as_json=as_json)


@app.command(cls=parsing.Command)
def show(
    study: Study,
    top: Annotated[int, option("Number of trials to print.", "N", check=between(1))] = 5,
    storage: Storage = None,
    wait: Wait = 1.0,
    as_json: options.Json = False,
) -> None:
    """Print the best architectures of a study, and draw its results.

    The page is STUDY/search.html: accuracy against step time and parameters, reward over trials, and which decisions
    matter.

    Examples:
    - `effnetv2 search show studies/photos`
    - `effnetv2 search show studies/photos --top 10 --json`
    """
    from efficientnetv2.cli import search_tables
    from efficientnetv2.workflows.search_report import show_study

    with Screen(quiet=as_json) as screen:
        search_tables.print_study(show_study(study, storage, wait), study, screen, top=top, as_json=as_json)


@app.command(cls=parsing.Command)
def export(
    study: Study,
    out: Annotated[Path | None, option("File.  [default: STUDY/found.yaml]", "YAML", "--output")] = None,
    trial: Annotated[int | None, option("Trial number.  [default: the best]", "N")] = None,
    grow: Annotated[str | None, option("Scale it up: m or l as in the paper, or a compound phi.", "m|l|PHI")] = None,
    storage: Storage = None,
    wait: Wait = 1.0,
) -> None:
    """Write an architecture for `effnetv2 train --model FILE`.

    Examples:
    - `effnetv2 search export studies/photos`
    - `effnetv2 train studies/photos/pictures.csv --model studies/photos/found.yaml`
    - `effnetv2 search export studies/photos --grow 1.5 --output studies/photos/larger.yaml`
    """
    from efficientnetv2.workflows.search_export import export_trial

    with Screen():
        export_trial(study, storage, wait, out=out, trial=trial, grown_by=grow)
