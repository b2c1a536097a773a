"""One training step against timm's: the same network, pictures, optimizer and regularization.

Run: python -m benchmarks.train_step [--only b0_224] [--compiled] [--rounds 9] [--record]

Sides, alternating within one process, a step each per round (see ``commands.bench_step``): timm as people run it
(fp32, contiguous memory, a plain loop with AdamW); with channels-last memory and AdamW fused, as ours is; that with
bf16; with ``--compiled`` both of these compiled, which takes one to three minutes each and is not counted; and the
toolkit's loop, as its "auto" chooses on this machine, which besides normalises the pictures and seeds its draws.

``_vs_timm_default`` is ours over timm as people run it, ``_vs_timm_best`` over the fastest of its others, and
``_vs_torchvision_best`` over the fastest of torchvision's, where that is timed too; medians and quartiles over rounds.
Then 20 steps without regularization from the same weights: how far our losses lie from timm's in fp32, beside how far
timm's own in bf16 do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial

import torch
from benchmarks.record import RESULTS, hardware, record
from torch import Tensor

from efficientnetv2.base.allocator import keep_freed_memory
from efficientnetv2.commands.bench_job import Steps, steps
from efficientnetv2.commands.bench_step import Peer, Work, our_losses, our_recipe

work = partial(Work, device=torch.device("cpu"))
_ROUNDS = 9
CASES = {
    "b0_224": partial(work, "efficientnetv2_b0", 224, 32),
    "s_128": partial(work, "efficientnetv2_s", 128, 32),
    "s_224": partial(work, "efficientnetv2_s", 224, 16),
}
# Whose networks ours is timed beside; torchvision, which has no V2-B0, in one case.
LIBRARIES = {"b0_224": ("timm",), "s_128": ("timm", "torchvision"), "s_224": ("timm",)}


def claims(name: str, found: Steps) -> tuple[dict, str]:
    """The ratios, and which of timm's tuned sides is the fastest."""

    def fastest(library: str) -> str:
        tuned = [side for side in found.seconds if side.startswith(f"{library} ")]
        return max(tuned, key=lambda side: found.images_per_s(side).median)

    ratios = {f"train_step_{name}_vs_timm_default": found.ahead_of("timm")}
    ratios |= {
        f"train_step_{name}_vs_{library}_best": found.ahead_of(fastest(library))
        for library in LIBRARIES[name]
    }
    return ratios, fastest("timm")


def losses(work: Work, number: int = 20) -> dict[str, list[float]]:
    """Losses from the same weights, on the same pictures, without regularization; printed beside timm's in fp32."""
    recipe, _ = our_recipe(work)
    plain = recipe.model_copy(update={"precision": "fp32", "compile": False})
    sides: dict[str, Iterator[Tensor]] = {
        "timm": Peer("timm", channels_last=True).losses(work),
        "timm bf16": Peer("timm", channels_last=True, precision="bf16").losses(work),
        f"ours {recipe.precision}": our_losses(work, recipe),
        "ours fp32": our_losses(work, plain),
    }
    found = {side: [float(next(loop)) for _ in range(number)] for side, loop in sides.items()}
    for side, values in found.items():
        off = [abs(one - exact) for one, exact in zip(values, found["timm"], strict=True)]
        print(
            f"  {side:10} loss {values[0]:.4f} to {values[-1]:.4f}; from timm's in fp32 at most {max(off):.4f}, "
            f"on average {sum(off) / number:.4f}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(CASES), action="append")
    parser.add_argument("--compiled", action="store_true", help="timm's compiled sides too")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument(
        "--record", action="store_true", help="write results/summary.json and train_step.json"
    )
    options = parser.parse_args()
    if options.record and not options.compiled:
        parser.error("--record is for all of timm's sides, its compiled ones too: add --compiled.")
    for name in options.only or CASES:
        case = CASES[name]
        print(f"\n{name}", flush=True)
        found = steps(
            case(rate=0.1),
            rounds=options.rounds,
            compiled=options.compiled,
            say=print,
            libraries=LIBRARIES[name],
        )
        for side in found.seconds:
            print(f"  {side:34} {found.images_per_s(side)} images/s", flush=True)
        ratios, best = claims(name, found)
        for claim, spread in ratios.items():
            print(f"  {claim}: {spread}{f' ({best})' if claim.endswith('timm_best') else ''}", flush=True)
        compared = losses(case(rate=0.0))
        if options.record:
            keep(name, {"best": best, "losses": compared} | found.to_json(), ratios, options.rounds)


def keep(name: str, found: dict, ratios: dict, rounds: int) -> None:
    """Into the summary, and the raw seconds and losses beside it."""
    command = "python -m benchmarks.train_step --compiled"
    command += "" if rounds == _ROUNDS else f" --rounds {rounds}"
    for claim, spread in ratios.items():
        record(
            claim,
            spread.median,
            unit="ratio",
            low=spread.low,
            high=spread.high,
            n=rounds,
            command=command,
        )
    path = RESULTS / "train_step.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[name] = found | {"hardware": hardware(), "torch": torch.__version__}
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    keep_freed_memory()  # as the program does
    main()
