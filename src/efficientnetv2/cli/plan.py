"""``effnetv2 plan``: what a run will take, before it is begun."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import spread
from efficientnetv2.utils.errors import format_duration, pluralize

if TYPE_CHECKING:
    from efficientnetv2.workflows.estimate import RunPlan


@spread
def plan(
    data: options.Data,
    recipe: options.RecipeOptions,
    table: options.TableOptions,
    machine: options.MachineOptions,
    out: options.RunOut = None,
) -> None:
    """Foretell the time, memory and disk of a run, by stage.

    Takes the words of `train`, prepares the run as `train` would, does a few steps of every image size on this
    machine, and works out the rest. It takes at most 90 seconds on two slow cores, after each image was checked. What
    takes longer to measure, such as compiling, is estimated, and `plan` says so. It leaves nothing behind.

    Examples:
    - `effnetv2 plan photos/`
    - `effnetv2 plan photos/ --model efficientnetv2_s --epochs 30 --image-px 300`
    - `effnetv2 plan photos/ --cache disk --json`
    """
    began = time.monotonic()
    from efficientnetv2.workflows.output_paths import refuse_run_within

    refuse_run_within(data, out, "plan")
    from efficientnetv2.workflows.estimate import plan_run  # torch, which takes seconds

    with Screen(quiet=machine.as_json, verbose=machine.verbose) as screen:
        found = plan_run(recipe.words(), table.source(data), machine.place(out), began=began)
        if machine.as_json:
            print_json(found.to_json())
            return
        for note in found.notes:
            screen.say(note)
        _print(found, screen)


def _print(plan: RunPlan, screen: Screen) -> None:
    from efficientnetv2.data.cache_writer import format_bytes

    rows = [
        [
            str(number),
            str(stage.image_px),
            f"{stage.steps:,}",
            f"{stage.images_per_s:.0f}",
            str(stage.groups_at_a_time),
            format_bytes(stage.memory_bytes),
            format_duration(stage.seconds),
        ]
        for number, stage in enumerate(plan.estimate.stages, start=1)
    ]
    columns = ["stage", "px", "steps", "images/s", "groups at a time", "memory", "time"]
    screen.table("By stage", columns, rows)
    screen.table(
        "Besides",
        ["what", "time"],
        [[what, format_duration(seconds)] for what, seconds in plan.estimate.others_s.items()],
    )
    until_then = {"checkpoints": "checkpoints, until it has finished"}
    disk = [
        [until_then.get(what, what), format_bytes(count)] for what, count in plan.estimate.disk_bytes.items()
    ]
    if plan.cache is not None:
        disk.append(
            ["cache (in memory)" if plan.cache.where == "ram" else "cache", format_bytes(plan.cache.bytes)]
        )
    screen.table("Kept", ["what", "size"], disk)
    memory, on_disk = format_bytes(plan.memory_bytes), format_bytes(sum(plan.estimate.disk_bytes.values()))
    screen.say(
        f"In all about {format_duration(plan.estimate.seconds)} for {pluralize(plan.epochs, 'epoch')}, {memory} "
        f"of memory, {on_disk} of disk in the run folder."
    )
