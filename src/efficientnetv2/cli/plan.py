"""``effnetv2 plan``: what a run will take, before it is begun."""

from __future__ import annotations

import time

from efficientnetv2.cli import options
from efficientnetv2.cli.options import spread


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
    from efficientnetv2.workflows.estimate import plan_and_tell  # torch, which takes seconds

    plan_and_tell(recipe.words(), table.source(data), machine.place(out), began=began)
