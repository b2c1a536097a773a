"""How long ``effnetv2 check`` takes for a folder of images, and whether it names the copies that are known.

Run: python -m benchmarks.inspect_pictures DATA [--pair ONE OTHER ...] [--rounds 3] [--record]

Without embeddings: every image is decoded and hashed, near duplicates are looked for, the page is written. The whole
wall time of a process, from its start to its end, a few times. ``--pair`` names two images, by their paths as the
inspection says them, that show the same; it may be given several times. Nothing else may run on the machine meanwhile.

The claim is of ten thousand images: in AID (arXiv:1608.05167; 9,999 of it, JPEG of 128 px) Port/port_183.jpg and
Port/port_248.jpg are near duplicates.
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
    """What an inspection answers, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("check", str(data), "--output", f"{folder}/inspection", "--json")
        began = time.perf_counter()
        command = [sys.executable, "-m", "efficientnetv2", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"effnetv2 {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout), seconds


def pairs_of(told: dict) -> list[tuple[str, ...]]:
    """The near duplicates, as pairs of paths."""
    return [tuple(one["paths"]) for one in told["duplicates"]["near_duplicates"]]


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("ONE", "OTHER"), help="known to show the same"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write results/summary.json and inspect_pictures.json")
    options = parser.parse_args()
    if options.record and not options.pair:
        parser.error("--record needs a --pair that is known to show the same, so that what is timed also finds it.")
    seconds = []
    for _ in range(options.rounds):
        told, took = inspected(options.data)
        seconds.append(took)
        print(f"{told['num_images']:,} pictures: {took:.1f} s", flush=True)
    pairs, files = pairs_of(told), told["duplicates"]["same_files"]
    print(f"{pluralize(len(pairs), 'pair')} of near duplicates, {pluralize(len(files), 'group')} of equal files")
    named = {" ".join(pair): tuple(sorted(pair)) in {tuple(sorted(one)) for one in pairs} for pair in options.pair}
    for pair, found in named.items():
        print(f"{pair}: {'found' if found else 'NOT FOUND'}")
    value, low, high = statistics.median(seconds), min(seconds), max(seconds)
    print(f"{NAME}: {value:.1f} s ({low:.1f} to {high:.1f}), n = {len(seconds)}")
    if not options.record:
        return
    if not LEAST <= told["num_images"] <= MOST:
        raise SystemExit(f"{NAME} is of ten thousand pictures, but there are {told['num_images']:,}: not recorded.")
    if missing := [pair for pair, found in named.items() if not found]:
        raise SystemExit(f"Not found, so not recorded: {'; '.join(missing)}.")
    words = "".join(f" --pair {shlex.join(pair)}" for pair in options.pair)
    command = f"python -m benchmarks.inspect_pictures DATA{words} --rounds {options.rounds} --record"
    record(NAME, value, unit="s", low=low, high=high, n=len(seconds), command=command)
    raw = {
        "when": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "pictures": told["num_images"],
        "seconds": seconds,
        "near_duplicates": pairs,
        "same_files": files,
        "known_pairs_found": named,
    }
    (RESULTS / "inspect_pictures.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
