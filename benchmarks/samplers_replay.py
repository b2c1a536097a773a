"""Comparison of samplers: the best reward after the same number of trials, in searches replayed from a recorded study.

Run: python -m benchmarks.samplers_replay TABLE.csv [--trials 100] --tune [--record]
     python -m benchmarks.samplers_replay TABLE.csv [--seeds 30] [--trials 100] [--record]

A surrogate learns from the table to predict the reward of each architecture of the space (``benchmarks.surrogate``).
Then each sampler with its shipped hyperparameters searches the predicted rewards with each seed. Its incumbent is the
best reward so far. A replay has no noise and no failed trials.

- ``search_SAMPLER_minus_random_reward_low``: low end of the 95 % interval (Student's t over seeds) of the incumbent of
  the sampler − the incumbent of random search with the same seed.
- ``search_surrogate_VALUE_tau_ratio``: Kendall's tau between measured and predicted values of held-out architectures.

--tune compares hyperparameters of our samplers on other seeds. With --record it writes all of them with their scores to
results/samplers_tuned.json. The comparison warns if shipped hyperparameters are not the best there. They were chosen on
the table of the comparison. Only another table can show how they generalize.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
import optuna
from benchmarks.record import RESULTS, as_typed, hardware, interval, record
from benchmarks.surrogate import Surrogate, Table, agreement, read

from efficientnetv2.nas.samplers import PolicyGradient, RegularizedEvolution, SpaceSampler, create_sampler, suggest
from efficientnetv2.utils.io import write_text_atomically

SAMPLERS = {"random": "random", "policy_gradient": "policy", "evolution": "evolution", "tpe": "tpe"}
TUNING_SEEDS = range(1000, 1010)  # not those of the comparison, which count from 0
TUNED = "samplers_tuned.json"

Settings = PolicyGradient | RegularizedEvolution
SHIPPED: dict[str, Settings] = {"policy_gradient": PolicyGradient(), "evolution": RegularizedEvolution()}

# Candidates of --tune, around hyperparameters that did well on synthetic problems.
POLICIES = [
    PolicyGradient(learning_rate=rate, warmup=warmup, most_advantage=most)
    for rate, warmup, most in product((0.2, 0.4, 0.8), (5, 10, 20), (1.0, 1.5, 3.0))
]
EVOLUTIONS = [
    RegularizedEvolution(population=population, tournament=tournament)
    for population, tournament in product((10, 20, 30), (4, 8, 12, 20))
    if tournament <= population
]


def incumbents(surrogate: Surrogate, chooser: optuna.samplers.BaseSampler, trials: int) -> np.ndarray:
    """Return (trials,) the best reward so far, after each trial of one search."""
    study = optuna.create_study(direction="maximize", sampler=chooser)
    found = []
    for _ in range(trials):
        trial = study.ask()
        found.append(surrogate.reward(suggest(trial, surrogate.table.space)))
        study.tell(trial, found[-1])
    return np.maximum.accumulate(found)


def compare(surrogate: Surrogate, seeds: int, trials: int) -> dict[str, np.ndarray]:
    """Return (seeds, trials) incumbents of each sampler."""
    curves = {}
    for shown, name in SAMPLERS.items():
        space = surrogate.table.space
        runs = [incumbents(surrogate, create_sampler(name, space, seed=seed), trials) for seed in range(seeds)]
        curves[shown] = np.array(runs)
        print(f"{shown}: {curves[shown][:, -1].mean():.4f} after {trials} trials", flush=True)
    return curves


def differences(curves: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """Compute the mean and 95 % interval of the last incumbents minus those of random search, by sampler."""
    gains = {name: list(runs[:, -1] - curves["random"][:, -1]) for name, runs in curves.items() if name != "random"}
    return {name: (mean(values), *interval(values)) for name, values in gains.items()}


def tune(surrogate: Surrogate, trials: int) -> list[tuple[float, Settings]]:
    """Score hyperparameters of our samplers by their mean last incumbent on the tuning seeds, best first."""
    scored = []
    for proposer in (*POLICIES, *EVOLUTIONS):
        space = surrogate.table.space
        last = [incumbents(surrogate, SpaceSampler(proposer, space, seed=seed), trials)[-1] for seed in TUNING_SEEDS]
        scored.append((mean(last), proposer))
    return sorted(scored, key=lambda one: one[0], reverse=True)


def keep(table: Table, tau: dict[str, tuple[float, float, float]], curves: dict[str, np.ndarray], command: str) -> None:
    """Write claims to the summary, and the curves."""
    seeds, trials = curves["random"].shape
    for name, (_, low, high) in differences(curves).items():
        claim = f"search_{name}_minus_random_reward_low"
        record(claim, low, unit="reward", low=low, high=high, n=seeds, command=command)
    for name, (value, low, high) in tau.items():
        claim = f"search_surrogate_{name}_tau_ratio"
        record(claim, value, unit="ratio", low=low, high=high, n=len(table.points), command=command)
    raw = {
        "when": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "networks": len(table.points),
        "tau": tau,
        "differences": {name: list(found) for name, found in differences(curves).items()},
        "settings": {name: vars(proposer) for name, proposer in SHIPPED.items()},
        "mean_incumbents": {name: [round(v, 6) for v in runs.mean(0)] for name, runs in curves.items()},
        "last_incumbents": {name: [round(v, 6) for v in runs[:, -1]] for name, runs in curves.items()},
        "trials": trials,
    }
    write_text_atomically(RESULTS / "samplers_replay.json", json.dumps(raw, indent=1) + "\n")


def keep_tuned(table: Path, scored: list[tuple[float, Settings]], trials: int, command: str) -> None:
    """Write the conditions of tuning, and all hyperparameters with their scores, best first."""
    names = {type(proposer): name for name, proposer in SHIPPED.items()}
    raw = {
        "when": time.strftime("%Y-%m-%d"),
        "command": command,
        "table": table.name,
        "table_sha256": _digest(table),
        "seeds": list(TUNING_SEEDS),
        "trials": trials,
        "scores": [
            {"sampler": names[type(proposer)], "settings": vars(proposer), "mean_incumbent": score}
            for score, proposer in scored
        ],
    }
    write_text_atomically(RESULTS / TUNED, json.dumps(raw, indent=1) + "\n")


def not_tuned(table: Path) -> list[str]:
    """Return warnings, one per line: the shipped hyperparameters are not the best of tuning on this table."""
    file = RESULTS / TUNED
    if not file.exists():
        return [f"{TUNED} is not there: --tune --record says whether the settings that are shipped come first."]
    tuned = json.loads(file.read_text(encoding="utf-8"))
    lines = []
    if tuned["table_sha256"] != _digest(table):
        lines.append(f"{TUNED} is of another table than {table.name}: {tuned['table']} as it was then.")
    for name, proposer in SHIPPED.items():
        rows = [row for row in tuned["scores"] if row["sampler"] == name]
        highest = max((row["mean_incumbent"] for row in rows), default=None)
        best = [row["settings"] for row in rows if row["mean_incumbent"] == highest]
        if vars(proposer) not in best:
            lines.append(f"{name}: {best[:1]} came first in {TUNED}, but {vars(proposer)} is shipped.")
    return lines


def _digest(table: Path) -> str:
    return hashlib.sha256(table.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--tune", action="store_true", help="compare hyperparameters on other seeds, and stop")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write results/summary.json and samplers_replay.json; with --tune samplers_tuned.json",
    )
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: an interval over seeds takes at least 2")
    if options.seeds > TUNING_SEEDS.start:
        parser.error(f"--seeds {options.seeds}: those from {TUNING_SEEDS.start} on are for --tune alone")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = read(options.table)
    tau = agreement(table)
    print(
        f"{len(table.points)} networks; tau: "
        + ", ".join(f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in tau.items())
    )
    surrogate = Surrogate.fitted(table)
    if options.tune:
        scored = tune(surrogate, options.trials)
        for score, proposer in scored:
            print(f"{score:.5f}  {proposer}")
        if options.record:
            arguments = f"--trials {options.trials} --tune --record"
            command = f"python -m benchmarks.samplers_replay {as_typed(options.table)} {arguments}"
            keep_tuned(options.table, scored, options.trials, command)
        return
    for line in not_tuned(options.table):
        print(f"Warning: {line}")
    curves = compare(surrogate, options.seeds, options.trials)
    for name, (value, low, high) in differences(curves).items():
        print(f"{name} minus random: {value:+.4f} ({low:+.4f} to {high:+.4f})")
    if options.record:
        arguments = f"--seeds {options.seeds} --trials {options.trials} --record"
        command = f"python -m benchmarks.samplers_replay {as_typed(options.table)} {arguments}"
        keep(table, tau, curves, command)


if __name__ == "__main__":
    main()
