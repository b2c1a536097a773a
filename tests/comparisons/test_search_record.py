"""The recorded study: what is in its table, that it goes on where it was, and what is worked out from it."""

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
from benchmarks import record, search_found, search_record, search_studies, search_trials
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

# Of no images: what tries a network is replaced where this is used.
PROXY = ProxyTask(
    get_recipe("proxy_small"), (search_trials.SEED,), SimpleNamespace(class_names=("a", "b")), None, "cpu", 0,
    Path(), Path(),
)  # fmt: skip


def test_pictures_are_shares_of_the_classes_and_always_the_same(class_folders):
    for number in range(16, 32):
        paint(class_folders / "red" / f"red_{number}.jpg", COLORS["red"], number)
    first, second = (search_record.some_pictures(str(class_folders), 32) for _ in range(2))
    assert first.digest() == second.digest()
    assert np.bincount(first.labels).tolist() == [8, 8, 16], "of blue, green and red: as there are"
    assert {name: int((first.split == name).sum()) for name in set(first.split)} == {"train": 26, "minival": 6}


def test_more_networks_begin_with_the_same_ones():
    space = small_space()
    few, many = search_record.drawn(space, 5), search_record.drawn(space, 12)
    assert many[:5] == few
    assert len(set(many)) == 12


@pytest.mark.slow
def test_a_record_goes_on_where_it_was(class_folders, tmp_path, monkeypatch, capsys):
    table, tried = tmp_path / "record.csv", search_record.tried

    def apart(*given) -> dict[str, Any]:
        """Of ten images, two networks may get as many right; the larger one counts as better by a hair."""
        found = tried(*given)
        return found | {"top1": found["top1"] + 1e-12 * found["parameters"]}

    monkeypatch.setattr(search_record, "tried", apart)

    def run(networks: int, *more: str) -> str:
        words = [
            "search_record", class_folders, "--pictures", "48", "--networks", networks, "--set", "epochs=1",
            "--set", "progressive.image_size=32", "--set", "batch_size=8", "--table", table,
            "--scratch", tmp_path / "scratch", *more,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        search_record.main()
        return capsys.readouterr().out

    def rows_of() -> list[dict[str, str]]:
        return list(csv.DictReader(table.read_text().splitlines()))

    assert run(2).count(" of 2: ") == 2
    first = rows_of()
    said = run(3, "--longer", "2", "--longer-epochs", "2", "--workers", "2")
    assert said.count(" of 3: ") == 1
    assert "Kendall's tau of 2 networks" in said
    rows = rows_of()
    # A step that is not the sum of its parts, as a busy machine's may not be, is measured again.
    steps = ("step_seconds", "step_spread", "step_foretold")
    for before, now in zip(first, rows, strict=False):
        assert {name: value for name, value in before.items() if name not in steps} == {
            name: value for name, value in now.items() if name not in steps
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
    ranks = [{"top1": place / 20, "longer": place / 20} for place in range(20)]
    assert search_record.agreement(ranks)[0] == pytest.approx(1)
    swapped = [{"top1": 0.1, "longer": 0.2}, {"top1": 0.2, "longer": 0.1}, {"top1": 0.3, "longer": 0.3}]
    tau, low, high = search_record.agreement(swapped)
    assert tau == pytest.approx(1 / 3), "two pairs of three agree, one does not"
    assert low < tau < high


@pytest.mark.parametrize("equal", ["top1", "longer"])
def test_networks_that_are_equally_good_have_no_agreement(equal):
    pairs = [{"top1": place / 20, "longer": place / 20} for place in range(20)]
    assert "search_proxy_tau_ratio" in search_record.claims([], pairs, [])
    assert search_record.claims([], [one | {equal: 0.4} for one in pairs], []) == {}


def test_a_medians_interval_is_that_of_the_median():
    """Of 0 to 100 with one far away: around 50, by order statistics the 41st to the 61st (binomial, 95 %)."""
    low, high = median_interval([*map(float, range(100)), 1e6])
    assert (low, high) == pytest.approx((40, 60), abs=2)


def test_what_was_begun_otherwise_is_refused(tmp_path):
    about = tmp_path / "about.json"
    assert begun(about, {"pictures": 1, "when": 1}, ("pictures",), "go") == {"pictures": 1, "when": 1}
    assert begun(about, {"pictures": 1, "when": 2}, ("pictures",), "go") == {"pictures": 1, "when": 1}
    with pytest.raises(SystemExit, match="of another pictures; go"):
        begun(about, {"pictures": 2, "when": 1}, ("pictures",), "go")


def test_a_setting_that_came_later_is_as_if_it_had_been_left_open(tmp_path):
    about = tmp_path / "about.json"
    begun(about, {"asked": {"epochs": 5, "eval": {"px": 64}}}, ("asked",), "go")
    open_since = {"epochs": 5, "crop": None, "eval": {"px": 64, "tta": None}}
    begun(about, {"asked": open_since}, ("asked",), "go")
    for given in ({"crop": 0}, {"eval": {"px": 64, "tta": 2}}, {"epochs": None}):
        with pytest.raises(SystemExit, match="of another asked"):
            begun(about, {"asked": open_since | given}, ("asked",), "go")


TOP1 = (0.4, 0.6, 0.5, 0.7)


def recorded(folder) -> search_record.Record:
    """A table of four networks that cost the same."""
    kept = search_record.Record(folder / "record.csv", small_space())
    for number, (point, top1) in enumerate(zip(search_record.drawn(small_space(), 4), TOP1, strict=True)):
        row = dict.fromkeys(search_record.MEASURED) | {"top1": top1, "step_seconds": 0.1, "parameters": 1_000_000}
        kept.add(number, point, row)
    return kept


def test_who_fails_when_trained_longer_counts_for_no_rank(tmp_path, monkeypatch):
    numbers = iter(range(4))

    def tried(space, point, proxy):
        assert proxy.seeds == (1,), "another one than that of the trials"
        number = next(numbers)
        if number == 2:
            return {"top1": None, "failure": "diverged: the loss"}
        return {"top1": 0.1 * number, "failure": None}

    monkeypatch.setattr(search_record, "tried", tried)
    pairs = search_record.longer(recorded(tmp_path), PROXY, 4, 9.0)
    assert [one["number"] for one in pairs] == [0, 2, 3], "by accuracy, without the third"
    assert search_record.longer(recorded(tmp_path), PROXY, 4, 9.0) == pairs, "nothing is tried again"


COMMON = search_trials.in_common(small_space(), PROXY.recipe, SimpleNamespace(digest=lambda: "digest"), PROXY)
BACKBONE = Measurement(1_000_000, 1, step_seconds=0.1, failure="not trained").to_json()


def found_in(table, count: int, **changed):
    table.with_suffix(".json").write_text(json.dumps(COMMON | {"backbone": BACKBONE} | changed))
    return search_studies.best_recorded(table, count, COMMON)


def test_random_search_is_as_long_as_the_other_one(tmp_path):
    table, points = recorded(tmp_path).table, search_record.drawn(small_space(), 4)
    assert found_in(table, 3) == small_space().decode(points[1]), "the fourth is better, but comes too late"
    assert found_in(table, 4) == small_space().decode(points[3])
    with pytest.raises(SystemExit, match=mentioning("4", "5", "study")):
        found_in(table, 5)
    with pytest.raises(SystemExit, match=mentioning("--recorded")):
        found_in(table, 3, seeds=[7])
    with pytest.raises(SystemExit, match="of another hardware"):
        found_in(table, 3, hardware="64 cores")
    assert found_in(table, 3, code="other") == small_space().decode(points[1]), "its steps are over its own backbone's"


def test_what_a_table_has_in_common_is_written_by_nobody_else(tmp_path):
    table = recorded(tmp_path).table
    with pytest.raises(SystemExit, match=mentioning("record.json")):
        search_studies.best_recorded(table, 3, COMMON)
    assert not table.with_suffix(".json").exists()


def test_a_table_whose_steps_are_not_timed_compares_with_nothing(tmp_path):
    table = recorded(tmp_path).table
    untimed = {name: COMMON[name] for name in search_trials.GONE_ON_WITH}
    table.with_suffix(".json").write_text(json.dumps(untimed))
    with pytest.raises(SystemExit, match=mentioning("steps", "timed")):
        search_studies.best_recorded(table, 3, COMMON)


@pytest.mark.parametrize("file", ["record.csv", "record_longer.json"])
def test_rows_of_nobody_knows_what_are_not_added_to(file, tmp_path):
    kept = search_record.Record(tmp_path / "record.csv", small_space())
    (tmp_path / file).write_text("[]")
    with pytest.raises(SystemExit, match=mentioning(file, "record.json")):
        kept.begin(COMMON)
    assert [one.name for one in tmp_path.iterdir()] == [file]


def test_who_crashes_has_no_row_and_is_tried_again(tmp_path, monkeypatch):
    """A kill says nothing of a network; that its loss grew without bound does."""
    became = ["diverged: the loss is inf", "crashed: the process was killed by SIGKILL", None, None]
    whole = dict.fromkeys(search_record.MEASURED)

    def tried(space, point, proxy):
        failure = became.pop(0)
        return whole | {"failure": failure, "top1": None if failure else 0.5, "seconds": 1.0}

    monkeypatch.setattr(search_record, "tried", tried)
    kept, points = (search_record.Record(tmp_path / "record.csv", small_space()), search_record.drawn(small_space(), 3))
    search_record.fill(kept, points, PROXY)
    assert [row["number"] for row in kept.rows()] == ["0", "2"]
    search_record.fill(kept, points, PROXY)
    assert [(row["number"], row["failure"] != "") for row in kept.rows()] == [
        ("0", True), ("1", False), ("2", False)
    ]  # fmt: skip


def test_crashes_in_a_row_end_the_run(tmp_path, monkeypatch):
    """What takes every process down is not the networks; four, and then one that does not, may be."""
    became = ["crashed: the process ended with code 1: SyntaxError"] * 9
    became.insert(4, "diverged: the loss is inf")
    whole = dict.fromkeys(search_record.MEASURED)
    monkeypatch.setattr(search_record, "tried", lambda *given: whole | {"failure": became.pop(0), "seconds": 1.0})
    kept, points = (
        search_record.Record(tmp_path / "record.csv", small_space()),
        search_record.drawn(small_space(), 12),
    )
    with pytest.raises(SystemExit, match=mentioning("5", "SyntaxError")):
        search_record.fill(kept, points, PROXY)
    assert not became
    assert [row["number"] for row in kept.rows()] == ["4"]


def test_nothing_is_said_of_a_torn_table(tmp_path):
    kept = recorded(tmp_path)
    search_record.refuse_torn(kept, 4, 0, 0.0)
    with pytest.raises(SystemExit, match=mentioning("2", "6", "0")):
        search_record.refuse_torn(kept, 6, 0, 0.0)
    kept.longer.write_text(json.dumps([{"number": 0, "epochs": 9.0}, {"number": 3, "epochs": 5.0}]))
    with pytest.raises(SystemExit, match=mentioning("0", "4", "1")):
        search_record.refuse_torn(kept, 4, 2, 9.0)
    kept.longer.write_text(json.dumps([{"number": number, "epochs": 9.0} for number in (0, 3)]))
    search_record.refuse_torn(kept, 4, 2, 9.0)


def test_a_copy_among_those_that_judge_is_refused_before_the_first_network(class_folders, tmp_path, monkeypatch):
    for name, color in COLORS.items():
        shutil.copytree(class_folders / name, tmp_path / "data/train" / name)
        paint(tmp_path / "data/val" / name / "judge.jpg", color, 99)
    datasets = [search_record.load_dataset(tmp_path / "data"), search_record.some_pictures(str(tmp_path / "data"), 48)]
    search_trials.refuse_copies(*datasets)
    shutil.copy(tmp_path / "data/train/red/red_00.jpg", tmp_path / "data/val/red/judge.jpg")
    monkeypatch.setattr(search_record, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(search_trials, "run_trial", lambda *given: pytest.fail("a network is tried"))
    words = [tmp_path / "data", "--pictures", 48, "--table", tmp_path / "record.csv", "--scratch", tmp_path / "scratch"]
    monkeypatch.setattr(sys, "argv", ["search_record", *map(str, words)])
    with pytest.raises(SystemExit, match="are the same image"):
        search_record.main()
    assert not list(tmp_path.glob("record*"))


def test_who_crashes_when_trained_longer_is_tried_again(tmp_path, monkeypatch):
    became = ["crashed: the process was killed by SIGTERM", None, None]

    def tried(space, point, proxy):
        failure = became.pop(0)
        return {"top1": None if failure else 0.9, "failure": failure, "step_seconds": 0.1, "step_spread": 0.1}

    monkeypatch.setattr(search_record, "tried", tried)
    assert [one["number"] for one in search_record.longer(recorded(tmp_path), PROXY, 2, 9.0)] == [3]
    assert [one["number"] for one in search_record.longer(recorded(tmp_path), PROXY, 2, 9.0)] == [3, 0]


def test_what_is_gone_on_with_computes_as_it_was_begun(class_folders, tmp_path):
    """The precision is measured, so that another moment may choose another one."""
    asked, about = search_trials.asked_recipe(["epochs=1"]), tmp_path / "about.json"
    train = search_trials.some_pictures(str(class_folders), 48).subset("train")
    first = search_trials.settled_recipe(asked, train, small_space(), about)
    assert (asked.precision, first.eval_image_size, first.model) == ("auto", 64, "auto")
    for precision in ("fp32", "bf16"):
        about.write_text(json.dumps({"recipe": first.to_json() | {"precision": precision}}))
        again = search_trials.settled_recipe(asked, train, small_space(), about)
        assert again == first.model_copy(update={"precision": precision})


def test_a_table_that_does_not_fit_is_refused_before_the_search(class_folders, tmp_path, monkeypatch):
    """As is whatever would only be known when the hours are spent."""
    table = recorded(tmp_path).table
    about = COMMON | {"backbone": BACKBONE, "recipe": PROXY.recipe.to_json()}
    table.with_suffix(".json").write_text(json.dumps(about))
    monkeypatch.setattr(search_found, "searched", lambda *given: pytest.fail("hours are spent"))
    words = [class_folders, "--pictures", 48, "--recorded", table, "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["search_found", *map(str, words)])
    with pytest.raises(SystemExit, match="of another asked, pictures"):
        search_found.main()


def test_a_study_tries_no_more_than_random_search_has(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(search_found, "searched", lambda *words: said.append(words) or small_space().backbone)
    monkeypatch.setattr(search_found, "trials_of", lambda study: [None] * 3)
    table = recorded(tmp_path).table
    table.with_suffix(".json").write_text(json.dumps(COMMON | {"backbone": BACKBONE}))
    options = SimpleNamespace(recorded=table, output=tmp_path, minutes=9.0, settings=["epochs=5"], workers=2)
    proxy = replace(PROXY, recipe=PROXY.recipe.model_copy(update={"precision": "bf16"}))
    networks = search_found.searched_both(options, tmp_path / "pictures.csv", proxy, COMMON, 4)
    settings = ["--set", "epochs=5", "--set", "precision=bf16"]
    assert said == [("policy", tmp_path / "pictures.csv", tmp_path, 9.0, settings, 4, 2)]
    assert networks[search_found.RANDOM] == small_space().decode(search_record.drawn(small_space(), 2)[1])


def test_a_claim_tells_how_it_is_had_again():
    options = SimpleNamespace(
        pictures=3000, settings=["epochs=4"], minutes=60.0, full_epochs=20.0, workers=1, recorded=Path("a/b.csv")
    )
    assert search_found.command(options) == (
        "python -m benchmarks.search_found IMAGENETTE --pictures 3000 --minutes 60 --full-epochs 20 --set epochs=4 "
        "--recorded b.csv --record"
    )
    asked = {"pictures": 3000, "networks": 200, "longer": 20, "longer_epochs": 25.0, "settings": [], "workers": 2}
    typed = (
        "python -m benchmarks.search_record IMAGENETTE --pictures 3000 --networks 200 --longer 20 --longer-epochs 25 "
        "--workers 2"
    )
    for table, more in ((search_record.TABLE, ""), (Path("a/b.csv"), " --table b.csv")):
        options = SimpleNamespace(**asked, table=table)
        assert search_record.command(options) == f"{typed}{more} --record"


def test_a_claim_that_a_table_does_not_make_is_taken_out(tmp_path, monkeypatch):
    """It was of another table, or of more networks; what else was claimed stays."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    record.record("of_others", 1.0, unit="s", low=1.0, high=1.0, n=1, command="python")
    one = {"value": 0.5, "unit": "ratio", "low": 0.4, "high": 0.6, "n": 20}
    options = SimpleNamespace(
        pictures=3000, networks=200, longer=0, longer_epochs=25.0, settings=[], workers=1, record=True,
        table=Path("a/other.csv"),
    )  # fmt: skip
    search_record.tell(dict.fromkeys(search_record.CALLED, one), [], options)
    steps = {name: one for name in search_record.CALLED if name != "search_proxy_tau_ratio"}
    search_record.tell(steps, [], options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {"of_others", *steps}
    assert summary["search_step_foretold_error"]["command"].endswith(" --table other.csv --record")


def test_networks_take_turns(tmp_path, monkeypatch):
    """A machine that grows slower over the hours is as slow for the last network as for the first."""
    came = []
    found, base = search_found.smallest(small_space()), small_space().backbone

    def trained(network, proxy, seed):
        came.append((network, seed))
        return Measurement(len(came), 1, top1=0.5, step_seconds=0.1)

    monkeypatch.setattr(search_found, "trained", trained)
    kept = tmp_path / "trained.json"
    runs = search_found.judged({"found": found, "V2-B0": base}, PROXY, kept)
    assert came == [(network, seed) for seed in search_found.SEEDS for network in (found, base)]
    assert [one.parameters for one in runs["found"]] == [1, 3, 5]
    assert [one.parameters for one in runs["V2-B0"]] == [2, 4, 6]
    assert search_found.judged({"found": found, "V2-B0": base}, PROXY, kept) == runs
    assert len(came) == 6, "what is kept is not trained again"


def test_another_network_of_the_same_name_is_trained(tmp_path, monkeypatch):
    """As what a study finds that was done again; so is what was kept by the name alone."""
    came, kept = [], tmp_path / "trained.json"
    one = Measurement(1, 1, top1=0.5, step_seconds=0.1)
    monkeypatch.setattr(search_found, "SEEDS", (1,))
    monkeypatch.setattr(search_found, "trained", lambda network, proxy, seed: came.append(network) or one)
    kept.write_text(json.dumps({"found, seed 1": one.to_json()}))
    first, other = (small_space().decode(point) for point in search_record.drawn(small_space(), 2))
    for network in (first, other, first):
        assert search_found.judged({"found": network}, PROXY, kept) == {"found": [one]}
    assert came == [first, other]


def test_two_train_at_once_and_whoever_has_enough_ends_both():
    both, began = threading.Barrier(2, timeout=60), []

    def trial(key):
        began.append(key)
        both.wait()
        return 10 * key

    assert sorted(at_once([1, 2, 3, 4], trial, 2)) == [(1, 10), (2, 20), (3, 30), (4, 40)]
    began.clear()

    def longer(key):  # else many are done before this thread has its turn
        began.append(key)
        time.sleep(0.2)
        return key

    with closing(at_once(range(100), longer, 2)) as found:
        next(found)
    assert len(began) < 10, "no more are begun"
    four = replace(PROXY, threads=4)
    assert [search_trials.sharing(four, workers).training_threads for workers in (1, 2, 8)] == [4, 2, 1]
    assert search_trials.sharing(four, 2).threads == 4, "steps are timed with all"


def test_a_study_that_ends_badly_ends_the_measurement(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        search_studies.effnetv2_search("show", str(tmp_path / "nowhere"))
    assert ended.value.code == 2
    assert mentions(capsys.readouterr().err, "no study")


def test_a_study_that_was_killed_has_the_minutes_that_are_left(tmp_path, monkeypatch):
    said = []

    def effnetv2(*words: str) -> None:
        said.append(words)
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(small_space().backbone.to_json()))

    def trials(study):
        return [SimpleNamespace(seconds=90.0), SimpleNamespace(seconds=30.0)]

    monkeypatch.setattr(search_studies, "effnetv2_search", effnetv2)
    monkeypatch.setattr(search_studies, "trials_of", trials)
    search_studies.searched("policy", tmp_path / "pictures.csv", tmp_path, 5.0, [])
    assert [words[0] for words in said] == ["run", "export"]
    assert said[0][said[0].index("--minutes") + 1] == "3.0"
    assert said[0][said[0].index("--trials") + 1] == "1000000", "its minutes end it"
    assert said[0][said[0].index("--device") + 1] == "cpu", "as the table, and those that judge"
    assert "--threads" not in said[0]
    (tmp_path / "policy.yaml").unlink()
    search_studies.searched("policy", tmp_path / "pictures.csv", tmp_path, 2.0, [])
    assert [words[0] for words in said[2:]] == ["export"], "its time is up"


def test_two_workers_share_the_threads_and_the_minutes(tmp_path, monkeypatch):
    """Their trials' seconds are of two: five minutes less two half minutes of theirs."""
    said = []
    monkeypatch.setattr(search_studies, "together", lambda workers, words: said.append((workers, words)))
    monkeypatch.setattr(search_studies, "effnetv2_search", lambda *words: None)
    monkeypatch.setattr(search_studies, "trials_of", lambda study: [SimpleNamespace(seconds=60.0)] * 2)
    monkeypatch.setattr(search_studies, "read_architecture", lambda file: small_space().backbone)
    monkeypatch.setattr(search_studies.torch, "get_num_threads", lambda: 4)
    search_studies.searched("policy", tmp_path / "pictures.csv", tmp_path, 5.0, [], workers=2)
    (workers, words) = said[0]
    assert workers == 2
    assert words[words.index("--threads") + 1] == "2"
    assert words[words.index("--minutes") + 1] == "4.0"


def test_a_run_that_fails_is_no_accuracy(tmp_path, monkeypatch):
    failed = TrialResult(None, (), None, Failed("crashed", "the process was killed by SIGKILL", 0))
    monkeypatch.setattr(search_found, "run_trial", lambda network, proxy: failed)
    kept = tmp_path / "trained.json"
    with pytest.raises(SystemExit, match=mentioning("1", "seed")):
        search_found.judged({"found": small_space().backbone}, PROXY, kept)
    assert not kept.exists()


def test_those_that_judge_have_seeds_of_their_own():
    assert search_trials.SEED not in search_found.SEEDS
    assert search_trials.SEED != search_record.LONGER_SEED


def test_the_smallest_network_has_no_smaller_one_in_the_space():
    space = small_space()
    least = count_flops(search_found.smallest(space), image_size=64, num_classes=10).total.parameters
    for point in search_record.drawn(space, 300):
        assert count_flops(space.decode(point), image_size=64, num_classes=10).total.parameters >= least


def test_the_table_takes_differences_seed_by_seed():
    base = Measurement(1_000_000, 1, top1=0.5, step_seconds=0.1)
    runs = {
        "V2-B0": [replace(base, top1=top1) for top1 in (0.5, 0.6, 0.7)],
        "found": [replace(base, top1=top1 + 0.1, step_seconds=0.2) for top1 in (0.5, 0.6, 0.7)],
    }
    rows = search_found.compared(runs)
    assert rows["V2-B0"]["reward"] == pytest.approx(0.6), "over itself its reward is its accuracy"
    slower = Reward().compute(replace(base, top1=1.0, step_seconds=0.2), base)
    assert rows["found"]["minus_v2b0"] == pytest.approx([0.6 * slower - 0.5, 0.7 * slower - 0.6, 0.8 * slower - 0.7])
