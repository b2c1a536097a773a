"""Record a study to learn from: random networks of the small space, each trained by one proxy recipe, and timed.

Run: python -m benchmarks.search_record DATA [--pictures 3000] [--networks 200] [--longer 20]

For instance on Imagenette: 200 networks, 5 epochs of 3,000 pictures of 64 px, some hours on 2 cores. Of the pictures
a fifth chooses (each class its share) and the others train; those that DATA gives as val or test are not looked at. The
networks are drawn by a fixed key, each once. A network's row is written as soon as it is known: the table
results/search_record.csv has a column for each decision and what was measured, search_record.json beside it what all
rows have in common. A run that is stopped goes on where it was, also from a table of another run as far as it came.
What crashes says nothing of its network (somebody has killed it) and is not written down: run it again, and it is tried
again.

--longer N trains N of them, spread evenly over the ranks of their accuracy, for --longer-epochs with another seed; they
answer the same pictures. How far the proxy's ranks hold (Kendall's tau) goes into summary.json, and so does how well
the sum over blocks foretells a step (the median error); both with 95 % intervals by bootstrap over networks.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import RESULTS, begun, median_interval, record
from benchmarks.search_trials import (
    SAME,
    asked_recipe,
    drawn,
    in_common,
    proxy_of,
    settled_recipe,
    some_pictures,
)
from benchmarks.surrogate import rank_agreement

from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.search.choices import Point
from efficientnetv2.search.proxy import Proxy
from efficientnetv2.search.space import Space
from efficientnetv2.search.spaces import small
from efficientnetv2.search.trial import measurement, try_out

MEASURED = (
    "top1", "step_seconds", "step_spread", "step_foretold", "parameters", "multiply_adds", "peak_memory_bytes",
    "epochs", "seconds", "curve", "failure",
)  # fmt: skip
# Of those trained longer: with the trials' own, ranks would hold for the luck of it too.
LONGER_SEED = 1


@dataclass
class Record:
    """The table on disk.

    Args:
        table: CSV; what its rows have in common lies beside it as JSON.
        space: of the networks.
    """

    table: Path
    space: Space

    @property
    def columns(self) -> list[str]:
        """Of the table."""
        return ["number", *(name for name, _ in self.space.decisions), *MEASURED]

    def rows(self) -> list[dict[str, str]]:
        """Those that are there."""
        if not self.table.exists():
            return []
        with self.table.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def about(self) -> Path:
        """What all rows have in common."""
        return self.table.with_suffix(".json")

    @property
    def longer(self) -> Path:
        """What became of those that were trained longer."""
        return self.table.with_name(f"{self.table.stem}_longer.json")

    def begin(self, common: dict[str, Any]) -> dict[str, Any]:
        """Write down what all rows have in common, or refuse to mix a table with rows of another kind."""
        for file in (self.table, self.longer):
            if file.exists() and not self.about.exists():
                raise SystemExit(f"{file} is there without {self.about.name}; give another --table.")
        return begun(self.about, common, SAME, "give another --table")

    def add(self, number: int, point: Point, found: dict[str, Any]) -> None:
        """Append a row; the file is whole at every moment."""
        row = {"number": number, **self.space.choices(point), **found}
        rows = [*self.rows(), {name: "" if row[name] is None else row[name] for name in self.columns}]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda one: int(one["number"])))
        write_text_atomically(self.table, text.getvalue())


def tried(space: Space, point: Point, proxy: Proxy) -> dict[str, Any]:
    """A network's row, but for its name."""
    began = time.perf_counter()
    network = space.decode(point)
    outcome = try_out(network, proxy)
    found = measurement(network, proxy, outcome)
    plain = found.to_json()
    return {name: _short(plain[name]) for name in MEASURED if name in plain} | {
        "step_foretold": _short(outcome.step.foretold if outcome.step else None),
        "seconds": round(time.perf_counter() - began, 1),
        "curve": " ".join(f"{one.top1:.4f}" for one in outcome.epochs),
        "failure": None if found.failure is None else " ".join(found.failure.split())[:200],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def crashed(found: dict[str, Any]) -> bool:
    """Whether a trial says nothing of its network: its process has ended before it did."""
    return (found["failure"] or "").startswith("crashed")


def fill(kept: Record, points: Sequence[Point], proxy: Proxy) -> None:
    """Try those networks that have no row yet."""
    done = {int(row["number"]) for row in kept.rows()}
    for number, point in enumerate(points):
        if number in done:
            continue
        found = tried(kept.space, point, proxy)
        if not crashed(found):
            kept.add(number, point, found)
        became = found["failure"] or f"{found['top1']:.1%}"
        print(f"{number + 1} of {len(points)}: {became} in {found['seconds']:.0f} s", flush=True)


def longer(record_of: Record, proxy: Proxy, count: int, epochs: float) -> list[dict[str, Any]]:
    """Train some of the recorded networks for longer; what is done is kept beside the table.

    Returns:
        Those that did not fail.
    """
    kept = record_of.longer
    done = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    rows = sorted((row for row in record_of.rows() if row["top1"]), key=lambda row: float(row["top1"]))
    chosen = [
        rows[place] for place in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    ]
    proxy = replace(proxy, recipe=proxy.recipe.model_copy(update={"epochs": epochs}), seeds=(LONGER_SEED,))
    points = drawn(record_of.space, _most(rows))
    for row in chosen:
        number = int(row["number"])
        if any(one["number"] == number and one["epochs"] == epochs for one in done):
            continue
        found = tried(record_of.space, points[number], proxy)
        if not crashed(found):
            top1 = {"top1": float(row["top1"]), "longer": found["top1"]}
            done.append({"number": number, "epochs": epochs, **top1})
            write_text_atomically(kept, json.dumps(done, indent=1) + "\n")
        became = found["failure"] or f"{found['top1']:.1%}"
        print(f"network {number}: {float(row['top1']):.1%}, longer {became}", flush=True)
    wanted = {int(row["number"]) for row in chosen}
    mine = [one for one in done if one["number"] in wanted and one["epochs"] == epochs]
    return [one for one in mine if one["longer"] is not None]


def _most(rows: Sequence[dict[str, str]]) -> int:
    return 1 + max(int(row["number"]) for row in rows)


def agreement(pairs: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Kendall's tau between the proxy's accuracies and longer training's, and its 95 % interval."""
    short, long = (np.array([one[name] for one in pairs]) for name in ("top1", "longer"))
    return rank_agreement(short, long)


def step_errors(rows: Sequence[dict[str, str]]) -> list[float]:
    """How far the sum over blocks known from other networks lies from the measured step, as a share of it."""
    return [
        abs(float(row["step_foretold"]) / float(row["step_seconds"]) - 1)
        for row in rows
        if row["step_foretold"] and row["step_seconds"]
    ]


def main() -> None:
    """Record what is missing, then say what the table holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of proxy_small")
    parser.add_argument("--longer", type=int, default=0, metavar="N")
    parser.add_argument("--longer-epochs", type=float, default=25.0)
    parser.add_argument("--table", type=Path, default=RESULTS / "search_record.csv")
    parser.add_argument("--scratch", type=Path, default=Path("runs/search_record"))
    parser.add_argument("--record", action="store_true", help="write the claims into summary.json")
    options = parser.parse_args()
    keep_freed_memory()  # as the program does
    options.scratch.mkdir(parents=True, exist_ok=True)
    space = small()
    kept = Record(options.table, space)
    manifest = some_pictures(options.data, options.pictures)
    asked = asked_recipe(options.settings)
    proxy = proxy_of(
        manifest, settled_recipe(asked, manifest.subset("train"), space, kept.about), options.scratch
    )
    common = {
        **in_common(space, asked, manifest, proxy),
        "recipe": proxy.recipe.to_json(),
        "counts": {"train": len(proxy.train), "choosing": len(proxy.choosing)},
        "command": command(options),
    }
    if not kept.about.exists():
        proxy.times.unlink(missing_ok=True)  # of another table: it may know these networks already
        outcome = try_out(space.backbone, replace(proxy, seeds=()))
        if outcome.failed is not None:
            raise SystemExit(f"the backbone {outcome.failed.kind}: {outcome.failed.reason}. Run it again.")
        common["backbone"] = measurement(space.backbone, proxy, outcome).to_json()
    kept.begin(common)
    points = drawn(space, options.networks)
    fill(kept, points, proxy)
    if missing := len(points) - len(kept.rows()):
        print(f"{missing} crashed, and have no row. Run it again to try them again.")
    _tell(kept, proxy, options)


def command(options: argparse.Namespace) -> str:
    """As one types it."""
    given = f"--pictures {options.pictures} --networks {options.networks}"
    more = "".join(f" --set {one}" for one in options.settings)
    longer = f" --longer {options.longer} --longer-epochs {options.longer_epochs:g}" * bool(options.longer)
    return f"python -m benchmarks.search_record IMAGENETTE {given}{more}{longer} --record"


def _tell(kept: Record, proxy: Proxy, options: argparse.Namespace) -> None:
    rows = kept.rows()
    errors = step_errors(rows)
    if errors:
        off = f"off by {statistics.median(errors):.1%}, at most {max(errors):.1%}"
        print(f"step foretold by its blocks ({len(errors)} networks): {off}")
    if options.record and len(errors) >= 20:
        low, high = median_interval(errors)
        record(
            "search_step_foretold_error", statistics.median(errors), unit="fraction", low=low, high=high,
            n=len(errors), command=command(options),
        )  # fmt: skip
    if options.longer:
        pairs = longer(kept, proxy, options.longer, options.longer_epochs)
        tau, low, high = agreement(pairs)
        print(f"Kendall's tau of {len(pairs)} networks trained longer: {tau:.2f} ({low:.2f} to {high:.2f})")
        if options.record:
            record(
                "search_proxy_tau_ratio", tau, unit="ratio", low=low, high=high, n=len(pairs),
                command=command(options),
            )  # fmt: skip


if __name__ == "__main__":
    main()
