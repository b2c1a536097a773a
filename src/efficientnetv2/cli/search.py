"""``effnetv2 search``: architecture search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from efficientnetv2.cli import options, parsing
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import advanced, argument, between, flag, option, spread
from efficientnetv2.cli.parsing import ADVANCED
from efficientnetv2.utils.errors import format_bytes, format_duration, pluralize
from efficientnetv2.utils.shell import shell_join

if TYPE_CHECKING:
    from efficientnetv2.nas.results import TrialRow
    from efficientnetv2.workflows.search_report import StudyReport
    from efficientnetv2.workflows.search_run import SearchResult, StudyCost

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
Trials = Annotated[
    int | None,
    option("Number of trials.  [default: the preset's; resumed: as begun]", "N", check=between(1, 1_000_000)),
]
Minutes = Annotated[
    float | None, option("Time limit: start no trial that would end later, except the first.", "N", check=between(0))
]
Wait = Annotated[float, advanced("How long to retry while the database does not respond.", "MINUTES", check=between(0))]


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, for what, and how an architecture is tried."""

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
        bool, flag("--prune/--no-prune", "Stop trials in the worst quarter at their second validation.", panel=_REWARD)
    ] = True
    step_time: Annotated[
        Literal["measured", "cached"],
        option("Measure each training step, or add up times of its blocks.", panel=_REWARD),
    ] = "measured"
    epochs: Annotated[float | None, option("Epochs of a trial.  [default: the recipe's]", "N")] = None
    image_size: options.ImageSize = None
    batch_size: options.BatchSize = None
    seed: Annotated[int, option("Random seed of the sampler.", "N", check=between(0))] = 0
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
    from efficientnetv2.cli.study_bar import StudyBar  # torch, which takes seconds
    from efficientnetv2.workflows import search_config, search_run

    config = search_config.SearchConfig(
        study,
        table.data_config(data),
        search_config.SearchOptions(**vars(searched)),
        search_config.WorkerOptions(**vars(worker)),
        storage,
        trials,
        minutes,
    )
    with Screen(quiet=as_json) as screen:
        if dry_run:
            _print_cost(search_run.dry_run(config), minutes, screen, as_json=as_json)
            return
        with StudyBar(screen) as bar:
            result = search_run.run_study(config, bar)
        _print_end(result, screen, as_json=as_json)


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
    from efficientnetv2.cli.study_bar import StudyBar  # torch, which takes seconds
    from efficientnetv2.workflows import search_config, search_run

    with Screen(quiet=as_json) as screen:
        with StudyBar(screen) as bar:
            options = search_config.WorkerOptions(**vars(worker))
            result = search_run.resume_study(study, storage, trials, minutes, options, bar)
        _print_end(result, screen, as_json=as_json)


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
    from efficientnetv2.workflows.search_report import show_study

    with Screen(quiet=as_json) as screen:
        _print_study(show_study(study, storage, wait), study, screen, top=top, as_json=as_json)


@app.command(cls=parsing.Command)
def export(
    study: Study,
    out: Annotated[Path | None, option("File.  [default: STUDY/found.yaml]", "YAML", "--output")] = None,
    trial: Annotated[int | None, option("Trial number.  [default: the best]", "N")] = None,
    grow: Annotated[str | None, option("Scale it up: m or l, as S to M or L, or phi.", "m|l|PHI")] = None,
    storage: Storage = None,
    wait: Wait = 1.0,
) -> None:
    """Write an architecture for `effnetv2 train --model FILE`.

    Examples:
    - `effnetv2 search export studies/photos`
    - `effnetv2 train studies/photos/dataset.csv --model studies/photos/found.yaml`
    - `effnetv2 search export studies/photos --grow 1.5 --output studies/photos/larger.yaml`
    """
    from efficientnetv2.workflows.search_export import export_trial

    with Screen():
        export_trial(study, storage, wait, out=out, trial=trial, grown_by=grow)


def _print_cost(cost: StudyCost, minutes: float | None, screen: Screen, *, as_json: bool) -> None:
    """Print what a study would take."""
    if as_json:
        print_json(cost.to_json())
        return
    screen.say(cost.space.describe())
    screen.table(
        f"A trial: {pluralize(float(cost.recipe.epochs), 'epoch')} of {pluralize(cost.images, 'image')}",
        ["model", "parameters, M", "time", "memory"],
        [
            [
                name, f"{cost.parameters[name] / 1e6:.3g}", format_duration(seconds),
                format_bytes(cost.memory_bytes[name]),
            ]
            for name, seconds in cost.trial_s.items()
        ],
    )  # fmt: skip
    screen.say(
        f"In total about {format_duration(cost.seconds)} for {pluralize(cost.trials, 'trial')} by one worker, less "
        f"by several; {format_bytes(cost.most_memory_bytes)} of memory. Trials that are stopped early take less."
    )
    if minutes is not None and 60 * minutes < cost.seconds:
        limit = pluralize(minutes, "minute")
        screen.say(f"A worker stops after {limit} (--minutes). One alone would not reach the last trial.")


def _print_end(worked: SearchResult, screen: Screen, *, as_json: bool) -> None:
    """Print how far a study has come, and which trial is the best."""
    from efficientnetv2.nas.results import best, count_states, load_rows

    study, rows = worked.study, load_rows(worked.study)
    ends = count_states(rows)
    leader = best(rows)[0] if any(row.end == "finished" for row in rows) else None
    if as_json:
        print_json(
            {
                "study": study.name, "trials": study.target, **ends, "complete": worked.finished,
                "best": None if leader is None else leader.to_json(),
            }
        )  # fmt: skip
    state = "All trials have ended" if worked.finished else "Time is up"
    screen.say(f"{state}: {_counted(ends)}, of {study.target}.")
    if leader is not None:
        screen.say(f"The best is trial {leader.number}: {leader.measurement}; reward {leader.reward:.4f}.")
        screen.say(f"See all: {shell_join(['effnetv2', 'search', 'show', str(worked.folder.path)])}")
    if not worked.finished:
        screen.say(f"Continue with: {worked.command}")


def _print_study(drawn: StudyReport, path: Path, screen: Screen, *, top: int, as_json: bool) -> None:
    """Print the best architecture as a table, the next ones in a line each, and which decisions matter."""
    from efficientnetv2.nas.results import architecture_table, best, count_states, millions, pareto_front
    from efficientnetv2.nas.storage import redact_password
    from efficientnetv2.workflows.search_report import LEADERS

    read, rows = drawn.read, drawn.read.rows
    leaders = best(rows, most=top) if any(row.end == "finished" for row in rows) else []
    architectures = [read.study.config.space.decode(row.point) for row in leaders]
    if as_json:
        found = [
            row.to_json() | {"architecture": table.to_json()} for row, table in zip(leaders, architectures, strict=True)
        ]
        print_json(drawn.to_json() | {"best": found})
        return
    screen.say(f"{len(rows)} of {read.study.target} trials have ended: {_counted(count_states(rows))}.")
    if leaders:
        first = leaders[0]
        title = f"Trial {first.number}: {first.measurement}; reward {first.reward:.4f}"
        screen.table(title, *architecture_table(architectures[0]))
        if len(leaders) > 1:
            _table("Next best", leaders[1:], screen)
        _table("Most accurate for their step time", pareto_front(rows, lambda one: one.step_seconds), screen)
        _table("Most accurate for their size", pareto_front(rows, millions), screen)
        if drawn.shares:
            screen.table(
                "Importance of decisions",
                ["decision", "fraction of the variance of rewards"],
                [[name, f"{share:.2f}"] for name, share in list(drawn.shares.items())[:LEADERS]],
            )
        words = ["effnetv2", "search", "export", str(path)]
        if not read.folder.file.exists():  # which would state the database
            words += ["--storage", redact_password(read.study.storage.url)]
        screen.say(f"Write the best for training: {shell_join(words)}")
    screen.say(f"Page: {drawn.page}")


def _counted(ends: Mapping[Any, int]) -> str:
    return f"{ends['finished']} finished, {ends['stopped']} stopped early, {ends['failed']} failed"


def _table(title: str, rows: Sequence[TrialRow], screen: Screen) -> None:
    cells = []
    for row in rows:
        found = row.measurement
        step = "" if found.step_seconds is None else f"{1000 * found.step_seconds:.3g}"
        parameters, adds = (f"{count / 1e6:.3g}" for count in (found.parameters, found.multiply_adds))
        top1 = f"{100 * (found.top1 or 0):.1f}"
        cells.append([str(row.number), f"{row.reward:.4f}", top1, step, parameters, adds])
    columns = ["trial", "reward", "top-1, %", "step, ms", "parameters, M", "multiply-adds, M"]
    screen.table(title, columns, cells)
