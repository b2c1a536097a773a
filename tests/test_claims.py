"""Each claim in README and docs has its value in benchmarks/results/summary.json."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
from benchmarks.record import read

from efficientnetv2.training.recipes import get_recipe, named_recipes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
SUMMARY = json.loads((RESULTS / "summary.json").read_text())
# Pages of the reference have no claims: names such as `macro_f1` are keys there.
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "reference"),
]
# Pages of the data and weights in the repository. tests/models/test_shipped.py checks their values.
CARDS = sorted((ROOT / "examples").rglob("*.md"))
# Claims that no page quotes, with the reason.
UNQUOTED = {
    "cache_detail_100_difference": "with all pixels cached; the page quotes the default, half of the pixels",
    "memory_limited_groups_at_300px": "whether the limit had an effect; the page quotes the effect on the losses",
    "memory_limited_peak_over_limit_ratio": "whether the limit was exceeded; the page quotes the effect on the losses",
    **dict.fromkeys(
        (
            "processes_two_groups_differing",
            "processes_resumed_groups_differing",
            "processes_rank_killed_groups_differing",
        ),
        "must be 0; docs/benchmarks/speed.md states this",
    ),
    "scaled_decode_train_gain": "its interval includes 0, like scaled_decode_eval_gain, which is quoted",
}
DEFAULT_RUNS = sorted((ROOT / "benchmarks/results").glob("default_train_*"))
SHOWN = {
    "fraction": lambda value: f"{100 * value:.1f} %",
    "s": lambda value: f"{value:,.0f} s",
    "ratio": lambda value: f"{value:.2f}",
    "points": lambda value: f"{value:+.1f}",
    "F1": lambda value: f"{value:.3f}",
    "MB": lambda value: f"{value:,.0f} MB",
    "loss": lambda value: f"{value:.0e}",
    "grey levels": lambda value: f"{value:.2f}",
    "reward": lambda value: f"{value:+.3f}",
    "groups": lambda value: f"{value:.0f}",
    "ms": lambda value: f"{value:,.0f} ms",
    "requests": lambda value: f"{value:.0f}",
}


def quotes():
    """Yield each table row that names a claim in backticks."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for name in re.findall(r"`([a-z0-9_]+)`", line):
                if line.startswith("|") and (
                    name in SUMMARY
                    or re.search(r"(?<!min_lr)_(top1|wall_s|ratio|gain|f1)$|_(speedup|gain)_efficientnetv2_b0$", name)
                ):
                    yield page.name, name, line


@pytest.mark.parametrize(("page", "name", "line"), list(quotes()))
def test_quoted_value_is_the_measured_value(page, name, line):
    assert name in SUMMARY, f"{page} quotes {name}, which was not measured"
    claim = SUMMARY[name]
    assert SHOWN[claim["unit"]](claim["value"]) in line


@pytest.mark.parametrize(
    "line", sorted({line for _, name, line in quotes() if name in SUMMARY}), ids=lambda line: line[2:60]
)
def test_row_has_the_value_of_its_first_claim_and_intervals_of_its_claims(line):
    """The value must be in a cell of its own, because it may occur elsewhere in the row by chance."""
    claims = [SUMMARY[name] for name in re.findall(r"`([a-z0-9_]+)`", line) if name in SUMMARY]
    value = SHOWN[claims[0]["unit"]](claims[0]["value"])
    assert [cell for cell in line.split("|") if re.match(re.escape(value) + r"(?![\d.])", cell.strip())]
    intervals = re.findall(r"([+-]?\d+\.\d+)(?: %)? to ([+-]?\d+\.\d+)(?: %)?\)?(, includes 0)?", line)
    ranges = [(low, high) for low, high, _ in intervals]
    measured = {
        tuple(SHOWN[one["unit"]](one[end]).removesuffix(" %") for end in ("low", "high"))
        for one in claims
        if "low" in one
    }
    assert set(ranges) <= measured
    assert [bool(mark) for *_, mark in intervals] == [float(low) <= 0 <= float(high) for low, high in ranges]


def test_table_of_exported_files_equals_the_record():
    page = (ROOT / "docs/benchmarks/speed.md").read_text(encoding="utf-8")
    rows = [row for row in read(RESULTS / "formats.json")["rows"] if row["model"] == "B0"]
    for row in rows:
        cells = (
            row["format"], row["precision"], f"{row['megabytes']:.1f}", f"{100 * row['label_agreement']:.1f} %",
            f"{row['max_difference']:.0e}", f"{row['milliseconds']:.1f}", f"{row['images_per_s']:.0f}",
        )  # fmt: skip
        assert f"| {' | '.join(cells)} |" in page
    assert len(rows) >= 10


def test_table_of_first_runs_equals_the_record():
    page = (ROOT / "docs/benchmarks/first-run.md").read_text(encoding="utf-8")
    found = read(RESULTS / "newcomer.json")
    for one in found.values():
        sides = [side for side in ("ours", "probe", "fastai", "autogluon", "timm") if side in one["sides"]]
        top1 = [[100 * value for value in one["sides"][side]["top1"]] for side in sides]
        ends = [f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "" for values in top1]
        cells = [f"{sum(values) / len(values):.1f}{end}" for values, end in zip(top1, ends, strict=True)]
        assert f"| {' | '.join(cells)} |" in page
    assert len(found) == 27


def test_pages_quote_claims():
    assert len(list(quotes())) >= 3


def test_each_claim_is_quoted_or_has_a_reason():
    rows = [
        line
        for page in (*PAGES, *CARDS)
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    quoted = {name for name in SUMMARY if any(f"`{name}`" in row for row in rows)}
    assert SUMMARY.keys() - quoted - UNQUOTED.keys() == set()
    assert UNQUOTED.keys() - SUMMARY.keys() == set(), "claims that do not exist"


@pytest.mark.parametrize("name", SUMMARY)
def test_claim_has_the_conditions_of_its_measurement(name):
    claim = SUMMARY[name]
    assert set(claim) == {
        "value", "unit", "low", "high", "n", "command", "hardware", "versions", "date",
    }  # fmt: skip
    assert claim["low"] <= claim["value"] <= claim["high"]
    assert claim["unit"] in SHOWN


def hardware_of_rows(record):
    """Return the hardware of all rows of a raw record. Without rows, return the hardware of the record."""
    if isinstance(record, list):
        return {one for row in record for one in hardware_of_rows(row)}
    if not isinstance(record, dict):
        return set()
    rows = {one for row in record.values() for one in hardware_of_rows(row)}
    return rows or ({record["hardware"]} if "hardware" in record else set())


def raw_of(name, command):
    """Return the raw record of a claim by the script that writes both. None if there is no such record."""
    script = re.search(r"benchmarks\.(\w+)", command)
    end = re.search(r"--regime (\w+)|default_train (\w+)=", command)
    record_name = "_".join([script[1], *(one for one in end.groups() if one)] if end else [script[1]]) if script else ""
    record_name += "_values_of_quick" if "--values quick" in command else ""
    record_name += next((end for end in ("_without_avx512", "_second_processor") if name.endswith(end)), "")
    found = [RESULTS / f"{record_name}.json", RESULTS / record_name / "measured.json"]
    raw = [read(file) for file in found if file.is_file()]
    if record_name == "train_step":
        return next(row for case, row in raw[0].items() if f"_{case}_vs_" in name)
    if record_name == "newcomer":
        return next(row for case, row in raw[0].items() if name.startswith(f"newcomer_{case}_minus_"))
    return raw[0] if raw else None


MEASURED_ON = {
    name: on
    for name, claim in SUMMARY.items()
    if (on := hardware_of_rows(raw_of(name, claim["command"])))
    # The record of this script also names the device and its threads.
    and not claim["command"].startswith("python -m benchmarks.search_record")
}


def test_raw_records_name_their_hardware():
    scripts = {SUMMARY[name]["command"].split()[2].removeprefix("benchmarks.") for name in MEASURED_ON}
    assert {"adaptive", "progressive", "default_train", "time_to_accuracy", "train_step"} <= scripts


@pytest.mark.parametrize("name", MEASURED_ON)
def test_claim_names_the_hardware_of_its_runs(name):
    """A claim may be recorded on another machine than its runs, which may come from several machines."""
    assert SUMMARY[name]["hardware"] == " and ".join(sorted(MEASURED_ON[name]))


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_raw_record_names_the_hardware_of_its_rows(file):
    record = read(file)
    if file.name != "summary.json" and "hardware" in record:
        rows = hardware_of_rows({name: value for name, value in record.items() if name != "hardware"})
        assert not rows or record["hardware"] == " and ".join(sorted(rows))


@pytest.mark.parametrize(("table", "raw"), [("12", "progressive_resnet50"), ("13", "adaptive")])
def test_table_of_tuned_models_names_the_hardware_of_its_runs(table, raw):
    record, table_file = RESULTS / f"{raw}.json", RESULTS / f"reproduce/{table}_small.json"
    assert read(table_file)["hardware"] == " and ".join(sorted(hardware_of_rows(read(record))))


@pytest.mark.parametrize(
    ("recipe", "claim"),
    [
        ("quick", "quick_b0_imagenette_10ep_top1"),
        ("quick", "quick_b0_imagenette_10ep_wall_s"),
        ("finetune", "finetune_land_cover_macro_f1"),
        ("finetune", "scratch_land_cover_macro_f1"),
    ],
)
def test_recipe_label_has_the_measured_value_and_its_processor(recipe, claim):
    """As printed by ``effnetv2 recipes NAME``, with times in minutes."""
    value, unit = SUMMARY[claim]["value"], SUMMARY[claim]["unit"]
    processor = SUMMARY[claim]["hardware"].partition(", ")[2]
    for text in (f"{value / 60:.0f} minutes" if unit == "s" else SHOWN[unit](value), processor):
        assert text in _label(recipe)


@pytest.mark.parametrize("recipe", ["finetune", "transfer_paper"])
def test_transfer_labels_have_the_small_scale_results(recipe):
    """Only top-1, because the seeds ran on several machines."""
    raw = read(RESULTS / "transfer.json")
    shown = [SHOWN["fraction"](SUMMARY[f"{arm}_cifar10_top1"]["value"]) for arm in raw["arms"]]
    expected = {
        "finetune": f"{raw['num_train_images']:,} of CIFAR-10 at up to {raw['image_size']} px, "
        f"{raw['epochs']:g} epochs: {shown[1]}, "
        f"recipe transfer_paper {shown[0]}, means of {len(raw['arms']['finetune'])} seeds",
        "transfer_paper": f"CIFAR-10 at {raw['image_size']} px, {raw['epochs']:g} epochs in batches of 64: {shown[0]}, "
        f"mean of {len(raw['arms']['transfer_paper'])} seeds",
    }
    assert expected[recipe] in _label(recipe)


def test_transfer_labels_have_the_minutes_on_cifar_10():
    """Only runs on the named machine count."""
    arms = read(RESULTS / "transfer.json")["arms"]
    machine = "AMD EPYC (family 25, model 17) with AVX-512"
    for arm, text in (("finetune", "{:.0f} to {:.0f} minutes"), ("transfer_paper", "took {:.0f} minutes")):
        minutes = sorted(row["train_s"] / 60 for row in arms[arm] if row["hardware"] == f"2 cores, {machine}")
        assert f"{text.format(minutes[0], minutes[-1])} on 2 cores, {machine}" in _label(arm)
        assert len(minutes) == (3 if arm == "finetune" else 1)


def test_finetune_label_has_the_minutes_of_a_fold():
    raw = read(ROOT / "benchmarks/results/finetune_land_cover.json")
    minutes = [seconds / 60 for seconds in raw["finetune"]["seconds_by_fold"]]
    assert f"{min(minutes):.0f} to {max(minutes):.0f} minutes a fold" in _label("finetune")


def test_quick_label_has_the_results_with_measured_precision():
    """Minimum and maximum of the seeds, and their machine."""
    raw = read(RESULTS / "time_to_accuracy_10_epochs.json")
    most, label = raw["ours_same_minutes"], _label("quick")
    for runs, digits, unit in ((raw["ours"]["3"], 1, " minutes of training steps"), (most, 0, "")):
        top1 = sorted(100 * run["top1"] for run in runs)
        minutes = sorted(run["train_s"] / 60 for run in runs)
        assert (
            f"{runs[0]['epochs']:g} epochs {top1[0]:.1f} to {top1[-1]:.1f} % in {minutes[0]:.{digits}f} to "
            f"{minutes[-1]:.{digits}f}{unit}"
        ) in label
        assert len(runs) == 3
    slower, faster = "Intel(R) Xeon(R) Processor (family 6, model 167)", "AMD EPYC (family 26, model 2)"
    assert f"minutes of training steps on 2 cores, {slower} with AVX-512," in label
    assert f"3 seeds each, the latter all but that of 21 minutes on {faster} with AVX-512" in label
    on = {round(run["train_s"] / 60): run["hardware"] for run in most}
    assert {run["hardware"] for run in raw["ours"]["3"]} == {f"2 cores, {slower} with AVX-512"}
    assert {minutes for minutes, machine in on.items() if faster not in machine} == {21}


@pytest.mark.parametrize("recipe", ["resnet50_224_progressive", "resnet50_380_progressive"])
def test_resnet_50_labels_have_the_small_scale_results(recipe):
    """The label names the other recipe and dataset of these results."""
    speedup, gain = (SUMMARY[f"progressive_{what}_resnet50_imagenette"] for what in ("speedup", "top1_gain"))
    raw = read(RESULTS / "progressive_resnet50.json")
    px, requested = raw["regime"]["image_size"], raw["arms"]["progressive"][0]["asked"]
    assert (requested["recipe"], requested["model"]) == ("quick", get_recipe(recipe).model)
    assert f"progressive.image_size={{start: {px // 2}, end: {px}}}" in requested["settings"]
    ratio, points = SHOWN["ratio"], SHOWN["points"]
    assert (
        f"not measured on ImageNet. In small, with recipe quick on Imagenette from {px // 2} to {px} px: "
        f"{ratio(speedup['value'])} times ({ratio(speedup['low'])} to {ratio(speedup['high'])}) as fast as {px} px "
        f"throughout, at {points(gain['value'])} points of top-1 "
        f"({points(gain['low'])} to {points(gain['high'])}), {speedup['n']} seeds"
    ) in _label(recipe)


@pytest.mark.parametrize(
    "name",
    ["time_to_accuracy", "time_to_accuracy_values_of_quick", "time_to_accuracy_values_of_quick_second_processor"],
)
def test_minutes_to_the_top1_of_timm_are_those_of_the_runs(name):
    raw = read(RESULTS / f"{name}.json")
    page = (ROOT / "docs/benchmarks/results.md").read_text(encoding="utf-8")
    timm = [rows for side, rows in raw.items() if side.startswith("timm")]
    assert len(timm) == 2
    for rows in (*timm, *raw["quick"].values()):
        top1 = ", ".join(f"{100 * row['top1']:.1f} %" for row in rows)
        minutes = ", ".join(f"{row['train_s'] / 60:.1f}" for row in rows)
        assert f", {rows[0]['epochs']:g} epochs | {top1} | {minutes} |" in page


@pytest.mark.parametrize("where", ["label", "page"])
def test_baseline_of_finetune_is_described_as_unchanged_quick(where):
    """The baseline is not finetune from scratch. The benchmark changes only the length of quick."""
    quick = get_recipe("quick")
    px, tta = quick.progressive.image_size, {"none": "one view"}[quick.tta]
    stated = f"{px.start:g} to {px.end:g} px, {quick.augment.flip} flips, {quick.global_pool or 'mean'} pooling, {tta}"
    text = _label("finetune") if where == "label" else _land_cover_page()
    assert "same from scratch" not in text
    assert stated in text


def test_default_runs_exist():
    assert len(DEFAULT_RUNS) >= 3


@pytest.mark.parametrize("name", [run.name.removeprefix("default_train_") for run in DEFAULT_RUNS])
@pytest.mark.parametrize("metric", ["top1", "macro_f1"])
def test_default_run_has_its_interval_and_the_results_of_run_and_probe(name, metric):
    raw = read(ROOT / f"benchmarks/results/default_train_{name}/measured.json")
    claim = SUMMARY[f"default_train_minus_probe_{name}_{metric}"]
    page = (ROOT / "docs/benchmarks/results.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if f"`default_train_minus_probe_{name}_{metric}`" in line]
    chance = ", includes 0" if claim["low"] <= 0 <= claim["high"] else ""
    expected = [f"{claim['low']:+.1f} to {claim['high']:+.1f}{chance}"]
    if metric == "top1":
        expected += [f"{100 * raw[side]:.1f} %" for side in ("top1", "probe_top1")] + [f"{raw['num_train_images']:,}"]
    assert not [one for one in expected if f" {one} |" not in row]
    assert metric == "top1" or f", {raw[metric]:.3f} of the run" in row


def _label(recipe):
    return " ".join(named_recipes()[recipe].description.split())


def _page(name: str) -> str:
    return " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())


def _land_cover_page() -> str:
    return _page("benchmarks/land-cover.md")


def test_land_cover_page_has_the_folds_with_intervals_and_baselines():
    best, page = (read(ROOT / "benchmarks/results/land_cover.json")["best"], _land_cover_page())
    # The probe uses the initial weights of the first fold. Only for random folds these are the ImageNet weights.
    (probe,) = best["stratified"]["split_comparison"]
    for split, result in best.items():
        (low, high), (least, most) = result["intervals"]["macro_f1"], result["intervals"]["top1"]
        fold_mean = result["fold_mean"]["macro_f1"]
        baseline = probe["by_place" if split == "spatial" else "at_random"]["macro_f1"]
        assert (
            f"`land_cover_top1_{split}`) | {result['macro_f1']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{fold_mean['mean']:.3f} ± {fold_mean['deviation']:.3f} | {result['top1']:.1%} "
            f"({100 * least:.1f} to {100 * most:.1f}) | {baseline:.3f} | {result['majority']['macro_f1']:.3f} |"
        ).replace("%", " %") in page
    first = [choice[0].partition(" ")[2] for result in best.values() for choice in result["chosen"]]
    assert first.count("class_sampling=equal") == 9
    assert "`class_sampling=equal` was the best in nine of the ten folds" in page
    assert not any(tried.startswith("aerial") for result in best.values() for row in result["chosen"] for tried in row)


def test_land_cover_page_has_the_measured_limits():
    found = read(ROOT / "benchmarks/results/land_cover_limits.json")
    spatial, at_random, both, page = found["spatial"], found["stratified"], found["both"], _land_cover_page()

    def percent(*which: dict) -> list[int]:
        return [round(100 * one["value"]) for one in which]

    near = [each["neighbours"] for each in (spatial, at_random)]
    label_checks = [each["labels"] for each in (spatial, at_random)]
    recalls = [each["classes"][name]["recall"] for each in (spatial, at_random) for name in spatial["classes"]]
    rare = [each["classes"]["grassland"] for each in (spatial, at_random)]
    apart = percent(*(one["top1_where_it_has_not"] for one in near))
    alike = percent(*(one["top1_where_it_has"] for one in near))
    labels = [sorted(percent(*(one[of] for one in label_checks))) for of in ("of_all", "of_the_mistakes")]
    grass = sorted(percent(*(one["by_class"]["grassland"] for one in label_checks)))
    others = sorted(percent(*(recall for recall in recalls if recall not in [one["recall"] for one in rare])))
    predicted = [one["called"]["smallholder_agriculture"] for one in rare]
    near_top1 = percent(near[1]["top1_learnt_near"], near[1]["top1_not_learnt_near"])
    for text in (
        f"{both['wrong'][0]} images are wrong by location and {both['wrong'][1]} at random",
        f"{both['wrong_in_both']} are wrong in both",
        f"independent errors would share {both['if_independent']:.0f}.",
        f"{both['with_the_same_answer']} of these {both['wrong_in_both']} have",
        f"Of {near[0]['near']['part']} images with another within 5 km, {near[0]['top1_where_it_has_not']['of']} have",
        f"{apart[0]} % by location and {apart[1]} % at random",
        f"The other {near[0]['top1_where_it_has']['of']} have {alike[0]} % and {alike[1]} %",
        f"doubts {labels[0][0]} % to {labels[0][1]} % of the labels",
        f"These are {labels[1][0]} % to {labels[1][1]} % of the errors",
        f"of grassland it doubts {grass[0]} % to {grass[1]} %",
        "recall is {} % by location and {} % at random".format(*percent(*(one["recall"] for one in rare))),
        f"{predicted[0]} and {predicted[1]} of its images",
        f"Recall of the other classes is {others[0]} % to {others[-1]} %",
        f"have a top-1 of {near_top1[0]} %, and the others {near_top1[1]} %",
        f"estimates +{spatial['labelled']['gain']:.2f} of macro-F1",
    ):
        assert text in page, text


@pytest.mark.parametrize("split", ["spatial", "stratified"])
def test_land_cover_page_has_all_initial_weights(split):
    wide, page = (read(ROOT / "benchmarks/results/land_cover.json")["wide"], _land_cover_page())
    starts = {"imagenet": "ImageNet", "both": "ImageNet, then AID", "aerial": "AID", "scratch": "none"}
    samplings = ("null", "equal")
    assert set(wide[split]) == {
        f"{start} class_sampling={class_sampling}" for start in starts for class_sampling in samplings
    }
    rows = []
    for start, class_sampling in product(starts, samplings):
        result = wide[split][f"{start} class_sampling={class_sampling}"]
        (low, high), (least, most) = result["intervals"]["macro_f1"], result["intervals"]["top1"]
        fold_mean, probe = result["fold_mean"]["macro_f1"], result["linear_probe_macro_f1"]
        rows.append(
            f"| {starts[start]} | `{class_sampling}` | {result['macro_f1']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{fold_mean['mean']:.3f} ± {fold_mean['deviation']:.3f} | {100 * result['top1']:.1f} % "
            f"({100 * least:.1f} to {100 * most:.1f}) | {'' if probe is None else f'{probe:.3f} '}|"
        )
    assert " ".join(rows) in page


def test_land_cover_page_has_all_ways_of_class_balancing():
    found = read(ROOT / "benchmarks/results/land_cover.json")["balancing"]
    page = (ROOT / "docs/benchmarks/land-cover.md").read_text(encoding="utf-8")
    rows = []
    for way, result in found.items():
        low, high = result["gain_interval"]
        seeds = ", ".join(f"{score:.3f}" for score in result["macro_f1"])
        assert len(result["macro_f1"]) == 3
        chance = ", includes 0" if low <= 0 <= high else ""
        gain = "" if way == "class_sampling=null" else f"{result['gain']:+.3f} ({low:+.3f} to {high:+.3f}){chance} "
        rows.append(f"| `{way}` | {seeds} | {sum(result['macro_f1']) / 3:.3f} | {gain}|")
    assert "\n".join(rows) in page


def test_calibration_guide_has_the_measured_values():
    page = _page("how-to/evaluate-and-compare.md")
    for halves in read(RESULTS / "calibration.json").values():
        top1 = sum(one["top1"] for one in halves) / 2
        before, after = (", ".join(f"{one[when]['ece']:.3f}" for one in halves) for when in ("without", "with"))
        assert f"| {100 * top1:.1f} % | {before} | {after} |" in page


def test_unknown_images_guide_has_the_measured_values():
    found, page = read(RESULTS / "unknown_images.json"), _page("how-to/flag-unknown-images.md")
    for other in found["others"].values():
        scores = [
            f"{one['auroc']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
            for one in (other["score"], other["largest_probability"])
        ]
        assert f"| {' | '.join(scores)} | {100 * other['flagged']:.0f} % |" in page
    known = found["false_alarm_rate"]
    assert f"flagged {100 * known['found']:.1f} % of {known['num_images']} known images" in page
    assert f"fitted on {found['num_fitted_images']} validation images. The top-1 of the run was" in page


def test_weights_guide_has_the_cost_of_wrong_preprocessing():
    found, page = read(RESULTS / "linear_probe_imagenette.json"), _page("how-to/convert-weights.md")
    shown = [sides for name, sides in found.items() if name.endswith(", 224 px") and "crop" not in name]
    assert len(shown) == 6
    for sides in shown:
        own, given = (100 * sum(sides[side]) / len(sides[side]) for side in ("own", "given"))
        assert f"| {own:.1f} % | {given:.1f} % |" in page


def test_search_page_has_the_results_of_its_architecture():
    found, page = read(RESULTS / "search_found.json")["networks"], _page("explanation/architecture-search.md")
    for one in found.values():
        size = f"{one['parameters'] / 1e6:.3f} M"
        assert f"| {100 * one['top1']:.1f} % | {one['step_ms']:.1f} ms | {size} | {one['reward']:.3f} |" in page
    ours, baseline = found["found"], found["V2-B0"]
    assert f"{100 * (baseline['top1'] - ours['top1']):.1f} points more top-1" in page
    assert f"{baseline['step_ms'] / ours['step_ms']:.1f} times as long" in page
