"""Samplers compared by replay: on a study that was made up, so that what is right is known."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import optuna
import pandas as pd
import pytest
from benchmarks import record, samplers_replay
from benchmarks.record import interval
from benchmarks.samplers_replay import compare, differences, tune
from benchmarks.surrogate import Surrogate, Table, agreement, features, read
from scipy.stats import kendalltau
from tests.messages import mentioning
from tests.test_claims import SHOWN

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.nas.objective import Measurement
from efficientnetv2.nas.samplers import PolicyGradient, RegularizedEvolution
from efficientnetv2.nas.space import small_space
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

SPACE = small_space()
WIDTH = features(SPACE, [SPACE.encode(SPACE.backbone)]).shape[1]
RANDOM = Key.of(1).fold("made up").generator()
OWN, PAIRS = RANDOM.normal(size=WIDTH), 0.3 * np.triu(RANDOM.normal(size=(WIDTH, WIDTH)), 1)


def top1(points):
    """Made up: every option has its effect, and so has every pair; between about 0.4 and 0.7."""
    ones = features(SPACE, points)
    return 0.55 + 0.01 * (ones @ OWN + ((ones @ PAIRS) * ones).sum(axis=1))


def made_up(networks, noise):
    """A table of a study: the backbone and drawn networks, with noise in what was measured."""
    points = [SPACE.encode(SPACE.backbone)]
    for seed in range(networks * 2):
        point = SPACE.sample(Key.of(seed))
        points += [point] * (point not in points and len(points) < networks)
    counted = [count_flops(SPACE.decode(point), image_size=64, num_classes=10).total for point in points]
    draws = Key.of(2).generator()
    right = top1(points) + noise * draws.normal(size=networks)
    seconds = [one.multiply_adds / 1e8 * np.exp(noise * draws.normal()) for one in counted]
    sizes = np.array([one.parameters for one in counted], dtype=float)
    backbone = Measurement(
        int(sizes[0]), counted[0].multiply_adds, top1=float(right[0]), step_seconds=float(seconds[0])
    )
    return Table(SPACE, backbone, points, right, np.array(seconds), sizes)


def written(table, path):
    """The two files that a recorded study is."""
    rows = [
        SPACE.choices(point) | {"top1": right, "step_seconds": seconds, "parameters": int(size)}
        for point, right, seconds, size in zip(
            table.points, table.top1, table.step_seconds, table.parameters, strict=True
        )
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    about = {"space": SPACE.to_json(), "backbone": table.backbone.to_json()}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


TABLE = made_up(200, noise=0.012)


def test_a_table_is_read_as_it_was_written(tmp_path):
    found = read(written(TABLE, tmp_path / "study.csv"))
    assert (found.space, found.backbone, found.points) == (SPACE, TABLE.backbone, TABLE.points)
    assert found.rewards == pytest.approx(TABLE.rewards)


def test_networks_trained_again_are_averaged_and_failed_ones_left_out(tmp_path):
    path = written(TABLE, tmp_path / "study.csv")
    rows = pd.read_csv(path)
    again, failed = rows.iloc[:1].copy(), rows.iloc[5:6].copy()
    again["top1"] += 0.1
    failed["top1"] = float("nan")
    pd.concat([rows.drop(index=5), again, failed]).to_csv(path, index=False)
    found = read(path)
    assert len(found.points) == len(TABLE.points) - 1
    assert found.top1[0] == pytest.approx(TABLE.top1[0] + 0.05)


def test_tables_that_are_none_are_refused(tmp_path):
    path = written(TABLE, tmp_path / "study.csv")
    rows = pd.read_csv(path)
    rows.drop(columns="stage2.kind").to_csv(path, index=False)
    with pytest.raises(InputError, match=mentioning("stage2.kind", "column")):
        read(path)
    rows.assign(**{"stage2.expand": 3}).to_csv(path, index=False)
    with pytest.raises(InputError, match=mentioning("2", "stage2.expand", "'3'")):
        read(path)
    rows.head(10).to_csv(path, index=False)
    with pytest.raises(InputError, match=mentioning("10", "few")):
        read(path)


def test_what_was_learnt_holds_for_networks_that_were_never_seen():
    """Against the made-up truth, of which the table has noise on top; parameters are counted to the last one."""
    surrogate = Surrogate.fitted(TABLE)
    unseen = [SPACE.sample(Key.of(seed).fold("unseen")) for seed in range(150)]
    foretold = [surrogate.reward(point) for point in unseen]
    counted = [count_flops(SPACE.decode(point), image_size=64, num_classes=10).total for point in unseen]
    true = [
        right
        * (one.multiply_adds / 1e8 / TABLE.backbone.step_seconds) ** -0.07
        * (one.parameters / TABLE.backbone.parameters) ** -0.05
        for right, one in zip(top1(unseen), counted, strict=True)
    ]
    assert kendalltau(foretold, true).statistic > 0.6
    assert surrogate.classifier == 640 * 10 + 10


def test_agreement_is_of_networks_left_out():
    """Where accuracy is nothing but noise there is nothing to foretell, though it could be learnt by heart."""
    tau, low, high = agreement(TABLE)["top1"]
    assert 0.5 < low < tau < high < 1
    noise = Key.of(9).generator().normal(0.5, 0.05, size=len(TABLE.points))
    nothing = Table(SPACE, TABLE.backbone, TABLE.points, noise, TABLE.step_seconds, TABLE.parameters)
    found = agreement(nothing)
    tau, low, high = found["top1"]
    assert abs(tau) < 0.15
    assert low < 0 < high, "which is said: the interval holds none at all"
    assert found["step_seconds"][0] > 0.7


@pytest.mark.slow
def test_policy_gradient_and_evolution_beat_random_search():
    """At 100 trials over 8 seeds: intervals above zero."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    curves = compare(Surrogate.fitted(TABLE), seeds=8, trials=100)
    found = differences(curves)
    assert set(found) == {"policy_gradient", "evolution", "tpe"}
    assert all(low > 0 for _, low, _ in (found["policy_gradient"], found["evolution"]))
    assert all((np.diff(runs, axis=1) >= 0).all() for runs in curves.values())


def test_differences_are_paired():
    """By seeds: 1 and 2 better than a random search that varies by 100."""
    curves = {"random": np.array([[0.0], [100.0]]), "other": np.array([[1.0], [102.0]])}
    assert differences(curves) == {"other": (1.5, *interval([1.0, 2.0]))}


def test_tuning_says_which_settings_were_best(monkeypatch):
    settings = [RegularizedEvolution(population=5, tournament=5), RegularizedEvolution(population=5, tournament=1)]
    monkeypatch.setattr(samplers_replay, "POLICIES", [])
    monkeypatch.setattr(samplers_replay, "EVOLUTIONS", settings)
    monkeypatch.setattr(samplers_replay, "TUNING_SEEDS", range(1000, 1004))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scored = tune(Surrogate.fitted(TABLE), trials=25)
    assert [one for _, one in scored] == settings


def test_a_tuning_is_kept_and_the_comparison_looks_at_it(tmp_path, monkeypatch, capsys):
    """Of which table, on which seeds, every setting with its score; the seeds are none of the comparison's."""
    table = written(TABLE, tmp_path / "study.csv")
    monkeypatch.setattr(samplers_replay, "RESULTS", tmp_path)
    monkeypatch.setattr(samplers_replay, "POLICIES", [PolicyGradient(), PolicyGradient(learning_rate=0.2)])
    monkeypatch.setattr(samplers_replay, "EVOLUTIONS", [RegularizedEvolution()])
    assert samplers_replay.not_tuned(table)[0].startswith("samplers_tuned.json is not there")
    words = ["samplers_replay", table, "--trials", 2, "--tune", "--record"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    samplers_replay.main()
    kept = json.loads((tmp_path / "samplers_tuned.json").read_text())
    assert set(kept["seeds"]).isdisjoint(range(30))
    assert kept["table_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert (kept["table"], kept["trials"]) == ("study.csv", 2)
    assert sorted(row["sampler"] for row in kept["scores"]) == ["evolution", *["policy_gradient"] * 2]
    scores = [row["mean_incumbent"] for row in kept["scores"]]
    assert scores == sorted(scores, reverse=True)
    assert samplers_replay.not_tuned(table) == [], "two trials are drawn alike by all settings"
    for seeds, told in (("1001", "those from 1000 on are for --tune alone"), ("1", "takes at least 2")):
        monkeypatch.setattr(sys, "argv", ["samplers_replay", str(table), "--seeds", seeds])
        with pytest.raises(SystemExit):
            samplers_replay.main()
        assert told in capsys.readouterr().err


def test_settings_that_did_not_come_first_are_told(tmp_path, monkeypatch):
    table = written(TABLE, tmp_path / "study.csv")
    monkeypatch.setattr(samplers_replay, "RESULTS", tmp_path)
    scored = [(0.7, PolicyGradient(warmup=5)), (0.6, RegularizedEvolution()), (0.5, PolicyGradient())]
    samplers_replay.keep_tuned(table, scored, 100, "python -m ...")
    (line,) = samplers_replay.not_tuned(table)
    assert line.startswith("policy_gradient: [{'learning_rate': 0.4, 'warmup': 5, ")
    table.write_text(table.read_text() + "\n")
    assert samplers_replay.not_tuned(table)[0].startswith("samplers_tuned.json is of another table")


def test_claims_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(samplers_replay, "RESULTS", tmp_path)
    curves = {
        name: np.array([[0.1, 0.5 + shift], [0.2, 0.6 + shift], [0.3, 0.7 + 2 * shift]])
        for name, shift in {"random": 0.0, "policy_gradient": 0.1, "evolution": 0.2, "tpe": -0.1}.items()
    }
    samplers_replay.keep(TABLE, {"top1": (0.6, 0.5, 0.7)}, curves, "python -m ...")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {
        "search_policy_gradient_minus_random_reward_low",
        "search_evolution_minus_random_reward_low",
        "search_tpe_minus_random_reward_low",
        "search_surrogate_top1_tau_ratio",
    }
    assert all(claim["unit"] in SHOWN for claim in summary.values())
    claim = summary["search_surrogate_top1_tau_ratio"]
    assert (claim["low"], claim["value"], claim["high"]) == (0.5, 0.6, 0.7)
    claim = summary["search_evolution_minus_random_reward_low"]
    assert claim["value"] == claim["low"] == pytest.approx(interval([0.2, 0.2, 0.4])[0])
    assert json.loads((tmp_path / "samplers_replay.json").read_text())["trials"] == 2


def test_the_command_line(tmp_path):
    """Two seeds, a dozen trials."""
    path = written(TABLE, tmp_path / "study.csv")
    command = [sys.executable, "-m", "benchmarks.samplers_replay", str(path), "--seeds", "2", "--trials", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("200 networks; tau: top1 0.")
    assert "evolution minus random: " in done.stdout
