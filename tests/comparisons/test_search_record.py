"""The recorded study: its table, its continuation and the results computed from it."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from benchmarks import record, search_found, search_record, search_steps, search_studies, search_trials
from benchmarks.at_once import at_once
from benchmarks.record import begun, median_interval
from tests.conftest import COLORS, paint
from tests.messages import mentioning, mentions

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.nas.objective import Measurement, Reward
from efficientnetv2.nas.proxy_task import ProxyTask
from efficientnetv2.nas.space import small_space
from efficientnetv2.nas.trial import Failed, TrialResult
from efficientnetv2.training.recipes import get_recipe

# Without images: trials are simulated in the tests.
PROXY = ProxyTask(
    get_recipe("proxy_small"), (search_trials.SEED,), SimpleNamespace(class_names=("a", "b")), None, "cpu", 0,
    Path(), Path(),
)  # fmt: skip


def test_sample_has_the_class_fractions_and_is_deterministic(class_folders):
    for number in range(16, 32):
        paint(class_folders / "red" / f"red_{number}.jpg", COLORS["red"], number)
    first, second = (search_record.some_pictures(str(class_folders), 32) for _ in range(2))
    assert first.digest() == second.digest()
    assert np.bincount(first.labels).tolist() == [8, 8, 16], "as in the folders blue, green and red"
    assert {name: int((first.split == name).sum()) for name in set(first.split)} == {"train": 26, "minival": 6}


def test_more_models_start_with_the_same_ones():
    space = small_space()
    few, many = search_record.drawn(space, 5), search_record.drawn(space, 12)
    assert many[:5] == few
    assert len(set(many)) == 12


@pytest.mark.slow
def test_record_is_continued(class_folders, tmp_path, monkeypatch, capsys):
    table, tried = tmp_path / "record.csv", search_record.tried

    def without_ties(*args) -> dict[str, Any]:
        """With ten images, two models may have the same top-1; the larger model is counted as slightly better."""
        found = tried(*args)
        return found | {"top1": found["top1"] + 1e-12 * found["parameters"]}

    monkeypatch.setattr(search_record, "tried", without_ties)
    monkeypatch.setattr(search_trials, "_TIMED", 1)
    monkeypatch.setattr(search_steps, "_TWICE", 1)

    def run(networks: int, *more: str) -> str:
        args = [
            "search_record", class_folders, "--pictures", "48", "--networks", networks, "--set", "epochs=1",
            "--set", "progressive.image_size=32", "--set", "batch_size=8", "--table", table,
            "--scratch", tmp_path / "scratch", *more,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(arg) for arg in args])
        search_record.main()
        return capsys.readouterr().out

    def test_rows_without_common_facts_are_not_extended() -> list[dict[str, str]]:
        return list(csv.DictReader(table.read_text().splitlines()))

    assert run(2).count(" of 2: ") == 2
    first = test_rows_without_common_facts_are_not_extended()
    output = run(3, "--longer", "2", "--longer-epochs", "2", "--workers", "2")
    assert output.count(" of 3: ") == 1
    assert "Kendall's tau of 2 networks" in output
    rows = test_rows_without_common_facts_are_not_extended()
    # A step time that is not the sum of its parts, for example on a busy machine, is measured again.
    steps = ("step_seconds", "step_spread", "step_foretold")
    for first_row, row_ in zip(first, rows, strict=False):
        assert {name: value for name, value in first_row.items() if name not in steps} == {
            name: value for name, value in row_.items() if name not in steps
        }
    assert all(float(row["step_seconds"]) > 0 for row in rows)
    space, about = small_space(), json.loads(table.with_suffix(".json").read_text())
    for row, point in zip(rows, search_record.drawn(space, 3), strict=True):
        counted = count_flops(space.decode(point), image_size=32, num_classes=3).total
        assert int(row["parameters"]) == counted.parameters
        assert {name: row[name] for name, _ in space.decisions} == {
            name: str(value) for name, value in space.choices(point).items()
        }
    assert about["counts"] == {"train": 38, "choosing": 10}
    assert Measurement.from_json(about["backbone"]).step_seconds > 0


def test_agreement_is_kendalls_tau_with_its_interval():
    ranks = [{"top1": rank / 20, "longer": rank / 20} for rank in range(20)]
    assert search_record.agreement(ranks)[0] == pytest.approx(1)
    swapped = [{"top1": 0.1, "longer": 0.2}, {"top1": 0.2, "longer": 0.1}, {"top1": 0.3, "longer": 0.3}]
    tau, low, high = search_record.agreement(swapped)
    assert tau == pytest.approx(1 / 3), "two pairs of three agree, one does not"
    assert low < tau < high


@pytest.mark.parametrize("equal", ["top1", "longer"])
def test_models_of_equal_accuracy_have_no_agreement(equal):
    pairs = [{"top1": rank / 20, "longer": rank / 20} for rank in range(20)]
    assert "search_proxy_tau_ratio" in search_record.claims([], pairs, [])
    assert search_record.claims([], [pair | {equal: 0.4} for pair in pairs], []) == {}


def test_interval_of_a_median():
    """Of 0 to 99 and one outlier: about 50, by order statistics from the 41st to the 61st (binomial, 95 %)."""
    low, high = median_interval([*map(float, range(100)), 1e6])
    assert (low, high) == pytest.approx((40, 60), abs=2)


def test_another_config_is_rejected(tmp_path):
    about = tmp_path / "about.json"
    assert begun(about, {"pictures": 1, "when": 1}, ("pictures",), "go") == {"pictures": 1, "when": 1}
    assert begun(about, {"pictures": 1, "when": 2}, ("pictures",), "go") == {"pictures": 1, "when": 1}
    with pytest.raises(SystemExit, match="of another pictures; go"):
        begun(about, {"pictures": 2, "when": 1}, ("pictures",), "go")


def test_new_options_equal_their_default_in_older_records(tmp_path):
    about = tmp_path / "about.json"
    begun(about, {"asked": {"epochs": 5, "eval": {"px": 64}}}, ("asked",), "go")
    with_defaults = {"epochs": 5, "crop": None, "eval": {"px": 64, "tta": None}}
    begun(about, {"asked": with_defaults}, ("asked",), "go")
    for changes in ({"crop": 0}, {"eval": {"px": 64, "tta": 2}}, {"epochs": None}):
        with pytest.raises(SystemExit, match="of another asked"):
            begun(about, {"asked": with_defaults | changes}, ("asked",), "go")


TOP1 = (0.4, 0.6, 0.5, 0.7)


def write_record(folder) -> search_record.Record:
    """A table of four models of the same cost."""
    record_ = search_record.Record(folder / "record.csv", small_space())
    for number, (point, top1) in enumerate(zip(search_record.drawn(small_space(), 4), TOP1, strict=True)):
        row = dict.fromkeys(search_record.MEASURED) | {"top1": top1, "step_seconds": 0.1, "parameters": 1_000_000}
        record_.add(number, point, row)
    return record_


def test_model_that_fails_in_longer_training_has_no_rank(tmp_path, monkeypatch):
    numbers = iter(range(4))

    def tried(space, point, proxy):
        assert proxy.seeds == (1,), "another seed than that of the trials"
        number = next(numbers)
        if number == 2:
            return {"top1": None, "failure": "diverged: the loss"}
        return {"top1": 0.1 * number, "failure": None}

    monkeypatch.setattr(search_record, "tried", tried)
    pairs = search_record.longer(write_record(tmp_path), PROXY, 4, 9.0)
    assert [pair["number"] for pair in pairs] == [0, 2, 3], "by accuracy, without the failed model"
    assert search_record.longer(write_record(tmp_path), PROXY, 4, 9.0) == pairs, "no trial is repeated"


COMMON = search_trials.in_common(small_space(), PROXY.recipe, SimpleNamespace(digest=lambda: "digest"), PROXY)
BACKBONE = Measurement(1_000_000, 1, step_seconds=0.1, failure="not trained").to_json()


def best_of(table, count: int, **changes):
    table.with_suffix(".json").write_text(json.dumps(COMMON | {"backbone": BACKBONE} | changes))
    return search_studies.best_recorded(table, count, COMMON)


def test_random_search_has_as_many_trials_as_the_study(tmp_path):
    table, points = write_record(tmp_path).table, search_record.drawn(small_space(), 4)
    assert best_of(table, 3) == small_space().decode(points[1]), "the fourth is better but not among the first three"
    assert best_of(table, 4) == small_space().decode(points[3])
    with pytest.raises(SystemExit, match=mentioning("4", "5", "study")):
        best_of(table, 5)
    with pytest.raises(SystemExit, match=mentioning("--recorded")):
        best_of(table, 3, seeds=[7])
    with pytest.raises(SystemExit, match="of another hardware"):
        best_of(table, 3, hardware="64 cores")
    assert best_of(table, 3, code="other") == small_space().decode(points[1]), (
        "step times are relative to the backbone of the table"
    )


def test_missing_file_of_common_facts_is_not_created(tmp_path):
    table = write_record(tmp_path).table
    with pytest.raises(SystemExit, match=mentioning("record.json")):
        search_studies.best_recorded(table, 3, COMMON)
    assert not table.with_suffix(".json").exists()


def test_table_without_step_times_is_rejected(tmp_path):
    table = write_record(tmp_path).table
    common = {name: COMMON[name] for name in search_trials.GONE_ON_WITH}
    table.with_suffix(".json").write_text(json.dumps(common))
    with pytest.raises(SystemExit, match=mentioning("steps", "timed")):
        search_studies.best_recorded(table, 3, COMMON)


@pytest.mark.parametrize("file", ["record.csv", "record_longer.json"])
def test_rows_without_their_other_file_are_not_extended(file, tmp_path):
    record_ = search_record.Record(tmp_path / "record.csv", small_space())
    (tmp_path / file).write_text("[]")
    with pytest.raises(SystemExit, match=mentioning(file, "record.json")):
        record_.begin(COMMON)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_crashed_trial_has_no_row_and_is_repeated(tmp_path, monkeypatch):
    """A killed process is not a result of the model. Diverged training is."""
    failures = ["diverged: the loss is inf", "crashed: the process was killed by SIGKILL", None, None]
    empty = dict.fromkeys(search_record.MEASURED)

    def tried(space, point, proxy):
        failure = failures.pop(0)
        return empty | {"failure": failure, "top1": None if failure else 0.5, "seconds": 1.0}

    monkeypatch.setattr(search_record, "tried", tried)
    record_, points = (
        search_record.Record(tmp_path / "record.csv", small_space()),
        search_record.drawn(small_space(), 3),
    )
    search_record.fill(record_, points, PROXY)
    assert [row["number"] for row in record_.rows()] == ["0", "2"]
    search_record.fill(record_, points, PROXY)
    assert [(row["number"], row["failure"] != "") for row in record_.rows()] == [
        ("0", True), ("1", False), ("2", False)
    ]  # fmt: skip


def test_five_crashes_in_a_row_end_the_run(tmp_path, monkeypatch):
    """The cause is not the models. Four crashes before another result do not end it."""
    failures = ["crashed: the process ended with code 1: SyntaxError"] * 9
    failures.insert(4, "diverged: the loss is inf")
    empty = dict.fromkeys(search_record.MEASURED)
    monkeypatch.setattr(search_record, "tried", lambda *_: empty | {"failure": failures.pop(0), "seconds": 1.0})
    record_, points = (
        search_record.Record(tmp_path / "record.csv", small_space()),
        search_record.drawn(small_space(), 12),
    )
    with pytest.raises(SystemExit, match=mentioning("5", "SyntaxError")):
        search_record.fill(record_, points, PROXY)
    assert not failures
    assert [row["number"] for row in record_.rows()] == ["4"]


def test_incomplete_table_gives_no_results(tmp_path):
    record_ = write_record(tmp_path)
    search_record.refuse_torn(record_, 4, 0, 0.0)
    with pytest.raises(SystemExit, match=mentioning("2", "6", "0")):
        search_record.refuse_torn(record_, 6, 0, 0.0)
    record_.longer.write_text(json.dumps([{"number": 0, "epochs": 9.0}, {"number": 3, "epochs": 5.0}]))
    with pytest.raises(SystemExit, match=mentioning("0", "4", "1")):
        search_record.refuse_torn(record_, 4, 2, 9.0)
    record_.longer.write_text(json.dumps([{"number": number, "epochs": 9.0} for number in (0, 3)]))
    search_record.refuse_torn(record_, 4, 2, 9.0)


def test_duplicate_in_the_evaluation_images_is_rejected_before_the_first_trial(class_folders, tmp_path, monkeypatch):
    for name, color in COLORS.items():
        shutil.copytree(class_folders / name, tmp_path / "data/train" / name)
        paint(tmp_path / "data/val" / name / "eval.jpg", color, 99)
    datasets = [search_record.load_dataset(tmp_path / "data"), search_record.some_pictures(str(tmp_path / "data"), 48)]
    search_trials.refuse_copies(*datasets)
    shutil.copy(tmp_path / "data/train/red/red_00.jpg", tmp_path / "data/val/red/eval.jpg")
    monkeypatch.setattr(search_record, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(search_trials, "run_trial", lambda *_: pytest.fail("a trial was started"))
    args = [tmp_path / "data", "--pictures", 48, "--table", tmp_path / "record.csv", "--scratch", tmp_path / "scratch"]
    monkeypatch.setattr(sys, "argv", ["search_record", *map(str, args)])
    with pytest.raises(SystemExit, match="are the same image"):
        search_record.main()
    assert not list(tmp_path.glob("record*"))


def test_crashed_longer_training_is_repeated(tmp_path, monkeypatch):
    failures = ["crashed: the process was killed by SIGTERM", None, None]

    def tried(space, point, proxy):
        failure = failures.pop(0)
        return {"top1": None if failure else 0.9, "failure": failure, "step_seconds": 0.1, "step_spread": 0.1}

    monkeypatch.setattr(search_record, "tried", tried)
    assert [pair["number"] for pair in search_record.longer(write_record(tmp_path), PROXY, 2, 9.0)] == [3]
    assert [pair["number"] for pair in search_record.longer(write_record(tmp_path), PROXY, 2, 9.0)] == [3, 0]


def test_continued_study_has_the_saved_precision(class_folders, tmp_path):
    """The precision is measured and may differ the next time."""
    requested, about = search_trials.asked_recipe(["epochs=1"]), tmp_path / "about.json"
    train = search_trials.some_pictures(str(class_folders), 48).subset("train")
    first = search_trials.settled_recipe(requested, train, small_space(), about)
    assert (requested.precision, first.eval_image_size, first.model) == ("auto", 64, "auto")
    for precision in ("fp32", "bf16"):
        about.write_text(json.dumps({"recipe": first.to_json() | {"precision": precision}}))
        second = search_trials.settled_recipe(requested, train, small_space(), about)
        assert second == first.model_copy(update={"precision": precision})


def test_table_that_does_not_fit_is_rejected_before_the_search(class_folders, tmp_path, monkeypatch):
    """Other errors that depend only on the table are also reported before the search."""
    table = write_record(tmp_path).table
    about = COMMON | {"backbone": BACKBONE, "recipe": PROXY.recipe.to_json()}
    table.with_suffix(".json").write_text(json.dumps(about))
    monkeypatch.setattr(search_found, "searched", lambda *_: pytest.fail("was searched"))
    args = [class_folders, "--pictures", 48, "--recorded", table, "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["search_found", *map(str, args)])
    with pytest.raises(SystemExit, match="of another asked, pictures"):
        search_found.main()


def test_study_has_no_more_trials_than_random_search(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(search_found, "searched", lambda *args: calls.append(args) or small_space().backbone)
    monkeypatch.setattr(search_found, "trials_of", lambda study: [None] * 3)
    table = write_record(tmp_path).table
    table.with_suffix(".json").write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    options = SimpleNamespace(recorded=table, output=tmp_path, minutes=9.0, settings=["epochs=5"], workers=2)
    proxy = replace(PROXY, recipe=PROXY.recipe.model_copy(update={"precision": "bf16"}))
    architectures = search_found.searched_both(options, tmp_path / "pictures.csv", proxy, COMMON, 4)
    settings = ["--set", "epochs=5", "--set", "precision=bf16"]
    assert calls == [("policy", tmp_path / "pictures.csv", tmp_path, 9.0, settings, 4, 2)]
    assert architectures[search_found.RANDOM] == small_space().decode(search_record.drawn(small_space(), 2)[1])


def test_claim_has_its_command():
    options = SimpleNamespace(
        pictures=3000, settings=["epochs=4"], minutes=60.0, full_epochs=20.0, workers=1, recorded=Path("a/b.csv")
    )
    assert search_found.command(options) == (
        "python -m benchmarks.search_found IMAGENETTE --pictures 3000 --minutes 60 --full-epochs 20 --set epochs=4 "
        "--recorded b.csv --record"
    )
    fields = {"pictures": 3000, "networks": 200, "longer": 20, "longer_epochs": 25.0, "settings": [], "workers": 2}
    command = (
        "python -m benchmarks.search_record IMAGENETTE --pictures 3000 --networks 200 --longer 20 --longer-epochs 25 "
        "--workers 2"
    )
    for table, more in ((search_record.TABLE, ""), (Path("a/b.csv"), " --table b.csv")):
        options = SimpleNamespace(**fields, table=table)
        assert search_record.command(options) == f"{command}{more} --record"


def test_claim_that_the_table_does_not_give_is_removed(tmp_path, monkeypatch):
    """It was a claim of another table. Claims of other scripts are unchanged."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    record.record("of_others", 1.0, unit="s", low=1.0, high=1.0, n=1, command="python")
    claim = {"value": 0.5, "unit": "ratio", "low": 0.4, "high": 0.6, "n": 20}
    options = SimpleNamespace(
        pictures=3000, networks=200, longer=0, longer_epochs=25.0, settings=[], workers=1, record=True,
        table=Path("a/other.csv"),
    )  # fmt: skip
    search_record.tell(dict.fromkeys(search_record.CALLED, claim), [], options)
    steps = {name: claim for name in search_record.CALLED if name != "search_proxy_tau_ratio"}
    search_record.tell(steps, [], options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {"of_others", *steps}
    assert summary["search_step_foretold_error"]["command"].endswith(" --table other.csv --record")


def test_models_are_trained_alternately(tmp_path, monkeypatch):
    """A machine that becomes slower affects all models equally."""
    order = []
    found, base = search_found.smallest(small_space()), small_space().backbone

    def trained(architecture, proxy, seed):
        order.append((architecture, seed))
        return Measurement(len(order), 1, top1=0.5, step_seconds=0.1)

    monkeypatch.setattr(search_found, "trained", trained)
    path = tmp_path / "trained.json"
    runs = search_found.judged({"found": found, "V2-B0": base}, PROXY, path)
    assert order == [(architecture, seed) for seed in search_found.SEEDS for architecture in (found, base)]
    assert [result.parameters for result in runs["found"]] == [1, 3, 5]
    assert [result.parameters for result in runs["V2-B0"]] == [2, 4, 6]
    assert search_found.judged({"found": found, "V2-B0": base}, PROXY, path) == runs
    assert len(order) == 6, "saved results are not repeated"


def test_another_architecture_of_the_same_name_is_trained(tmp_path, monkeypatch):
    """Also if an older result was saved only by name."""
    trained, path = [], tmp_path / "trained.json"
    result = Measurement(1, 1, top1=0.5, step_seconds=0.1)
    monkeypatch.setattr(search_found, "SEEDS", (1,))
    monkeypatch.setattr(
        search_found, "trained", lambda architecture, proxy, seed: trained.append(architecture) or result
    )
    path.write_text(json.dumps({"found, seed 1": result.to_json()}))
    first, other = (small_space().decode(point) for point in search_record.drawn(small_space(), 2))
    for architecture in (first, other, first):
        assert search_found.judged({"found": architecture}, PROXY, path) == {"found": [result]}
    assert trained == [first, other]


def test_two_trials_run_at_once_and_closing_ends_both():
    both, started = threading.Barrier(2, timeout=60), []

    def trial(key):
        started.append(key)
        both.wait()
        return 10 * key

    assert sorted(at_once([1, 2, 3, 4], trial, 2)) == [(1, 10), (2, 20), (3, 30), (4, 40)]
    started.clear()

    def longer(key):  # otherwise many end before this thread continues
        started.append(key)
        time.sleep(0.2)
        return key

    with closing(at_once(range(100), longer, 2)) as found:
        next(found)
    assert len(started) < 10, "no further trials start"
    four = replace(PROXY, threads=4)
    assert [search_trials.sharing(four, workers).training_threads for workers in (1, 2, 8)] == [4, 2, 1]
    assert search_trials.sharing(four, 2).threads == 4, "steps are timed with all threads"


def test_failed_study_ends_the_measurement(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        search_studies.effnetv2_search("show", str(tmp_path / "nowhere"))
    assert exit_.value.code == 2
    assert mentions(capsys.readouterr().err, "no study")


def test_killed_study_resumes_with_the_remaining_minutes(tmp_path, monkeypatch):
    calls = []

    def effnetv2(*args: str) -> None:
        calls.append(args)
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(small_space().backbone.to_json()))

    def trials(study):
        return [SimpleNamespace(seconds=90.0), SimpleNamespace(seconds=30.0)]

    monkeypatch.setattr(search_studies, "effnetv2_search", effnetv2)
    monkeypatch.setattr(search_studies, "trials_of", trials)
    search_studies.searched("policy", tmp_path / "pictures.csv", tmp_path, 5.0, [])
    assert [args[0] for args in calls] == ["run", "export"]
    assert calls[0][calls[0].index("--minutes") + 1] == "3.0"
    assert calls[0][calls[0].index("--trials") + 1] == "1000000", "the minutes end the study"
    assert calls[0][calls[0].index("--device") + 1] == "cpu", "as for the table"
    assert "--threads" not in calls[0]
    (tmp_path / "policy.yaml").unlink()
    search_studies.searched("policy", tmp_path / "pictures.csv", tmp_path, 2.0, [])
    assert [args[0] for args in calls[2:]] == ["export"], "no time left"


def test_two_workers_share_threads_and_minutes(tmp_path, monkeypatch):
    """Seconds of trials are of both workers: five minutes minus two times half a minute."""
    calls = []
    monkeypatch.setattr(search_studies, "together", lambda workers, args: calls.append((workers, args)))
    monkeypatch.setattr(search_studies, "effnetv2_search", lambda *_: None)
    monkeypatch.setattr(search_studies, "trials_of", lambda study: [SimpleNamespace(seconds=60.0)] * 2)
    monkeypatch.setattr(search_studies, "read_architecture", lambda file: small_space().backbone)
    monkeypatch.setattr(search_studies.torch, "get_num_threads", lambda: 4)
    search_studies.searched("policy", tmp_path / "pictures.csv", tmp_path, 5.0, [], workers=2)
    (workers, args) = calls[0]
    assert workers == 2
    assert args[args.index("--threads") + 1] == "2"
    assert args[args.index("--minutes") + 1] == "4.0"


def test_failed_run_has_no_accuracy(tmp_path, monkeypatch):
    failed = TrialResult(None, (), None, Failed("crashed", "the process was killed by SIGKILL", 0))
    monkeypatch.setattr(search_found, "run_trial", lambda architecture, proxy: failed)
    path = tmp_path / "trained.json"
    with pytest.raises(SystemExit, match=mentioning("1", "seed")):
        search_found.judged({"found": small_space().backbone}, PROXY, path)
    assert not path.exists()


def test_final_evaluation_has_other_seeds_than_the_trials():
    assert search_trials.SEED not in search_found.SEEDS
    assert search_trials.SEED != search_record.LONGER_SEED


def test_smallest_architecture_is_the_smallest_of_the_space():
    space = small_space()
    num_parameters = count_flops(search_found.smallest(space), image_size=64, num_classes=10).total.parameters
    for point in search_record.drawn(space, 300):
        assert count_flops(space.decode(point), image_size=64, num_classes=10).total.parameters >= num_parameters


def test_table_has_differences_paired_by_seed():
    base = Measurement(1_000_000, 1, top1=0.5, step_seconds=0.1)
    runs = {
        "V2-B0": [replace(base, top1=top1) for top1 in (0.5, 0.6, 0.7)],
        "found": [replace(base, top1=top1 + 0.1, step_seconds=0.2) for top1 in (0.5, 0.6, 0.7)],
    }
    rows = search_found.compared(runs)
    assert rows["V2-B0"]["reward"] == pytest.approx(0.6), "its reward is its accuracy"
    slower = Reward().compute(replace(base, top1=1.0, step_seconds=0.2), base)
    assert rows["found"]["minus_v2b0"] == pytest.approx([0.6 * slower - 0.5, 0.7 * slower - 0.6, 0.8 * slower - 0.7])
