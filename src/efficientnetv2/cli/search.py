"""``effnetv2 search``: look for a network that is accurate and fast to train on one's own pictures and machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen
from efficientnetv2.cli.options import spread
from efficientnetv2.workflows import search_options

search = typer.Typer(
    help="Look for a network that is accurate and fast to train, on your pictures and your machine.\n\n"
    "Begin with:  effnetv2 search run STUDY --data DATA",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Study = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY", help="Folder of the study; its last part is its name.", show_default=False
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where the trials lie: postgresql://USER@HOST/DATABASE for workers on many machines. (Default: "
        "STUDY/study.db, for those of this machine; of a study that is there, where it lies.)",
        show_default=False,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        callback=options.between(1, 1_000_000),
        help="Networks to try. (Default: by the preset.)",
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        callback=options.between(0),
        help="Stop this worker when no further trial would end within so many minutes. (Default: when all are done.)",
        show_default=False,
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        callback=options.between(0), help="Minutes to try again while the database does not answer."
    ),
]


@dataclass(frozen=True)
class SearchOptions(search_options.SearchOptions):
    """What is searched, and for what."""

    panel: ClassVar[str] = "What is searched"
    preset: Annotated[
        str,
        typer.Option(
            metavar="small|paper",
            help="small: networks for 64 px, 100 trials of minutes on a CPU. paper: around EfficientNet-B4, 1,000 "
            "trials of about 10 epochs of ImageNet on GPUs.",
        ),
    ] = "small"
    space: Annotated[
        str | None,
        typer.Option(
            help="Networks to choose from: small, paper, a published network whose channels and strides are kept, or "
            "a file (space.to_json). (Default: the preset's.)",
            show_default=False,
        ),
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="policy|evolution|random|tpe|nsga2",
            help="Who says what is tried next. (Default: policy, a policy gradient as in the paper.)",
            show_default=False,
        ),
    ] = None
    w: Annotated[
        float | None,
        typer.Option(
            help="Exponent of the step time in the reward. (Default: -0.07, the paper's.)", show_default=False
        ),
    ] = None
    v: Annotated[
        float | None,
        typer.Option(help="Exponent of the parameters. (Default: -0.05, the paper's.)", show_default=False),
    ] = None
    inference_exponent: Annotated[
        float | None,
        typer.Option(
            help="Exponent of the time of one picture at inference, which is then measured too. (Default: 0, as in "
            "the paper.)",
            show_default=False,
        ),
    ] = None
    memory_exponent: Annotated[
        float | None,
        typer.Option(
            help="Exponent of the memory of training: of a GPU, else all that the process takes. (Default: 0, as in "
            "the paper.)",
            show_default=False,
        ),
    ] = None
    prune: Annotated[
        bool,
        typer.Option(
            "--prune/--no-prune",
            help="Stop trials that after two points of their curve are among the worst quarter.",
        ),
    ] = True
    step_time: Annotated[
        str,
        typer.Option(
            metavar="measured|cached",
            help="Measure the training step of every network, or add up what its blocks took in others.",
        ),
    ] = "measured"


@dataclass(frozen=True)
class ProxyOptions(search_options.ProxyOptions):
    """How a network is tried."""

    panel: ClassVar[str] = "How a network is tried"
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A named recipe (effnetv2 recipes), a recipe.yaml, or a run folder. (Default: proxy_small or "
            "proxy_paper, by the preset.)",
            show_default=False,
        ),
    ] = None
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Of a trial: passes over the pictures. (Default: the recipe's.)", show_default=False
        ),
    ] = None
    image_px: Annotated[
        int | None,
        typer.Option(
            callback=options.between(*options.IMAGE_PX, rule=options.LAST_PX),
            help="Picture size of a trial's last stage; earlier ones scale. (Default: the recipe's.)",
            show_default=False,
        ),
    ] = None
    batch_images: Annotated[
        int | None,
        typer.Option(
            callback=options.between(1, 1_000_000),
            help="Pictures a step; the learning rate follows. (Default: the recipe's.)",
            show_default=False,
        ),
    ] = None
    seeds: Annotated[
        str, typer.Option(metavar="N,N,...", help="Of the runs of a trial, whose mean top-1 counts.")
    ] = "0"
    seed: Annotated[int, typer.Option(help="Of what the sampler draws.")] = 0
    settings: options.Settings = None


@dataclass(frozen=True)
class PlaceOptions(search_options.WorkerOptions):
    """What a worker takes of the machine, and how it answers."""

    panel: ClassVar[str] = "The machine"
    device: options.Device = "auto"
    workers: options.Workers = None
    threads: Annotated[
        int | None,
        typer.Option(
            callback=options.between(1),
            help="Threads of the processor that a network trains with, for several workers on one machine; steps are "
            "timed with all. (Default: all.)",
            show_default=False,
        ),
    ] = None
    memory_gib: options.MemoryGib = None
    strict: options.Strict = False
    wait: Wait = 10.0
    as_json: options.Json = False


@spread
def run(
    study: Study,
    data: Annotated[
        str, typer.Option(help="The pictures, as for `train`.", metavar="DATA", show_default=False)
    ],
    searched: SearchOptions,
    proxy: ProxyOptions,
    table: options.OneLabelOptions,
    place: PlaceOptions,
    storage: Storage = None,
    trials: Trials = None,
    minutes: Minutes = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what it would cost, from a short measurement, and leave nothing."
        ),
    ] = False,
) -> None:
    """Begin a study, or join one as a further worker: the same words, as often as you like, on any machine.

    Networks are drawn from a space, trained for a little, and rewarded for accuracy, for a fast training step and
    for few parameters: A · S^w · P^v. Pictures of train train and choose; val and test are never looked at. Ctrl-C
    stops a worker; nothing that was finished is lost.

    Examples:
    - `effnetv2 search run studies/photos --data photos/ --dry-run`
    - `effnetv2 search run studies/photos --data photos/ --trials 50`
    - `effnetv2 search run studies/photos --data photos/ --epochs 10 --image-px 96 --sampler evolution`
    - `effnetv2 search run big --data imagenet/ --preset paper --storage postgresql://me@host/searches`
    """
    from efficientnetv2.cli import bars, search_tables  # torch, which takes seconds
    from efficientnetv2.workflows import search_plan, search_run
    from efficientnetv2.workflows.search_config import Asked

    asked = Asked(study, storage, trials, minutes, searched, proxy, table.source(data), place)
    with Screen(quiet=place.as_json) as screen:
        if dry_run:
            search_tables.print_cost(search_plan.dry_run(asked), screen, as_json=place.as_json)
            return
        with bars.StudyBar(screen) as bar:
            worked = search_run.run_study(asked, bar)
        search_tables.print_end(worked, screen, as_json=place.as_json)


@spread
def resume(
    study: Study,
    place: PlaceOptions,
    storage: Storage = None,
    trials: Trials = None,
    minutes: Minutes = None,
) -> None:
    """Go on with a study of this machine as it was begun; with --trials, let it have more of them.

    Examples:
    - `effnetv2 search resume studies/photos`
    - `effnetv2 search resume studies/photos --trials 200 --minutes 60`
    """
    from efficientnetv2.cli import bars, search_tables  # torch, which takes seconds
    from efficientnetv2.workflows.search_run import resume_study

    with Screen(quiet=place.as_json) as screen:
        with bars.StudyBar(screen) as bar:
            worked = resume_study(study, storage, trials, minutes, place, bar)
        search_tables.print_end(worked, screen, as_json=place.as_json)


def show(
    study: Study,
    storage: Storage = None,
    wait: Wait = 1.0,
    as_json: options.Json = False,
) -> None:
    """Draw what a study has found: STUDY/search.html, and its drawings as PNG.

    Accuracy against step time and against parameters with those that nothing beats, reward over trials, which
    decisions matter.

    Examples:
    - `effnetv2 search show studies/photos`
    - `effnetv2 search show studies/photos --json`
    """
    from efficientnetv2.cli import search_tables
    from efficientnetv2.workflows.search_report import show_study

    with Screen(quiet=as_json) as screen:
        search_tables.print_drawn(show_study(study, storage, wait), screen, as_json=as_json)


def best(
    study: Study,
    most: Annotated[int, typer.Option("--most", callback=options.between(1), help="How many to name.")] = 5,
    storage: Storage = None,
    wait: Wait = 1.0,
    as_json: options.Json = False,
) -> None:
    """Print the network with the largest reward as a table, and the next ones in a line each.

    Examples:
    - `effnetv2 search best studies/photos`
    - `effnetv2 search best studies/photos --json`
    """
    from efficientnetv2.cli import search_tables
    from efficientnetv2.workflows.search_report import Read

    with Screen(quiet=as_json) as screen:
        read = Read.of(study, storage, wait)
        search_tables.print_best(read, study, screen, most=most, as_json=as_json)


def export(
    study: Study,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, .yaml. (Default: STUDY/found.yaml.)", show_default=False),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option(help="Number of the trial. (Default: that of the largest reward.)", show_default=False),
    ] = None,
    grow: Annotated[
        str | None,
        typer.Option(
            help="Make it larger: m or l, as the paper made M and L of S; or a number, the phi of compound scaling, "
            "each 1 of which about doubles the multiply-adds."
        ),
    ] = None,
    storage: Storage = None,
    wait: Wait = 1.0,
) -> None:
    """Write a network found as a file that `effnetv2 train --model FILE` trains fully.

    Examples:
    - `effnetv2 search export studies/photos`
    - `effnetv2 train studies/photos/pictures.csv --model studies/photos/found.yaml`
    - `effnetv2 search export studies/photos --grow 1.5 --out studies/photos/larger.yaml`
    """
    from efficientnetv2.workflows.search_export import export_found

    with Screen():
        export_found(study, storage, wait, out=out, trial=trial, grown_by=grow)
