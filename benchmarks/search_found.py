"""A real search and what it is worth: the network found next to V2-B0, the smallest network, and random search's best.

Run: python -m benchmarks.search_found DATA [--pictures 3000] [--minutes 110] [--full-epochs 20] [--workers 2]

Two studies of the small space, each for so many minutes on the same images, choose a network: one by policy
gradient, one at random. Then these two, V2-B0 scaled to the space (its backbone) and the smallest network of the space
are trained by the proxy recipe for --full-epochs with 3 seeds each, none of them the studies', on all images that the
search had, and answer those that DATA gives as val, which neither the search nor its choices saw. Each one's reward is
that of its accuracy there, with step times and parameters over the backbone's; the difference from V2-B0 is taken seed
by seed (Student's t, 95 %). The networks take turns with each seed, so that all meet the same machine.

--workers N searches with N workers and trains N networks at once, each on its share of the processor. Steps are timed
with the whole of it, while the others wait.

--recorded TABLE spares the second study where ``benchmarks.search_record`` has recorded random networks of the same
images by the same recipe on this machine: random search's best is then the best of the first ones there, as many as
the study of policy gradient has tried, each of them trained to its end. That study then ends with as many trials as
there are rows, if its minutes have not ended before. Steps of those who are judged are told at that table's pace.

What is done is kept in --output and not done again; a study that was killed goes on for the minutes that it still has.
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

# Of those that judge. The studies' runs have another one, or the network found would be judged by its luck once more.
SEEDS = (1, 2, 3)
FOUND, RANDOM = "found", "random search's best"


def trained(network: Architecture, proxy: ProxyTask, seed: int) -> Measurement:
    """A network trained with a seed."""
    one = replace(proxy, seeds=(seed,))
    return to_measurement(network, one, run_trial(network, one))


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
    networks: dict[str, Architecture], proxy: ProxyTask, kept: Path, workers: int = 1
) -> dict[str, list[Measurement]]:
    """Every network trained with every seed, or what was kept of that: the networks by turns, seed after seed.

    What is kept is of a network as it was then: another one that goes by the same name, as one found by a study that
    was done again, is trained. So is what was kept before the network was named next to it: its measurement does not
    tell one network from another.

    Raises:
        SystemExit: one could not be trained, which is no accuracy; nothing is kept of it.
    """
    done = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    asked = {(name, seed): _key(name, seed, networks[name]) for seed in SEEDS for name in networks}

    def one(which: tuple[str, int]) -> Measurement:
        name, seed = which
        return trained(networks[name], proxy, seed)

    missing = [which for which, key in asked.items() if key not in done]
    with closing(at_once(missing, one, workers)) as runs:
        for (name, seed), found in runs:
            if found.failure is not None:
                raise SystemExit(f"{name}, seed {seed}: {found.failure}. Run it again to go on.")
            done[asked[name, seed]] = found.to_json()
            write_text_atomically(kept, json.dumps(done, indent=1) + "\n")
            print(f"{name}, seed {seed}: {found.top1}", flush=True)
    return {name: [Measurement.from_json(done[asked[name, seed]]) for seed in SEEDS] for name in networks}


def _key(name: str, seed: int, network: Architecture) -> str:
    """By which a training is kept; the digest is of all that the network is."""
    plain = json.dumps(network.to_json(), sort_keys=True)
    return f"{name}, seed {seed}, network {hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()}"


def searched_both(
    options: argparse.Namespace, file: Path, proxy: ProxyTask, common: dict[str, Any], trials: int
) -> dict[str, Architecture]:
    """The networks that policy gradient and random search have found."""
    # The studies compute as the recipe was settled, and measure nothing that might come out otherwise.
    settings = [*options.settings, f"precision={proxy.recipe.precision}"]
    more = [word for setting in settings for word in ("--set", setting)]

    def by(sampler: str) -> Architecture:
        return searched(sampler, file, options.output, options.minutes, more, trials, options.workers)

    found = by("policy")
    if options.recorded is None:
        return {FOUND: found, RANDOM: by("random")}
    count = len(trials_of(options.output / "policy"))
    return {FOUND: found, RANDOM: best_recorded(options.recorded, count, common)}


def main() -> None:
    """Search, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=110.0)
    parser.add_argument("--full-epochs", type=float, default=20.0)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of proxy_small")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="networks tried at once")
    parser.add_argument("--recorded", type=Path, metavar="TABLE", help="of benchmarks.search_record")
    parser.add_argument("--output", type=Path, default=Path("runs/search_found"))
    parser.add_argument("--record", action="store_true", help="keep the table and write the claim into summary.json")
    options = parser.parse_args()
    keep_freed_memory()  # as the program does
    options.output.mkdir(parents=True, exist_ok=True)
    space, whole = small_space(), load_dataset(options.data)
    used = some_pictures(options.data, options.pictures)
    asked, file = asked_recipe(options.settings), options.output / "asked.json"
    about = file if options.recorded is None else options.recorded.with_suffix(".json")
    proxy = proxy_of(used, settled_recipe(asked, used.subset("train"), space, about), options.output)
    common = in_common(space, asked, used, proxy)
    # Before any study: one that can't be compared in the end would be hours lost.
    recorded = None if options.recorded is None else rows_recorded(options.recorded, common)
    if options.recorded is not None:
        tell_other_code(about)
        proxy = at_pace_of(
            proxy, space, Measurement.from_json(json.loads(about.read_text(encoding="utf-8"))["backbone"])
        )
    words = {
        "data": whole.digest(),
        "recorded": str(options.recorded),
        "hardware": machine(),
        **{name: getattr(options, name) for name in ("pictures", "minutes", "full_epochs", "settings")},
    }
    settled = {"recipe": proxy.recipe.to_json(), "trials": ENDLESS if recorded is None else len(recorded)}
    trials = begun(file, words | settled, tuple(words), "give another --output")["trials"]
    pictures = pictures_file(whole, used, options.output)
    networks = searched_both(options, pictures, proxy, common, trials)
    networks |= {"V2-B0": space.backbone, "smallest": smallest(space)}
    dataset = load_dataset(pictures)
    proxy = replace(
        sharing(proxy, options.workers),
        recipe=proxy.recipe.model_copy(update={"epochs": options.full_epochs}),
        train=dataset.select(np.flatnonzero(np.isin(dataset.split, ("train", "minival")))),
        selection=dataset.subset("val"),
    )
    rows = compared(judged(networks, proxy, options.output / "trained.json", options.workers))
    for name, row in rows.items():
        print(
            f"{name:22} top-1 {row['top1']:.1%}, {row['step_ms']:.3g} ms, {row['parameters'] / 1e6:.3g} M, reward "
            f"{row['reward']:.4f} ({mean(row['minus_v2b0']):+.4f})"
        )
    if options.record:
        _record(rows, networks, options)


def _record(rows: dict[str, Any], networks: dict[str, Architecture], options: argparse.Namespace) -> None:
    told = {name: row | {"architecture": networks[name].to_json()} for name, row in rows.items()}
    about = {name: getattr(options, name) for name in ("minutes", "full_epochs", "pictures", "workers")}
    about["recorded"] = None if options.recorded is None else options.recorded.name
    tried = {"policy": len(trials_of(options.output / "policy"))}
    # Of a table random search had the first ones, as many as the study has tried.
    tried["random"] = tried["policy"] if options.recorded else len(trials_of(options.output / "random"))
    whole = {"networks": told, "hardware": hardware(), "trials": tried, **about}
    write_text_atomically(RESULTS / "search_found.json", json.dumps(whole, indent=1) + "\n")
    differences = rows[FOUND]["minus_v2b0"]
    low, high = interval(differences)
    record(
        "search_found_minus_v2b0_reward", mean(differences), unit="reward", low=low, high=high, n=len(differences),
        command=command(options),
    )  # fmt: skip


def command(options: argparse.Namespace) -> str:
    """As one types it."""
    given = f"--pictures {options.pictures} --minutes {options.minutes:g} --full-epochs {options.full_epochs:g}"
    more = "".join(f" --set {one}" for one in options.settings)
    recorded = "" if options.recorded is None else f" --recorded {as_typed(options.recorded)}"
    workers = f" --workers {options.workers}" * (options.workers > 1)
    return f"python -m benchmarks.search_found IMAGENETTE {given}{more}{workers}{recorded} --record"


if __name__ == "__main__":
    main()
