"""Time of ``effnetv2 check`` on a folder of images, and whether it finds known near-duplicates.

Run: python -m benchmarks.inspect_pictures DATA [--pair ONE OTHER ...] [--rounds 3] [--record]

The check runs without embeddings: it decodes and hashes every image, searches near-duplicates and writes the page. The
time is the wall time of a process, over a few rounds. ``--pair`` names two near-duplicates by their paths in the
report, and can be repeated. Nothing else may run on the machine.

Claim: ``inspect_10000_pictures_s``, for ten thousand images. In AID (arXiv:1608.05167; 9,999 of its images, JPEG of 128
px), Port/port_183.jpg and Port/port_248.jpg are near-duplicates.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import RESULTS, hardware, record

from efficientnetv2.utils.errors import pluralize

NAME, LEAST, MOST = "inspect_10000_pictures_s", 9_900, 10_100


def inspected(data: Path) -> tuple[dict, float]:
    """The report of a check, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("check", str(data), "--output", f"{folder}/inspection", "--json")
        began = time.perf_counter()
        command = [sys.executable, "-m", "efficientnetv2", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"effnetv2 {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout), seconds


def pairs_of(report: dict) -> list[tuple[str, ...]]:
    """The near-duplicates as pairs of paths."""
    return [tuple(one["paths"]) for one in report["duplicates"]["near_duplicates"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("ONE", "OTHER"), help="known near-duplicates"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write results/summary.json and inspect_pictures.json")
    options = parser.parse_args()
    if options.record and not options.pair:
        parser.error("--record needs a --pair that is known to show the same, so that what is timed also finds it.")
    seconds = []
    for _ in range(options.rounds):
        report, elapsed = inspected(options.data)
        seconds.append(elapsed)
        print(f"{report['num_images']:,} pictures: {elapsed:.1f} s", flush=True)
    pairs, files = pairs_of(report), report["duplicates"]["same_files"]
    print(f"{pluralize(len(pairs), 'pair')} of near duplicates, {pluralize(len(files), 'group')} of equal files")
    found_pairs = {
        " ".join(pair): tuple(sorted(pair)) in {tuple(sorted(other_pair)) for other_pair in pairs}
        for pair in options.pair
    }
    for pair, found in found_pairs.items():
        print(f"{pair}: {'found' if found else 'NOT FOUND'}")
    value, low, high = statistics.median(seconds), min(seconds), max(seconds)
    print(f"{NAME}: {value:.1f} s ({low:.1f} to {high:.1f}), n = {len(seconds)}")
    if not options.record:
        return
    if not LEAST <= report["num_images"] <= MOST:
        raise SystemExit(f"{NAME} is of ten thousand pictures, but there are {report['num_images']:,}: not recorded.")
    if missing := [pair for pair, found in found_pairs.items() if not found]:
        raise SystemExit(f"Not found, so not recorded: {'; '.join(missing)}.")
    pair_options = "".join(f" --pair {shlex.join(pair)}" for pair in options.pair)
    command = f"python -m benchmarks.inspect_pictures DATA{pair_options} --rounds {options.rounds} --record"
    record(NAME, value, unit="s", low=low, high=high, n=len(seconds), command=command)
    raw = {
        "when": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "pictures": report["num_images"],
        "seconds": seconds,
        "near_duplicates": pairs,
        "same_files": files,
        "known_pairs_found": found_pairs,
    }
    (RESULTS / "inspect_pictures.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
