"""What is recorded is the whole measurement, next to the command that prints it; nothing is measured here."""

from __future__ import annotations

import itertools
import json
import re
import sys
from types import SimpleNamespace

import pytest
from benchmarks import epoch, gpu, input_path, kept_memory, loop_overhead, record, shard_index, shards, train_step
from tests.messages import mentions

from efficientnetv2.utils.benchmark import TimingStats


@pytest.fixture
def summary(tmp_path, monkeypatch):
    """What was recorded, by name; not in the repository's own summary."""
    for module in (record, epoch, train_step, shards, shard_index, input_path, gpu):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setitem(sys.modules, "record", record)  # as a script finds it next to itself
    return lambda: json.loads((tmp_path / "summary.json").read_text())


def run(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """Two sides of an epoch, of one image; words of the command line for it."""
    (tmp_path / "set/train/a").mkdir(parents=True)
    (tmp_path / "set/train/a/1.jpg").write_bytes(b"")
    monkeypatch.setattr(epoch.Timm, "tuned", lambda self: {("channels-last", "1"): 0.1})
    monkeypatch.setattr(epoch.Timm, "seconds_per_image", lambda self, more, most: 0.2)
    monkeypatch.setattr(epoch, "our_epoch", lambda pictures, px, batch: (0.1, 0.03, {}))
    return tmp_path / "set", "train.py", "--record"


@pytest.mark.parametrize(("rounds", "more"), [(2, ""), (3, " --rounds 3")])
def test_an_epochs_claims_name_the_rounds_that_they_are_of(rounds, more, timed, summary, monkeypatch):
    run(epoch, monkeypatch, *timed, "--rounds", rounds)
    command = f"python -m benchmarks.epoch IMAGENETTE TIMM_TRAIN_PY{more} --record"
    assert {(claim["command"], claim["n"]) for claim in summary().values()} == {(command, rounds)}
    assert summary()["epoch_vs_timm_train_script"]["value"] == 2


def test_timm_at_its_best_has_the_optimizer_of_ours(timed, summary, monkeypatch):
    """As the documentation has it, its own."""
    asked = []
    monkeypatch.setattr(epoch.Timm, "seconds_per_image", lambda self, more, most: asked.append(more) or 0.2)
    run(epoch, monkeypatch, *timed, "--rounds", 1)
    documented, best = asked
    assert documented == ["-j", "4"]
    assert best == ["--opt", "adamw", "--opt-kwargs", "fused=True", "--channels-last", "-j", "1"]


@pytest.mark.parametrize(
    "words", [("--image-size", 64), ("--batch-size", 32), ("--updates", 10), ("--tune-updates", 3)]
)
def test_another_epoch_is_not_recorded(words, timed, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(epoch, monkeypatch, *timed, *words)
    assert mentions(capsys.readouterr().err, "--record", "128", "64")
    run(epoch, monkeypatch, *timed[:2], *words)


@pytest.mark.parametrize(("rounds", "more"), [(5, ""), (7, " --rounds 7")])
def test_the_loops_claim_names_the_rounds_that_it_is_of(rounds, more, summary, monkeypatch):
    for side in ("bare", "ours"):
        monkeypatch.setattr(loop_overhead, side, lambda *given: itertools.repeat(None))
    run(loop_overhead, monkeypatch, "--record", "--rounds", rounds)
    claim = summary()["loop_over_bare_loop_ratio"]
    assert (claim["command"], claim["n"]) == (f"python benchmarks/loop_overhead.py{more}", rounds)


@pytest.mark.parametrize("words", [("--image-size", 64), ("--batch-size", 32), ("--steps", 1), ("--like-with-like",)])
def test_another_loop_is_not_recorded(words, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(loop_overhead, monkeypatch, "--record", *words)
    assert mentions(capsys.readouterr().err, "--record", "4", "128", "64")


@pytest.mark.parametrize(("rounds", "more"), [(9, ""), (3, " --rounds 3")])
def test_a_steps_claims_name_the_rounds_that_they_are_of(rounds, more, summary, monkeypatch):
    found = SimpleNamespace(lines=list, to_json=dict)
    monkeypatch.setattr(train_step, "time_steps", lambda work, **words: found)
    monkeypatch.setattr(train_step, "claims", lambda name, found: ({name: TimingStats.of([2.0, 3.0])}, "timm"))
    monkeypatch.setattr(train_step, "losses", lambda work: {})
    run(train_step, monkeypatch, "--record", "--compiled", "--only", "b0_224", "--rounds", rounds)
    claim = summary()["b0_224"]
    assert claim["command"] == f"python -m benchmarks.train_step --compiled{more}"
    assert claim["n"] == rounds


def test_a_step_without_timms_compiled_sides_is_not_recorded(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(train_step, monkeypatch, "--record")
    assert mentions(capsys.readouterr().err, "--compiled")


@pytest.fixture
def read_alike(monkeypatch):
    """Shards and files of which nothing is made; each is read in a second a round."""
    for name in ("make", "write_shards", "load_dataset", "requests", "drop_pages"):
        monkeypatch.setattr(shards, name, lambda *given: None)
    for name in ("trained_on", "read_bytes"):
        monkeypatch.setattr(shards, name, lambda *given: None)
    alike = lambda sides, rounds, **how: {name: [1.0] * rounds for name in sides}  # noqa: E731
    monkeypatch.setattr(shards, "interleave", alike)


@pytest.mark.usefixtures("read_alike")
@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize(("rounds", "more"), [(7, ""), (5, " --rounds 5")])
def test_the_claims_of_shards_name_the_rounds_that_they_are_of(rounds, more, cache, summary, monkeypatch):
    cold = ["--cold"] if cache == "cold" else []
    run(shards, monkeypatch, "--record", "--rounds", rounds, *cold)
    command = " ".join(["python -m benchmarks.shards", *cold]) + more
    assert {name: (claim["command"], claim["n"]) for name, claim in summary().items()} == {
        f"{what}_vs_files_{cache}": (command, rounds) for what in ("shards", "shards_bytes")
    }


@pytest.mark.usefixtures("read_alike")
@pytest.mark.parametrize("words", [("--pictures", 500), ("--round-pictures", 100)])
def test_fewer_pictures_in_shards_are_not_recorded(words, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(shards, monkeypatch, "--record", *words)
    assert mentions(capsys.readouterr().err, "--record", "50,000", "10,000")
    run(shards, monkeypatch, *words)


def test_the_index_of_fewer_pictures_is_not_recorded(summary, monkeypatch, capsys):
    monkeypatch.setattr(shard_index, "make", lambda *given: pytest.fail("was measured"))
    with pytest.raises(SystemExit):
        run(shard_index, monkeypatch, "--record", "--pictures", 1000)
    assert mentions(capsys.readouterr().err, "--record", "13,000,000")


@pytest.mark.parametrize(("rounds", "more"), [(5, ""), (3, " --rounds 3")])
def test_kept_memorys_claim_names_the_rounds_and_the_size_that_it_is_of(rounds, more, summary, monkeypatch):
    told = json.dumps({"step_s": 1.0, "faults": 1.0, "resident_mib": 1.0})
    monkeypatch.setattr(kept_memory.subprocess, "run", lambda *given, **how: SimpleNamespace(stdout=told))
    run(kept_memory, monkeypatch, "--record", "--rounds", rounds, "--image-size", 64)
    claim = summary()["kept_memory_b0_64"]
    assert claim["command"] == f"python -m benchmarks.kept_memory --image-size 64{more} --record"
    assert claim["n"] == rounds


@pytest.mark.parametrize(("rounds", "more"), [(9, ""), (3, " --rounds 3")])
def test_a_gpus_claims_name_the_rounds_that_they_are_of(rounds, more, summary, monkeypatch):
    monkeypatch.setattr(gpu, "hardware", lambda device: "a GPU")
    gpu.keep({"gpu_busy_share": TimingStats.of([1.0] * rounds)}, {}, rounds)
    claim = summary()["gpu_busy_share"]
    assert (claim["command"], claim["n"]) == (f"python -m benchmarks.gpu{more}", rounds)


@pytest.mark.parametrize(("runs", "more"), [(3, ""), (2, " --runs 2")])
def test_the_way_of_a_picture_is_claimed_of_all_runs_and_each_is_kept(runs, more, summary, monkeypatch, tmp_path):
    """Medians of 1.0, 2.0 and 3.0, each with quartiles a quarter next to it; what is claimed reaches over all."""
    each = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(input_path, "make", lambda data, folder: [])

    def measured(folder):
        return {"input_128px_vs_timm": TimingStats((median := next(each)), median - 0.25, median + 0.25, 15)}

    monkeypatch.setattr(input_path, "measured", measured)
    run(input_path, monkeypatch, tmp_path, "--record", "--runs", runs)
    claim = summary()["input_128px_vs_timm"]
    assert claim["command"] == f"python -m benchmarks.input_path DATA{more} --record"
    assert (claim["low"], claim["value"], claim["high"], claim["n"]) == (
        0.75, (1 + runs) / 2, runs + 0.25, 15 * runs,
    )  # fmt: skip
    kept = json.loads((tmp_path / "input_path.json").read_text())["runs"]
    assert [one["input_128px_vs_timm"]["median"] for one in kept] == [1.0, 2.0, 3.0][:runs]


COMMITTED = json.loads((record.RESULTS / "summary.json").read_text())
#: How often a script measures where its command does not say, by the name of the script.
AS_IT_COMES = {
    "epoch": epoch._ROUNDS,
    "gpu": gpu._ROUNDS,
    "input_path": input_path._RUNS * input_path.ROUNDS,
    "kept_memory": kept_memory._ROUNDS,
    "loop_overhead": loop_overhead._ROUNDS,
    "shards": shards._ROUNDS,
}
MADE_BY = {
    name: script[1]
    for name, claim in COMMITTED.items()
    if (script := re.search(r"benchmarks[./](\w+)", claim["command"])) and script[1] in AS_IT_COMES
}


@pytest.mark.parametrize("name", MADE_BY)
def test_a_committed_claim_is_of_as_many_rounds_as_its_command_makes(name):
    said = re.search(r"--rounds (\d+)", COMMITTED[name]["command"])
    assert COMMITTED[name]["n"] == (int(said[1]) if said else AS_IT_COMES[MADE_BY[name]])
