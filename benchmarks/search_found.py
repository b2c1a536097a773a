"""A real search: the found architecture against V2-B0, the smallest architecture, and the best of random search.

Run: python -m benchmarks.search_found DATA [--pictures 3000] [--minutes 110] [--full-epochs 20] [--workers 2]

Two studies of the small space, of --minutes each on the same images, choose an architecture: one by policy gradient,
one at random. These two, V2-B0 scaled to the space (its backbone) and the smallest architecture of the space then train
with the proxy recipe for --full-epochs, with 3 seeds that the studies do not use, on all images of the search. They
predict val of DATA, which the search did not use. The reward has this accuracy, and step times and parameters relative
to the backbone. All architectures train with one seed before the next seed, so that all run under the same conditions.

- ``search_found_minus_v2b0_reward``: reward of the found architecture − reward of V2-B0 by seed (Student's t, 95 %).

--workers N searches with N workers, and trains N architectures at the same time, each with its share of the processor.
A step is timed on the whole processor, while the others wait.

--recorded TABLE replaces the random study. ``benchmarks.search_record`` must have recorded TABLE with the same images
and recipe on this machine. The best of random search is then the best of the first rows of TABLE, as many as the policy
gradient study has trials, each fully trained. That study ends after as many trials as TABLE has rows, or after its
minutes. Step times are scaled to the pace of the machine for TABLE.

--output stores finished work, which is read again. A killed study resumes for the rest of its minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from benchmarks.at_once import at_once
from benchmarks.record import RESULTS, as_typed, begun, hardware, interval, record
from benchmarks.search_studies import ENDLESS, best_recorded, rows_recorded, searched, trials_of
from benchmarks.search_trials import (
    asked_recipe,
    at_pace_of,
    in_common,
    machine,
    pictures_file,
    proxy_of,
    settled_recipe,
    sharing,
    smallest,
    some_pictures,
    tell_other_code,
)

from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.proxy_task import ProxyTask
from efficientnetv2.nas.space import small_space
from efficientnetv2.nas.trial import to_measurement
from efficientnetv2.nas.trial_process import run_trial
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.processes import keep_freed_memory

# Seeds of the final training. The studies use another seed: the search may have chosen an architecture by luck.
SEEDS = (1, 2, 3)
FOUND, RANDOM = "found", "random search's best"


def trained(architecture: Architecture, proxy: ProxyTask, seed: int) -> Measurement:
    """Train an architecture with a seed."""
    one = replace(proxy, seeds=(seed,))
    return to_measurement(architecture, one, run_trial(architecture, one))


def compared(runs: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Compute accuracy, step time, parameters and reward of each architecture, and the differences from V2-B0.

    Args:
        runs: Name -> a measurement per seed; contains "V2-B0".
    """
    base = replace(runs["V2-B0"][0], step_seconds=mean(one.step_seconds or 0.0 for one in runs["V2-B0"]))
    rows: dict[str, Any] = {}
    for name, each in runs.items():
        # Step times depend on the machine, not on the seed: all runs of an architecture share their mean.
        step = mean(one.step_seconds or 0.0 for one in each)
        rewards = [Reward().compute(replace(one, step_seconds=step), base) for one in each]
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


def judged(
    architectures: dict[str, Architecture], proxy: ProxyTask, file: Path, workers: int = 1
) -> dict[str, list[Measurement]]:
    """Train each architecture with each seed, or read the stored results: all architectures, seed after seed.

    Results are stored by name, seed and digest of the architecture. So another architecture with the same name is
    trained, for example from a repeated study. Old results without digest are not read.

    Raises:
        SystemExit: Training failed. Nothing is stored for it.
    """
    done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    keys = {(name, seed): _key(name, seed, architectures[name]) for seed in SEEDS for name in architectures}

    def one(which: tuple[str, int]) -> Measurement:
        name, seed = which
        return trained(architectures[name], proxy, seed)

    missing = [which for which, key in keys.items() if key not in done]
    with closing(at_once(missing, one, workers)) as runs:
        for (name, seed), found in runs:
            if found.failure is not None:
                raise SystemExit(f"{name}, seed {seed}: {found.failure}. Run it again to go on.")
            done[keys[name, seed]] = found.to_json()
            write_text_atomically(file, json.dumps(done, indent=1) + "\n")
            print(f"{name}, seed {seed}: {found.top1}", flush=True)
    return {name: [Measurement.from_json(done[keys[name, seed]]) for seed in SEEDS] for name in architectures}


def _key(name: str, seed: int, architecture: Architecture) -> str:
    """Return the key of a stored result, with a digest of the architecture."""
    plain = json.dumps(architecture.to_json(), sort_keys=True)
    return f"{name}, seed {seed}, network {hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()}"


def searched_both(
    options: argparse.Namespace, file: Path, proxy: ProxyTask, common: dict[str, Any], trials: int
) -> dict[str, Architecture]:
    """Return the architectures that policy gradient and random search found."""
    # The studies use the resolved recipe. A new measurement could choose another precision.
    settings = [*options.settings, f"precision={proxy.recipe.precision}"]
    arguments = [word for setting in settings for word in ("--set", setting)]

    def by(sampler: str) -> Architecture:
        return searched(sampler, file, options.output, options.minutes, arguments, trials, options.workers)

    found = by("policy")
    if options.recorded is None:
        return {FOUND: found, RANDOM: by("random")}
    count = len(trials_of(options.output / "policy"))
    return {FOUND: found, RANDOM: best_recorded(options.recorded, count, common)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=110.0)
    parser.add_argument("--full-epochs", type=float, default=20.0)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="override of proxy_small")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at the same time")
    parser.add_argument("--recorded", type=Path, metavar="TABLE", help="table of benchmarks.search_record")
    parser.add_argument("--output", type=Path, default=Path("runs/search_found"))
    parser.add_argument("--record", action="store_true", help="write the table, and the claim to summary.json")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    options.output.mkdir(parents=True, exist_ok=True)
    space, whole = small_space(), load_dataset(options.data)
    used = some_pictures(options.data, options.pictures)
    requested, file = asked_recipe(options.settings), options.output / "asked.json"
    about = file if options.recorded is None else options.recorded.with_suffix(".json")
    proxy = proxy_of(used, settled_recipe(requested, used.subset("train"), space, about), options.output)
    common = in_common(space, requested, used, proxy)
    # Checked before the studies, which take hours.
    recorded = None if options.recorded is None else rows_recorded(options.recorded, common)
    if options.recorded is not None:
        tell_other_code(about)
        proxy = at_pace_of(
            proxy, space, Measurement.from_json(json.loads(about.read_text(encoding="utf-8"))["backbone"])
        )
    conditions = {
        "data": whole.digest(),
        "recorded": str(options.recorded),
        "hardware": machine(),
        **{name: getattr(options, name) for name in ("pictures", "minutes", "full_epochs", "settings")},
    }
    settled = {"recipe": proxy.recipe.to_json(), "trials": ENDLESS if recorded is None else len(recorded)}
    trials = begun(file, conditions | settled, tuple(conditions), "give another --output")["trials"]
    image_table = pictures_file(whole, used, options.output)
    architectures = searched_both(options, image_table, proxy, common, trials)
    architectures |= {"V2-B0": space.backbone, "smallest": smallest(space)}
    dataset = load_dataset(image_table)
    proxy = replace(
        sharing(proxy, options.workers),
        recipe=proxy.recipe.model_copy(update={"epochs": options.full_epochs}),
        train=dataset.select(np.flatnonzero(np.isin(dataset.split, ("train", "minival")))),
        selection=dataset.subset("val"),
    )
    rows = compared(judged(architectures, proxy, options.output / "trained.json", options.workers))
    for name, row in rows.items():
        print(
            f"{name:22} top-1 {row['top1']:.1%}, {row['step_ms']:.3g} ms, {row['parameters'] / 1e6:.3g} M, reward "
            f"{row['reward']:.4f} ({mean(row['minus_v2b0']):+.4f})"
        )
    if options.record:
        _record(rows, architectures, options)


def _record(rows: dict[str, Any], architectures: dict[str, Architecture], options: argparse.Namespace) -> None:
    networks_json = {name: row | {"architecture": architectures[name].to_json()} for name, row in rows.items()}
    about = {name: getattr(options, name) for name in ("minutes", "full_epochs", "pictures", "workers")}
    about["recorded"] = None if options.recorded is None else options.recorded.name
    tried = {"policy": len(trials_of(options.output / "policy"))}
    # Random search took as many rows of the table as the study has trials.
    tried["random"] = tried["policy"] if options.recorded else len(trials_of(options.output / "random"))
    whole = {"networks": networks_json, "hardware": hardware(), "trials": tried, **about}
    write_text_atomically(RESULTS / "search_found.json", json.dumps(whole, indent=1) + "\n")
    differences = rows[FOUND]["minus_v2b0"]
    low, high = interval(differences)
    record(
        "search_found_minus_v2b0_reward", mean(differences), unit="reward", low=low, high=high, n=len(differences),
        command=command(options),
    )  # fmt: skip


def command(options: argparse.Namespace) -> str:
    """Return the command line."""
    arguments = f"--pictures {options.pictures} --minutes {options.minutes:g} --full-epochs {options.full_epochs:g}"
    more = "".join(f" --set {one}" for one in options.settings)
    recorded = "" if options.recorded is None else f" --recorded {as_typed(options.recorded)}"
    workers = f" --workers {options.workers}" * (options.workers > 1)
    return f"python -m benchmarks.search_found IMAGENETTE {arguments}{more}{workers}{recorded} --record"


if __name__ == "__main__":
    main()
