"""Samplers compared by replay on a synthetic study with known truth."""

import hashlib
import json
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
RANDOM = Key.of(1).fold("synthetic").generator()
EFFECTS, PAIRS = RANDOM.normal(size=WIDTH), 0.3 * np.triu(RANDOM.normal(size=(WIDTH, WIDTH)), 1)


def top1(points):
    """Synthetic top-1: an effect of every option and of every pair, between about 0.4 and 0.7."""
    ones = features(SPACE, points)
    return 0.55 + 0.01 * (ones @ EFFECTS + ((ones @ PAIRS) * ones).sum(axis=1))


def synthetic_study(num_models, noise):
    """The table of a study: the backbone and random architectures, with noise in the measured values."""
    points = [SPACE.encode(SPACE.backbone)]
    for seed in range(num_models * 2):
        point = SPACE.sample(Key.of(seed))
        points += [point] * (point not in points and len(points) < num_models)
    counted = [count_flops(SPACE.decode(point), image_size=64, num_classes=10).total for point in points]
    rng = Key.of(2).generator()
    measured = top1(points) + noise * rng.normal(size=num_models)
    seconds = [counts.multiply_adds / 1e8 * np.exp(noise * rng.normal()) for counts in counted]
    sizes = np.array([counts.parameters for counts in counted], dtype=float)
    backbone = Measurement(
        int(sizes[0]), counted[0].multiply_adds, top1=float(measured[0]), step_seconds=float(seconds[0])
    )
    return Table(SPACE, backbone, points, measured, np.array(seconds), sizes)


def write_study(table, path):
    """The two files of a recorded study."""
    rows = [
        SPACE.choices(point) | {"top1": measured, "step_seconds": seconds, "parameters": int(size)}
        for point, measured, seconds, size in zip(
            table.points, table.top1, table.step_seconds, table.parameters, strict=True
        )
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    about = {"space": SPACE.to_json(), "backbone": table.backbone.to_json()}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


@pytest.fixture(scope="module")
def study():
    """The table of 200 models. Tests may only read it."""
    return synthetic_study(200, noise=0.012)


def test_table_is_read_back_as_written(study, tmp_path):
    found = read(write_study(study, tmp_path / "study.csv"))
    assert (found.space, found.backbone, found.points) == (SPACE, study.backbone, study.points)
    assert found.rewards == pytest.approx(study.rewards)


def test_committed_study_is_read():
    found = read(record.RESULTS / "search_record.csv")
    assert len(found.points) > 150
    assert found.space.decisions == SPACE.decisions


def test_repeated_models_are_averaged_and_failed_ones_skipped(study, tmp_path):
    path = write_study(study, tmp_path / "study.csv")
    rows = pd.read_csv(path)
    repeated, failed = rows.iloc[:1].copy(), rows.iloc[5:6].copy()
    repeated["top1"] += 0.1
    failed["top1"] = float("nan")
    pd.concat([rows.drop(index=5), repeated, failed]).to_csv(path, index=False)
    found = read(path)
    assert len(found.points) == len(study.points) - 1
    assert found.top1[0] == pytest.approx(study.top1[0] + 0.05)


def test_invalid_tables_are_rejected(study, tmp_path):
    path = write_study(study, tmp_path / "study.csv")
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


def test_surrogate_ranks_unseen_models(study):
    """Against the synthetic truth without noise; parameters are exact."""
    surrogate = Surrogate.fitted(study)
    unseen = [SPACE.sample(Key.of(seed).fold("unseen")) for seed in range(150)]
    predicted = [surrogate.reward(point) for point in unseen]
    counted = [count_flops(SPACE.decode(point), image_size=64, num_classes=10).total for point in unseen]
    true = [
        measured
        * (counts.multiply_adds / 1e8 / study.backbone.step_seconds) ** -0.07
        * (counts.parameters / study.backbone.parameters) ** -0.05
        for measured, counts in zip(top1(unseen), counted, strict=True)
    ]
    assert kendalltau(predicted, true).statistic > 0.6
    assert surrogate.classifier == 640 * 10 + 10


def test_agreement_is_computed_on_held_out_models(study):
    """If accuracy is only noise, nothing can be predicted, although it could be memorized."""
    tau, low, high = agreement(study)["top1"]
    assert 0.5 < low < tau < high < 1
    noise = Key.of(9).generator().normal(0.5, 0.05, size=len(study.points))
    noise_table = Table(SPACE, study.backbone, study.points, noise, study.step_seconds, study.parameters)
    found = agreement(noise_table)
    tau, low, high = found["top1"]
    assert abs(tau) < 0.15
    assert low < 0 < high, "the interval includes zero"
    assert found["step_seconds"][0] > 0.7


@pytest.mark.slow
def test_policy_gradient_and_evolution_beat_random_search(study, monkeypatch):
    """At 100 trials over 8 seeds, with intervals above zero."""
    compared = {shown: name for shown, name in samplers_replay.SAMPLERS.items() if name != "tpe"}  # slow, runs below
    monkeypatch.setattr(samplers_replay, "SAMPLERS", compared)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    curves = compare(Surrogate.fitted(study), seeds=8, trials=100)
    found = differences(curves)
    assert set(found) == {"policy_gradient", "evolution"}
    assert all(low > 0 for _, low, _ in (found["policy_gradient"], found["evolution"]))
    assert all((np.diff(runs, axis=1) >= 0).all() for runs in curves.values())


def test_differences_are_paired():
    """Differences of 1 and 2 by seed, while random search varies by 100."""
    curves = {"random": np.array([[0.0], [100.0]]), "other": np.array([[1.0], [102.0]])}
    assert differences(curves) == {"other": (1.5, *interval([1.0, 2.0]))}


def test_tuning_names_the_best_settings(study, monkeypatch):
    settings = [RegularizedEvolution(population=5, tournament=5), RegularizedEvolution(population=5, tournament=1)]
    monkeypatch.setattr(samplers_replay, "POLICIES", [])
    monkeypatch.setattr(samplers_replay, "EVOLUTIONS", settings)
    monkeypatch.setattr(samplers_replay, "TUNING_SEEDS", range(1000, 1004))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scored = tune(Surrogate.fitted(study), trials=25)
    assert [setting for _, setting in scored] == settings


def test_tuning_is_saved_and_checked_by_the_comparison(study, tmp_path, monkeypatch, capsys):
    """With the table, the seeds and all scores; the comparison uses other seeds."""
    table = write_study(study, tmp_path / "study.csv")
    monkeypatch.setattr(samplers_replay, "RESULTS", tmp_path)
    monkeypatch.setattr(samplers_replay, "POLICIES", [PolicyGradient(), PolicyGradient(learning_rate=0.2)])
    monkeypatch.setattr(samplers_replay, "EVOLUTIONS", [RegularizedEvolution()])
    assert samplers_replay.not_tuned(table)[0].startswith("samplers_tuned.json is not there")
    args = ["samplers_replay", table, "--trials", 2, "--tune", "--record"]
    monkeypatch.setattr(sys, "argv", list(map(str, args)))
    samplers_replay.main()
    saved = json.loads((tmp_path / "samplers_tuned.json").read_text())
    assert set(saved["seeds"]).isdisjoint(range(30))
    assert saved["table_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert (saved["table"], saved["trials"]) == ("study.csv", 2)
    assert sorted(row["sampler"] for row in saved["scores"]) == ["evolution", *["policy_gradient"] * 2]
    scores = [row["mean_incumbent"] for row in saved["scores"]]
    assert scores == sorted(scores, reverse=True)
    assert samplers_replay.not_tuned(table) == [], "two trials are equal for all settings"
    for seeds, message in (("1001", "those from 1000 on are for --tune alone"), ("1", "takes at least 2")):
        monkeypatch.setattr(sys, "argv", ["samplers_replay", str(table), "--seeds", seeds])
        with pytest.raises(SystemExit):
            samplers_replay.main()
        assert message in capsys.readouterr().err


def test_settings_that_are_not_the_best_are_reported(study, tmp_path, monkeypatch):
    table = write_study(study, tmp_path / "study.csv")
    monkeypatch.setattr(samplers_replay, "RESULTS", tmp_path)
    scored = [(0.7, PolicyGradient(warmup=5)), (0.6, RegularizedEvolution()), (0.5, PolicyGradient())]
    samplers_replay.keep_tuned(table, scored, 100, "python -m ...")
    (line,) = samplers_replay.not_tuned(table)
    assert line.startswith("policy_gradient: [{'learning_rate': 0.4, 'warmup': 5, ")
    table.write_text(table.read_text() + "\n")
    assert samplers_replay.not_tuned(table)[0].startswith("samplers_tuned.json is of another table")


def test_claims_are_written(study, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(samplers_replay, "RESULTS", tmp_path)
    curves = {
        name: np.array([[0.1, 0.5 + shift], [0.2, 0.6 + shift], [0.3, 0.7 + 2 * shift]])
        for name, shift in {"random": 0.0, "policy_gradient": 0.1, "evolution": 0.2, "tpe": -0.1}.items()
    }
    samplers_replay.keep(study, {"top1": (0.6, 0.5, 0.7)}, curves, "python -m ...")
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


def test_command_line(study, tmp_path, monkeypatch, capsys):
    """Two seeds, a dozen trials."""
    path = write_study(study, tmp_path / "study.csv")
    monkeypatch.setattr(sys, "argv", ["samplers_replay", str(path), "--seeds", "2", "--trials", "12"])
    samplers_replay.main()
    told = capsys.readouterr().out
    assert told.startswith("200 networks; tau: top1 0.")
    assert "evolution minus random: " in told
    assert "tpe minus random: " in told
