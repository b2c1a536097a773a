"""Only complete measurements are recorded, with the command that reproduces them; nothing is measured here."""

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
    """The recorded claims by name, not in the summary of the repository."""
    for module in (record, epoch, train_step, shards, shard_index, input_path, gpu):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(record, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setitem(sys.modules, "record", record)  # as a script imports it
    return lambda: json.loads((tmp_path / "summary.json").read_text())


def run(script, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    script.main()


@pytest.fixture
def epoch_args(monkeypatch, tmp_path):
    """Arguments of a simulated epoch of one image."""
    (tmp_path / "set/train/a").mkdir(parents=True)
    (tmp_path / "set/train/a/1.jpg").write_bytes(b"")
    monkeypatch.setattr(epoch.Timm, "tuned", lambda self: {("channels-last", "1"): 0.1})
    monkeypatch.setattr(epoch.Timm, "seconds_per_image", lambda self, more, most: 0.2)
    monkeypatch.setattr(epoch, "our_epoch", lambda images, px, batch: (0.1, 0.03, {}))
    monkeypatch.setattr(epoch, "without_avx512", lambda: "")
    return tmp_path / "set", "train.py", "--record"


@pytest.mark.parametrize(("rounds", "more"), [(2, ""), (3, " --rounds 3")])
def test_claims_of_an_epoch_have_its_rounds(rounds, more, epoch_args, summary, monkeypatch):
    run(epoch, monkeypatch, *epoch_args, "--rounds", rounds)
    command = f"python -m benchmarks.epoch IMAGENETTE TIMM_TRAIN_PY{more} --record"
    assert {(claim["command"], claim["n"]) for claim in summary().values()} == {(command, rounds)}
    assert summary()["epoch_vs_timm_train_script"]["value"] == 2


def test_epoch_without_avx_512_is_recorded_beside_the_other(epoch_args, summary, monkeypatch):
    run(epoch, monkeypatch, *epoch_args)
    monkeypatch.setattr(epoch, "without_avx512", lambda: "_without_avx512")
    run(epoch, monkeypatch, *epoch_args)
    names = {"epoch_vs_timm_train_script", "epoch_vs_timm_train_script_best", "input_wait_share"}
    assert summary().keys() == names | {f"{name}_without_avx512" for name in names}
    assert {claim["unit"] for name, claim in summary().items() if "wait" in name} == {"fraction"}


def test_best_timm_side_has_the_optimizer_of_this_package(epoch_args, summary, monkeypatch):
    """The documented side has its default optimizer."""
    options = []
    monkeypatch.setattr(epoch.Timm, "seconds_per_image", lambda self, more, most: options.append(more) or 0.2)
    run(epoch, monkeypatch, *epoch_args, "--rounds", 1)
    documented, best = options
    assert documented == ["-j", "4"]
    assert best == ["--opt", "adamw", "--opt-kwargs", "fused=True", "--channels-last", "-j", "1"]


@pytest.mark.parametrize(
    "options", [("--image-size", 64), ("--batch-size", 32), ("--updates", 10), ("--tune-updates", 3)]
)
def test_other_options_of_an_epoch_are_not_recorded(options, epoch_args, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(epoch, monkeypatch, *epoch_args, *options)
    assert mentions(capsys.readouterr().err, "--record", "128", "64")
    run(epoch, monkeypatch, *epoch_args[:2], *options)


@pytest.mark.parametrize(("rounds", "more"), [(5, ""), (7, " --rounds 7")])
def test_claim_of_the_loop_has_its_rounds(rounds, more, summary, monkeypatch):
    for side in ("bare", "ours"):
        monkeypatch.setattr(loop_overhead, side, lambda *_: itertools.repeat(None))
    run(loop_overhead, monkeypatch, "--record", "--rounds", rounds)
    claim = summary()["loop_over_bare_loop_ratio"]
    assert (claim["command"], claim["n"]) == (f"python benchmarks/loop_overhead.py{more}", rounds)


@pytest.mark.parametrize("options", [("--image-size", 64), ("--batch-size", 32), ("--steps", 1), ("--like-with-like",)])
def test_other_options_of_the_loop_are_not_recorded(options, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(loop_overhead, monkeypatch, "--record", *options)
    assert mentions(capsys.readouterr().err, "--record", "4", "128", "64")


@pytest.mark.parametrize("processor", ["", "_without_avx512"])
@pytest.mark.parametrize(
    ("args", "rounds", "more"), [((), 9, ""), (("--rounds", 3), 3, " --rounds 3"), (("--avx2",), 9, " --avx2")]
)
def test_claims_of_a_step_have_its_options_and_processor(args, rounds, more, processor, summary, monkeypatch):
    found, ratio = SimpleNamespace(lines=list, to_json=dict), TimingStats.of([2.0] * rounds)
    limited = "--avx2" in args
    monkeypatch.setattr(train_step, "time_steps", lambda work, **_: found)
    monkeypatch.setattr(train_step, "claims", lambda name, found, suffix: ({name + suffix: ratio}, ""))
    monkeypatch.setattr(train_step, "losses", lambda work: {})
    monkeypatch.setattr(train_step, "_limit_to_avx2", lambda: None)
    monkeypatch.setattr(train_step, "without_avx512", lambda: processor)
    run(train_step, monkeypatch, "--record", "--compiled", "--only", "b0_224", *args)
    claim = summary()["b0_224_avx2" if limited else f"b0_224{processor}"]
    assert claim["command"] == f"python -m benchmarks.train_step --compiled{more}"
    assert claim["n"] == rounds
    assert claim["hardware"].endswith("limited to AVX2") == limited


def test_step_without_compiled_timm_is_not_recorded(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(train_step, monkeypatch, "--record")
    assert mentions(capsys.readouterr().err, "--compiled")


@pytest.fixture
def equal_reads(monkeypatch):
    """Simulated shards and files, each read in one second per round."""
    for name in ("make", "write_shards", "load_dataset", "requests", "drop_pages"):
        monkeypatch.setattr(shards, name, lambda *_: None)
    for name in ("training_reader", "bytes_reader"):
        monkeypatch.setattr(shards, name, lambda *_: None)
    one_second = lambda sides, rounds, **_: {name: [1.0] * rounds for name in sides}  # noqa: E731
    monkeypatch.setattr(shards, "interleave", one_second)


@pytest.mark.usefixtures("equal_reads")
@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize(("rounds", "more"), [(7, ""), (5, " --rounds 5")])
def test_claims_of_shards_have_their_rounds(rounds, more, cache, summary, monkeypatch):
    cold = ["--cold"] if cache == "cold" else []
    run(shards, monkeypatch, "--record", "--rounds", rounds, *cold)
    command = " ".join(["python -m benchmarks.shards", *cold]) + more
    assert {name: (claim["command"], claim["n"]) for name, claim in summary().items()} == {
        f"{side}_vs_files_{cache}": (command, rounds) for side in ("shards", "shards_bytes")
    }


@pytest.mark.usefixtures("equal_reads")
@pytest.mark.parametrize("options", [("--pictures", 500), ("--round-pictures", 100)])
def test_fewer_images_in_shards_are_not_recorded(options, summary, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(shards, monkeypatch, "--record", *options)
    assert mentions(capsys.readouterr().err, "--record", "50,000", "10,000")
    run(shards, monkeypatch, *options)


def test_index_of_fewer_images_is_not_recorded(summary, monkeypatch, capsys):
    monkeypatch.setattr(shard_index, "make", lambda *_: pytest.fail("was measured"))
    with pytest.raises(SystemExit):
        run(shard_index, monkeypatch, "--record", "--pictures", 1000)
    assert mentions(capsys.readouterr().err, "--record", "13,000,000")


@pytest.mark.parametrize(("rounds", "more"), [(5, ""), (3, " --rounds 3")])
def test_claim_of_kept_memory_has_its_rounds_and_size(rounds, more, summary, monkeypatch):
    stdout = json.dumps({"step_s": 1.0, "faults": 1.0, "resident_mib": 1.0})
    monkeypatch.setattr(kept_memory.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=stdout))
    run(kept_memory, monkeypatch, "--record", "--rounds", rounds, "--image-size", 64)
    claim = summary()["kept_memory_b0_64"]
    assert claim["command"] == f"python -m benchmarks.kept_memory --image-size 64{more} --record"
    assert claim["n"] == rounds


@pytest.mark.parametrize(("rounds", "more"), [(9, ""), (3, " --rounds 3")])
def test_claims_of_a_gpu_have_their_rounds(rounds, more, summary, monkeypatch):
    monkeypatch.setattr(gpu, "hardware", lambda device: "a GPU")
    gpu.keep({"gpu_busy_share": TimingStats.of([1.0] * rounds)}, {}, rounds)
    claim = summary()["gpu_busy_share"]
    assert (claim["command"], claim["n"]) == (f"python -m benchmarks.gpu{more}", rounds)


@pytest.mark.parametrize(("runs", "more"), [(3, ""), (2, " --runs 2")])
def test_claim_of_the_input_path_is_over_all_runs(runs, more, summary, monkeypatch, tmp_path):
    """Medians of 1.0, 2.0 and 3.0 with quartiles at ±0.25: the interval covers all."""
    medians = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(input_path, "make", lambda data, folder: [])

    def measured(folder):
        return {"input_128px_vs_timm": TimingStats((median := next(medians)), median - 0.25, median + 0.25, 15)}

    monkeypatch.setattr(input_path, "measured", measured)
    run(input_path, monkeypatch, tmp_path, "--record", "--runs", runs)
    claim = summary()["input_128px_vs_timm"]
    assert claim["command"] == f"python -m benchmarks.input_path DATA{more} --record"
    assert (claim["low"], claim["value"], claim["high"], claim["n"]) == (
        0.75, (1 + runs) / 2, runs + 0.25, 15 * runs,
    )  # fmt: skip
    saved = json.loads((tmp_path / f"input_path{record.without_avx512()}.json").read_text())["runs"]
    assert [run_["input_128px_vs_timm"]["median"] for run_ in saved] == [1.0, 2.0, 3.0][:runs]


COMMITTED = json.loads((record.RESULTS / "summary.json").read_text())
#: Default number of measurements by script.
DEFAULT_ROUNDS = {
    "epoch": epoch._ROUNDS,
    "gpu": gpu._ROUNDS,
    "input_path": input_path._RUNS * input_path.ROUNDS,
    "kept_memory": kept_memory._ROUNDS,
    "loop_overhead": loop_overhead._ROUNDS,
    "shards": shards._ROUNDS,
}
SCRIPTS = {
    name: script[1]
    for name, claim in COMMITTED.items()
    if (script := re.search(r"benchmarks[./](\w+)", claim["command"])) and script[1] in DEFAULT_ROUNDS
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_committed_claim_has_the_rounds_of_its_command(name):
    option = re.search(r"--rounds (\d+)", COMMITTED[name]["command"])
    assert COMMITTED[name]["n"] == (int(option[1]) if option else DEFAULT_ROUNDS[SCRIPTS[name]])
