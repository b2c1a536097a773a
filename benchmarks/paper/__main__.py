"""Reproduce tables of the EfficientNetV2 paper (arXiv:2104.00298), each with our column next to the paper's.

Parameters and multiply-adds are counted, speeds are measured on this machine, and accuracies are trained at the scale.
Stopped, a table continues when it is called again. Its folder gets table.json, table.md, figure.png and log.txt.

With --record the tables also become records in results/reproduce/, and their runs too, because a table at scale small
takes longer than a sitting; move results/reproduce/TABLE_SCALE/ away to train them again. One claim is made, of Table 5
with 2 seeds or more, not at scale tiny: the gain of RandAugment's greatest magnitude over its least with the largest
images, less that with the smallest. Above 0, larger images want more of it. The sides of Tables 12 and 13 must be
tuned before they are compared: benchmarks.progressive --regime resnet50 and benchmarks.adaptive do it, and write the
records of these tables at scale small. benchmarks.transfer writes that of Table 8.

  python -m benchmarks.paper 7
  python -m benchmarks.paper 13 --scale small --data imagenette --seeds 3
  python -m benchmarks.paper 8 --scale small --data cifar10 --weights trunk.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.paper import page, records
from benchmarks.paper.reproduce import CELLS, TRAINED, Request, reproduce, table_name
from benchmarks.paper.scale import SCALES
from benchmarks.record import hardware

from efficientnetv2.cli.console import Screen, spelled, spelling_as
from efficientnetv2.cli.progress_bars import TrainingBar
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.processes import keep_freed_memory, rank_and_world_size

# Parameters of the library that are options here.
OPTIONS = {name: f"--{name}" for name in ("data", "seeds", "weights", "device", "output")}


def parse_options(words: list[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, for its errors, and the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="1, 2, 3, 5 to 13, figure1, figure4 or figure5")
    add(
        "--scale",
        choices=SCALES,
        default="tiny",
        help="how much of the paper's work: tiny (minutes, shows that it runs), small (hours), paper",
    )
    add(
        "--data",
        help="images to train on; for table 8 several sets, separated by commas. Default: those of the repository "
        "(tiny) or imagenette, for table 8 cifar10 (small); at paper ImageNet's folder is needed, but for table 8 "
        "all its sets",
    )
    add("--seeds", type=int, help="runs per cell (default: 1 at tiny, 3 at small, 5 at paper)")
    add("--weights", help="table 8: weights to transfer; at paper each network has its own, NETWORK.in1k")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--output", type=Path, help="folder (default: runs/reproduce_TABLE_SCALE); what is done there is reused")
    add("--json", action="store_true", help="print JSON instead of Markdown")
    add("--record", action="store_true", help="write results/reproduce/ and docs/benchmarks/paper.md")
    options = parser.parse_args(words)
    if options.seeds is not None and not 1 <= options.seeds <= 1000:
        parser.error(f"--seeds is {options.seeds}, but must be between 1 and 1,000")
    if (rank_and_world_size() or (0, 1))[1] > 1:
        parser.error("this program is started once, not under torchrun: give each table a GPU of its own")
    if options.output is not None and (options.record or len(options.tables) > 1):
        parser.error("--output is for one table that is not recorded: leave it out")
    return parser, options


def requests(options: argparse.Namespace) -> list[Request]:
    """One request per table; of several tables, options apply to those that use them."""
    made = []
    for text in options.tables:
        name = table_name(text)
        trains = name in TRAINED or len(options.tables) == 1
        weights = options.weights if name == "8" or len(options.tables) == 1 else None
        data, seeds = (options.data, options.seeds) if trains else (None, None)
        made.append(Request(name, options.scale, data, seeds, weights, options.device, options.output, options.json))
    return made


def run(request: Request, *, recorded: bool) -> None:
    """Make a table, print it, and record it if asked."""
    device = pick_device(request.device)
    here = hardware(device)
    stored = page.RECORDS / f"{request.table}_{request.scale}"
    stores_runs = recorded and request.table in TRAINED and request.scale != "tiny"

    def sync() -> None:
        if stores_runs:
            records.sync_runs(stored, request.folder / CELLS, here, device.type)

    sync()
    with Screen(quiet=True) as screen, TrainingBar(screen) as bar:
        table = reproduce(request, say=screen.say, on_line=sync, callbacks=[bar])
    sync()
    print(json.dumps(table.to_json()) if request.json else table.markdown(), flush=True)
    print(f"Written to {request.folder}", file=sys.stderr)
    rows = records.stored_runs(table, stored)
    on = records.hardware_of(table, rows, here)
    comparable = request.scale != "tiny" and (table.seeds or 0) > 1
    for claim, (compared, unit) in records.claims(table).items() if comparable else ():
        print(f"{claim}: {compared} {unit}", file=sys.stderr)
    if recorded:
        command = records.command_of(request)
        records.write_record(table.name, table, request.scale, command, on, request.folder / "figure.png")
        if request.scale != "tiny":
            records.write_claims(request, table if comparable else None, rows, on)


def main(words: list[str] | None = None) -> None:
    """Run the command line; exits with 2 for wrong input and 130 for Ctrl-C."""
    parser, options = parse_options(words)
    try:
        with spelling_as(OPTIONS):
            for request in requests(options):
                run(request, recorded=options.record)
    except InputError as error:
        parser.error(spelled(str(error), OPTIONS))
    except KeyboardInterrupt as stop:
        print(" ".join(["stopped.", *map(str, stop.args)]), file=sys.stderr)
        sys.exit(130)
    if options.record:
        page.write()


if __name__ == "__main__":
    keep_freed_memory()  # as the program does: without, S took 36 ms next to one table and 24 next to another
    main()
