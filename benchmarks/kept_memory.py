"""Speed of V2-B0 training steps on a CPU if the process keeps freed memory / if it returns the memory to the system.

Run: python -m benchmarks.kept_memory [--image-size 128] [--rounds 5] [--record]

``utils.processes.keep_freed_memory``, which the program calls at its start, applies to a whole process. Each side is
therefore its own process: the toolkit's training loop on noise images in memory, batch size 32, two warm-up steps and
six timed steps. The sides alternate. Claim ``kept_memory_b0_SIZE``: time without / time with kept memory, median and
quartiles of the rounds; above 1, keeping memory is faster. The benchmark also prints page faults per step and the peak
of the resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from benchmarks.record import record
from benchmarks.train_step import Workload, our_losses, our_recipe

from efficientnetv2.utils.processes import keep_freed_memory

SIDES = ("given back", "kept")
WARM, STEPS, BATCH = 2, 6, 32
_ROUNDS = 5


def work(image_size: int) -> Workload:
    """The workload of both sides."""
    return Workload("efficientnetv2_b0", image_size, BATCH, 0.1, torch.device("cpu"))


def child(side: str, image_size: int, precision: str) -> dict[str, float]:
    """One side, in its own process."""
    if side == "kept" and not keep_freed_memory():
        raise SystemExit("Nothing to measure: this system's allocator has nothing to set, or it is set already.")
    recipe, _ = our_recipe(work(image_size), precision=precision, compile=False)
    loop = our_losses(work(image_size), recipe)
    for _ in range(WARM):
        next(loop)
    faults, times = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(STEPS):
        began = time.perf_counter()
        next(loop)
        times.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step_s": statistics.median(times),
        "faults": (after.ru_minflt - faults) / STEPS,
        "resident_mib": after.ru_maxrss / 2**10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.image_size, options.precision)))
        return
    # Chosen once, because each side could choose another precision: clearing pages slows fp32 more than 16 bits.
    precision = our_recipe(work(options.image_size), compile=False)[0].precision
    print(f"Precision of both: {precision}")
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            arguments = ["-m", "benchmarks.kept_memory", "--child", side, "--image-size", str(options.image_size)]
            arguments += ["--precision", precision]
            done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    for side, rounds in found.items():
        medians = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
        print(
            f"{side}: {BATCH / medians['step_s']:.1f} images/s, {medians['faults']:,.0f} page faults a step, "
            f"{medians['resident_mib']:,.0f} MiB at most"
        )
    pairs = zip(found["given back"], found["kept"], strict=True)
    low, ratio, high = np.quantile([other["step_s"] / row["step_s"] for other, row in pairs], [0.25, 0.5, 0.75])
    name = f"kept_memory_b0_{options.image_size}"
    print(f"{name}: {ratio:.3f} ({low:.3f} to {high:.3f})")
    if options.record:
        more = "" if options.rounds == _ROUNDS else f" --rounds {options.rounds}"
        command = f"python -m benchmarks.kept_memory --image-size {options.image_size}{more} --record"
        record(name, ratio, unit="ratio", low=low, high=high, n=options.rounds, command=command)


if __name__ == "__main__":
    main()
