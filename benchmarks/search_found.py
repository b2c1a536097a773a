"""A real search and what it is worth: the network found beside V2-B0, the smallest network, and random search's best.

Run: python -m benchmarks.search_found DATA [--pictures 3000] [--minutes 110] [--full-epochs 20] [--record]

Two studies of the small space, each for so many minutes on the same pictures, choose a network: one by policy
gradient, one at random. Then these two, V2-B0 scaled to the space (its backbone) and the smallest network of the space
are trained by the proxy recipe for --full-epochs with 3 seeds each, on all pictures that the search had, and answer
those that DATA gives as val, which neither the search nor its choices saw. Each one's reward is that of its accuracy
there, with step times and parameters over the backbone's; the difference from V2-B0 is taken seed by seed (Student's
t, 95 %).

What is done is kept in --out and not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.record import RESULTS, hardware, interval, record
from benchmarks.search_record import proxy_of, some_pictures

from efficientnetv2.arch.cost import cost
from efficientnetv2.arch.files import read as read_network
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.files import write_text_atomically
from efficientnetv2.data.manifest import read
from efficientnetv2.search.measurement import Measurement
from efficientnetv2.search.proxy import Proxy
from efficientnetv2.search.reward import Reward
from efficientnetv2.search.space import Space
from efficientnetv2.search.spaces import small
from efficientnetv2.search.trial import measurement, try_out

COMMAND = "python -m benchmarks.search_found imagenette --record"
SEEDS = (0, 1, 2)
SAMPLERS = {"found": "policy", "random search's best": "random"}


def pictures_file(data: str, count: int, folder: Path) -> Path:
    """A table of the pictures of both studies: some of train, and as val those that judge."""
    file = folder / "pictures.csv"
    if not file.exists():
        whole, used = read(data), some_pictures(data, count)
        judging = whole.select(np.flatnonzero(whole.split == "val"))
        both = [(used, used.split), (judging, judging.split)]
        rows = [
            (str(part.file(row)), part.class_names[label], split)
            for part, splits in both
            for row, (label, split) in enumerate(zip(part.labels, splits, strict=True))
        ]
        table = pd.DataFrame(rows, columns=["path", "label", "split"])
        write_text_atomically(file, table.to_csv(index=False))
    return file


def searched(sampler: str, pictures: Path, folder: Path, minutes: float, more: list[str]) -> Architecture:
    """The best network of a study of so many minutes; the study is begun, gone on with, or as it was."""
    study, network = folder / sampler, folder / f"{sampler}.yaml"
    if not network.exists():
        words = ["run", str(study), "--data", str(pictures), "--sampler", sampler, "--trials", "1000000"]
        _effnetv2(*words, "--minutes", str(minutes), *more)
        _effnetv2("export", str(study), "--out", str(network))
    return read_network(network)


def _effnetv2(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "efficientnetv2.cli", "search", *words], check=True)


def smallest(space: Space) -> Architecture:
    """The network of a space with the fewest parameters: stages add up, so going down from anywhere leads there."""

    def parameters(point: tuple[int, ...]) -> int:
        return cost(space.decode(point), image_px=64, num_classes=10).total.parameters

    point = space.encode(space.backbone)
    while (least := min(space.neighbours(point), key=parameters)) and parameters(least) < parameters(point):
        point = least
    return space.decode(point)


def trained(name: str, network: Architecture, proxy: Proxy, seed: int, kept: Path) -> Measurement:
    """A network trained with a seed, or what was kept of that."""
    done = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    key = f"{name}, seed {seed}"
    if key not in done:
        one = replace(proxy, seeds=(seed,))
        done[key] = measurement(network, one, try_out(network, one)).to_json()
        write_text_atomically(kept, json.dumps(done, indent=1) + "\n")
        print(f"{key}: {done[key]['failure'] or done[key]['top1']}", flush=True)
    return Measurement.from_json(done[key])


def compared(runs: dict[str, list[Measurement]]) -> dict[str, Any]:
    """The table: of each network accuracy, step time, parameters and reward, and the differences from V2-B0.

    Args:
        runs: name -> a measurement for each seed; "V2-B0" is among them.
    """
    base = replace(runs["V2-B0"][0], step_seconds=mean(one.step_seconds or 0.0 for one in runs["V2-B0"]))
    rows: dict[str, Any] = {}
    for name, each in runs.items():
        # Step times are of the machine, not of the seed: all of a network's runs share their mean.
        step = mean(one.step_seconds or 0.0 for one in each)
        rewards = [Reward().of(replace(one, step_seconds=step), base) for one in each]
        low, high = interval([one.top1 or 0.0 for one in each])
        rows[name] = {
            "top1": mean(one.top1 or 0.0 for one in each),
            "top1_interval": [low, high],
            "step_ms": 1000 * step,
            "parameters": each[0].parameters,
            "reward": mean(rewards),
            "rewards": rewards,
        }
    for row in rows.values():
        row["minus_v2b0"] = [
            mine - theirs for mine, theirs in zip(row["rewards"], rows["V2-B0"]["rewards"], strict=True)
        ]
    return rows


def main() -> None:
    """Search, train, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=110.0)
    parser.add_argument("--full-epochs", type=float, default=20.0)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of proxy_small")
    parser.add_argument("--out", type=Path, default=Path("runs/search_found"))
    parser.add_argument(
        "--record", action="store_true", help="keep the table and write the claim into summary.json"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    space = small()
    file = pictures_file(options.data, options.pictures, options.out)
    more = [word for setting in options.settings for word in ("--set", setting)]
    networks = {
        name: searched(sampler, file, options.out, options.minutes, more)
        for name, sampler in SAMPLERS.items()
    }
    networks |= {"V2-B0": space.backbone, "smallest": smallest(space)}
    manifest = read(file)
    proxy = proxy_of(manifest, options.settings, options.out, space)
    proxy = replace(
        proxy,
        recipe=proxy.recipe.model_copy(update={"epochs": options.full_epochs}),
        train=manifest.select(np.flatnonzero(np.isin(manifest.split, ("train", "minival")))),
        choosing=manifest.subset("val"),
    )
    kept = options.out / "trained.json"
    runs = {
        name: [trained(name, network, proxy, seed, kept) for seed in SEEDS]
        for name, network in networks.items()
    }
    rows = compared(runs)
    for name, row in rows.items():
        print(
            f"{name:22} top-1 {row['top1']:.1%}, {row['step_ms']:.3g} ms, {row['parameters'] / 1e6:.3g} M, reward "
            f"{row['reward']:.4f} ({mean(row['minus_v2b0']):+.4f})"
        )
    if options.record:
        _record(rows, networks, options)


def _record(rows: dict[str, Any], networks: dict[str, Architecture], options: argparse.Namespace) -> None:
    told = {name: row | {"architecture": networks[name].to_json()} for name, row in rows.items()}
    about = {"minutes": options.minutes, "full_epochs": options.full_epochs, "pictures": options.pictures}
    whole = {"networks": told, "hardware": hardware(), **about}
    write_text_atomically(RESULTS / "search_found.json", json.dumps(whole, indent=1) + "\n")
    differences = rows["found"]["minus_v2b0"]
    low, high = interval(differences)
    record(
        "search_found_minus_v2b0_reward", mean(differences), unit="ratio", low=low, high=high, n=len(differences),
        command=COMMAND,
    )  # fmt: skip


if __name__ == "__main__":
    main()
