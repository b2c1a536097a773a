"""``effnetv2 train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from efficientnetv2.cli import options
from efficientnetv2.cli.console import Screen, print_json
from efficientnetv2.cli.options import advanced, between, flag, option, spread
from efficientnetv2.utils.errors import InputError, format_bytes, format_duration, pluralize

if TYPE_CHECKING:
    from efficientnetv2.workflows.estimate import Estimate


@spread
def train(
    data: options.Data,
    recipe: options.RecipeOptions,
    table: options.TableOptions,
    machine: options.MachineOptions,
    out: options.RunOut = None,
    resume: options.Resume = False,
    dry_run: Annotated[bool, flag("--dry-run", "Estimate time, memory and disk, and train nothing.")] = False,
    preview: Annotated[Path | None, option("Write a PNG of augmented images per stage.", "PNG")] = None,
    preview_images: Annotated[
        int | None, advanced("Images of the preview.  [default: 8]", "N", check=between(1, 24))
    ] = None,
    baseline: Annotated[
        Path | None, advanced("Run to compare with, on the same images.  [default: the last one]", "RUN")
    ] = None,
) -> None:
    """Train a classifier on your images.

    Examples:
    - `effnetv2 train photos/`
    - `effnetv2 train images.csv --label-column species --minutes 15`
    - `effnetv2 train photos/ --epochs 40 --set minival=0.1 --set patience=5`
    """
    began = time.monotonic()
    from efficientnetv2.workflows.arguments import validate_run_paths

    modes = {"--resume": resume, "--dry-run": dry_run, "--preview": preview is not None}
    given = [name for name, is_given in modes.items() if is_given]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other. Give one of them.")
    if preview is not None and (out is not None or baseline is not None or machine.as_json):
        raise InputError("--preview writes a PNG alone. Leave --output, --baseline and --json out.")
    if preview is None and preview_images is not None:
        raise InputError("--preview-images needs --preview PNG.")
    if preview is not None:
        from efficientnetv2.workflows.augmentation_preview import draw_sheet

        with Screen(quiet=machine.as_json, verbose=machine.verbose):
            draw_sheet(
                recipe.overrides(), table.data_config(data), preview,
                num_images=preview_images or 8, device=machine.device, strict=machine.strict, argument="--preview"
            )  # fmt: skip
        return
    if not resume:
        validate_run_paths(data, out, "train")
    run_options = machine.run_options(out, resume=resume, baseline=baseline)
    with Screen(quiet=machine.as_json, verbose=machine.verbose) as screen:
        if dry_run:
            from efficientnetv2.workflows.estimate import plan_run

            plan = plan_run(recipe.overrides(), table.data_config(data), run_options, began=began)
            if machine.as_json:
                print_json(plan.report)
            else:
                _print_plan(plan, screen)
            return
        from efficientnetv2.cli.progress_bars import TrainingBar
        from efficientnetv2.cli.result_tables import ResultPrinter
        from efficientnetv2.workflows.train import train_and_report

        with TrainingBar(screen) as bar:
            train_and_report(
                recipe.overrides(), table.data_config(data), run_options,
                began=began, callbacks=[bar], on_result=ResultPrinter(screen, as_json=machine.as_json)
            )  # fmt: skip


def _print_plan(plan: Estimate, screen: Screen) -> None:
    for note in plan.notes:
        screen.say(note)
    rows = [
        [
            str(number), str(stage.image_size), f"{stage.steps:,}", f"{stage.images_per_s:.0f}",
            str(stage.microbatches), format_bytes(stage.memory_bytes), format_duration(stage.seconds)
        ]
        for number, stage in enumerate(plan.run.stages, start=1)
    ]  # fmt: skip
    columns = ["stage", "px", "steps", "images/s", "groups at a time", "memory", "time"]
    screen.table("By stage", columns, rows)
    others = [[what, format_duration(took)] for what, took in plan.run.others_s.items()]
    screen.table("Other time", ["what", "time"], others)
    names = {"checkpoints": "checkpoints, until it has finished"}
    disk = [[names.get(what, what), format_bytes(size)] for what, size in plan.run.disk_bytes.items()]
    if plan.cache is not None:
        disk.append([f"cache{' (in memory)' * (plan.cache.where == 'ram')}", format_bytes(plan.cache.bytes)])
    screen.table("Disk", ["what", "size"], disk)
    memory, on_disk = format_bytes(plan.memory_bytes), format_bytes(plan.disk_bytes)
    epochs = pluralize(round(plan.epochs, 2), "epoch")
    screen.say(
        f"In total about {format_duration(plan.seconds)} for {epochs}, {memory} of memory, {on_disk} of disk in the "
        "run folder."
    )
