"""Every figure quoted in README and docs is the one in benchmarks/results/summary.json."""

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
# Also of what travels with the repository; its figures have a test of their own, tests/models/test_shipped.py.
CARDS = sorted((ROOT / "examples").rglob("*.md"))
# Claims that no page quotes, and why.
UNQUOTED = {
    "cache_detail_100_difference": "of all pixels kept; the page quotes the default, half of them",
    "memory_limited_groups_at_300px": "that the limit was felt; the page quotes what it did to the losses",
    "memory_limited_peak_over_limit_ratio": "that the limit was kept; the page quotes what it did to the losses",
    **dict.fromkeys(
        (
            "processes_two_groups_differing",
            "processes_resumed_groups_differing",
            "processes_rank_killed_groups_differing",
        ),
        "has to be 0; docs/benchmarks/speed.md states it in words",
    ),
    "scaled_decode_train_gain": "its interval holds 0, as that of scaled_decode_eval_gain, which is quoted",
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
    """Table rows that name a claim in backticks."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for name in re.findall(r"`([a-z0-9_]+)`", line):
                if line.startswith("|") and (
                    name in SUMMARY or re.search(r"(?<!min_lr)_(top1|wall_s|ratio|gain|f1)$", name)
                ):
                    yield page.name, name, line


@pytest.mark.parametrize(("page", "name", "line"), list(quotes()))
def test_a_quoted_figure_is_the_measured_one(page, name, line):
    assert name in SUMMARY, f"{page} quotes {name}, which nobody has measured"
    claim = SUMMARY[name]
    assert SHOWN[claim["unit"]](claim["value"]) in line


@pytest.mark.parametrize(
    "line", sorted({line for _, name, line in quotes() if name in SUMMARY}), ids=lambda line: line[2:60]
)
def test_a_rows_figure_is_that_of_the_claim_it_names_first_and_its_intervals_are_of_those_it_names(line):
    """A figure that is only somewhere in the row may be another's, and an interval may tell another story."""
    claims = [SUMMARY[name] for name in re.findall(r"`([a-z0-9_]+)`", line) if name in SUMMARY]
    value = SHOWN[claims[0]["unit"]](claims[0]["value"])
    assert [cell for cell in line.split("|") if re.match(re.escape(value) + r"(?![\d.])", cell.strip())]
    told = re.findall(r"([+-]?\d+\.\d+)(?: %)? to ([+-]?\d+\.\d+)(?: %)?\)?(, includes 0)?", line)
    said = [(low, high) for low, high, _ in told]
    measured = {
        tuple(SHOWN[one["unit"]](one[end]).removesuffix(" %") for end in ("low", "high"))
        for one in claims
        if "low" in one
    }
    assert set(said) <= measured
    assert [bool(mark) for *_, mark in told] == [float(low) <= 0 <= float(high) for low, high in said]


def test_the_table_of_exported_files_is_the_record():
    page = (ROOT / "docs/benchmarks/speed.md").read_text(encoding="utf-8")
    rows = [row for row in read(RESULTS / "formats.json")["rows"] if row["model"] == "B0"]
    for row in rows:
        cells = (
            row["format"], row["precision"], f"{row['megabytes']:.1f}", f"{100 * row['label_agreement']:.1f} %",
            f"{row['max_difference']:.0e}", f"{row['milliseconds']:.1f}", f"{row['images_per_s']:.0f}",
        )  # fmt: skip
        assert f"| {' | '.join(cells)} |" in page
    assert len(rows) >= 10


def test_something_is_quoted():
    assert len(list(quotes())) >= 3


def test_every_claim_is_quoted_or_it_is_said_why_not():
    rows = [
        line
        for page in (*PAGES, *CARDS)
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    quoted = {name for name in SUMMARY if any(f"`{name}`" in row for row in rows)}
    assert SUMMARY.keys() - quoted - UNQUOTED.keys() == set()
    assert UNQUOTED.keys() - SUMMARY.keys() == set(), "claims that there are no more"


@pytest.mark.parametrize("name", SUMMARY)
def test_a_claim_says_how_it_was_measured(name):
    claim = SUMMARY[name]
    assert set(claim) == {
        "value", "unit", "low", "high", "n", "command", "hardware", "versions", "date",
    }  # fmt: skip
    assert claim["low"] <= claim["value"] <= claim["high"]
    assert claim["unit"] in SHOWN


def hardware_of_rows(record):
    """That of every row of a raw record which says it; of the record as a whole only where no row does."""
    if isinstance(record, list):
        return {one for row in record for one in hardware_of_rows(row)}
    if not isinstance(record, dict):
        return set()
    rows = {one for row in record.values() for one in hardware_of_rows(row)}
    return rows or ({record["hardware"]} if "hardware" in record else set())


def raw_of(name, command):
    """The raw record behind a claim, by the script that makes both; None where there is none of that name."""
    script = re.search(r"benchmarks\.(\w+)", command)
    end = re.search(r"--regime (\w+)|default_train (\w+)=", command)
    called = "_".join([script[1], *(one for one in end.groups() if one)] if end else [script[1]]) if script else ""
    found = [RESULTS / f"{called}.json", RESULTS / called / "measured.json"]
    raw = [read(file) for file in found if file.is_file()]
    if called == "train_step":
        return next(row for case, row in raw[0].items() if f"_{case}_vs_" in name)
    if called == "time_to_accuracy":  # its one claim; the other runs used other machines
        return [*raw[0]["torchvision"], *raw[0]["ours"]["2"]]
    return raw[0] if raw else None


MEASURED_ON = {
    name: on
    for name, claim in SUMMARY.items()
    if (on := hardware_of_rows(raw_of(name, claim["command"])))
    # Its record names the device and its threads too.
    and not claim["command"].startswith("python -m benchmarks.search_record")
}


def test_raw_records_say_on_what_they_were_measured():
    scripts = {SUMMARY[name]["command"].split()[2].removeprefix("benchmarks.") for name in MEASURED_ON}
    assert {"adaptive", "progressive", "default_train", "time_to_accuracy", "train_step"} <= scripts


@pytest.mark.parametrize("name", MEASURED_ON)
def test_a_claim_is_of_the_machines_that_its_runs_were_made_on(name):
    """Not of the one on which it was recorded: runs are kept, and may come from several sittings."""
    assert SUMMARY[name]["hardware"] == " and ".join(sorted(MEASURED_ON[name]))


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_raw_record_is_of_the_machines_that_its_rows_were_measured_on(file):
    record = read(file)
    if file.name != "summary.json" and "hardware" in record:
        rows = hardware_of_rows({name: value for name, value in record.items() if name != "hardware"})
        assert not rows or record["hardware"] == " and ".join(sorted(rows))


@pytest.mark.parametrize(("table", "raw"), [("12", "progressive_resnet50"), ("13", "adaptive")])
def test_a_table_made_of_tuned_sides_is_of_the_machines_that_its_runs_were_made_on(table, raw):
    record, made = RESULTS / f"{raw}.json", RESULTS / f"reproduce/{table}_small.json"
    assert record.exists() == made.exists()
    if made.exists():
        on = " and ".join(sorted(hardware_of_rows(read(record))))
        assert read(made)["hardware"] == on


@pytest.mark.parametrize(
    ("recipe", "claim"),
    [
        ("quick", "quick_b0_imagenette_10ep_top1"),
        ("quick", "quick_b0_imagenette_10ep_wall_s"),
        ("finetune", "finetune_land_cover_macro_f1"),
        ("finetune", "scratch_land_cover_macro_f1"),
    ],
)
def test_the_label_of_a_recipe_gives_what_was_measured_and_on_what(recipe, claim):
    """As ``effnetv2 recipes NAME`` shows it: times in minutes."""
    value, unit = SUMMARY[claim]["value"], SUMMARY[claim]["unit"]
    processor = SUMMARY[claim]["hardware"].partition(", ")[2]
    for said in (f"{value / 60:.0f} minutes" if unit == "s" else SHOWN[unit](value), processor):
        assert said in _label(recipe)


@pytest.mark.parametrize("recipe", ["finetune", "transfer_paper"])
def test_the_labels_of_transfer_give_what_was_measured_in_small(recipe):
    """With accuracies alone: their seeds are of several machines."""
    raw = read(RESULTS / "transfer.json")
    said = [SHOWN["fraction"](SUMMARY[f"{arm}_cifar10_top1"]["value"]) for arm in raw["arms"]]
    told = {
        "finetune": f"{raw['num_train_images']:,} of CIFAR-10 at up to {raw['image_size']} px, "
        f"{raw['epochs']:g} epochs: {said[1]}, "
        f"recipe transfer_paper {said[0]}, means of {len(raw['arms']['finetune'])} seeds",
        "transfer_paper": f"CIFAR-10 at {raw['image_size']} px, {raw['epochs']:g} epochs in batches of 64: {said[0]}, "
        f"mean of {len(raw['arms']['transfer_paper'])} seeds",
    }
    assert told[recipe] in _label(recipe)


def test_the_labels_give_the_minutes_of_cifar_10():
    """Of the runs on the machine that is named."""
    arms = read(RESULTS / "transfer.json")["arms"]
    machine = "AMD EPYC (family 25, model 17) with AVX-512"
    for arm, said in (("finetune", "{:.0f} to {:.0f} minutes"), ("transfer_paper", "took {:.0f} minutes")):
        minutes = sorted(row["train_s"] / 60 for row in arms[arm] if row["hardware"] == f"2 cores, {machine}")
        assert f"{said.format(minutes[0], minutes[-1])} on 2 cores, {machine}" in _label(arm)
        assert len(minutes) == (3 if arm == "finetune" else 1)


def test_the_label_of_finetune_gives_the_minutes_of_a_fold():
    raw = read(ROOT / "benchmarks/results/finetune_land_cover.json")
    minutes = [seconds / 60 for seconds in raw["finetune"]["seconds_by_fold"]]
    assert f"{min(minutes):.0f} to {max(minutes):.0f} minutes a fold" in _label("finetune")


def test_the_label_of_quick_gives_what_it_comes_to_since_precision_is_measured():
    """The least and the most of the seeds, and on which machine; as the page of results has them, but as ranges."""
    raw = read(RESULTS / "time_to_accuracy.json")
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
def test_the_labels_of_resnet_50_give_what_was_measured_in_small(recipe):
    """By another recipe on another set, which is said."""
    speedup, gain = (SUMMARY[f"progressive_{what}_resnet50_imagenette"] for what in ("speedup", "top1_gain"))
    raw = read(RESULTS / "progressive_resnet50.json")
    px, asked = raw["regime"]["image_size"], raw["arms"]["progressive"][0]["asked"]
    assert (asked["recipe"], asked["model"]) == ("quick", get_recipe(recipe).model)
    assert f"progressive.image_size={{start: {px // 2}, end: {px}}}" in asked["settings"]
    ratio, points = SHOWN["ratio"], SHOWN["points"]
    assert (
        f"not measured on ImageNet. In small, with recipe quick on Imagenette from {px // 2} to {px} px: "
        f"{ratio(speedup['value'])} times ({ratio(speedup['low'])} to {ratio(speedup['high'])}) as fast as {px} px "
        f"throughout, at {points(gain['value'])} points of top-1 "
        f"({points(gain['low'])} to {points(gain['high'])}), {speedup['n']} seeds"
    ) in _label(recipe)


def test_the_minutes_to_timms_top1_are_those_of_the_runs():
    """As ranges, and their ratio for the fastest run of timm's: the paces of the machine differ too much for others."""
    raw = read(RESULTS / "time_to_accuracy.json")
    page = (ROOT / "docs/benchmarks/results.md").read_text(encoding="utf-8")
    sides = [
        (raw["timm"], 0), (raw["timm_lower"], 0), (raw["torchvision"], 0),
        (raw["ours"]["2"], 1), (raw["ours"]["3"], 1), (raw["ours_same_minutes"], 0),
    ]  # fmt: skip
    for rows, digits in sides:
        top1 = ", ".join(f"{100 * one:.1f} %" for one in sorted(row["top1"] for row in rows))
        minutes = sorted(row["train_s"] / 60 for row in rows)
        assert f"| {top1} | {minutes[0]:.{digits}f} to {minutes[-1]:.{digits}f} |" in page
    theirs, mine = (sorted(row["train_s"] for row in rows) for rows in (raw["timm"], raw["ours"]["3"]))
    ratios = f"{theirs[0] / mine[-1]:.1f} to {theirs[0] / mine[0]:.1f}"
    slower = f"timm's slowest run took {theirs[-1] / theirs[0] - 1:.0%} longer".replace("%", " %")
    for text in (page, (ROOT / "README.md").read_text(encoding="utf-8")):
        (row,) = [line for line in text.splitlines() if line.startswith("|") and "timm" in line and ratios in line]
        assert "3 epochs" in row or f"3 epochs: {mine[0] / 60:.1f} to {mine[-1] / 60:.1f} minutes" in text
        assert slower in " ".join(text.split())


@pytest.mark.parametrize("where", ["label", "page"])
def test_what_stands_beside_finetune_is_said_to_be_quick_as_it_comes(where):
    """Another recipe, not the same from scratch: the benchmark changes nothing of it but its length."""
    quick = get_recipe("quick")
    px, tta = quick.progressive.image_size, {"none": "one view"}[quick.tta]
    told = f"{px.start:g} to {px.end:g} px, {quick.augment.flip} flips, {quick.global_pool or 'mean'} pooling, {tta}"
    text = _label("finetune") if where == "label" else _land_cover_page()
    assert "same from scratch" not in text
    assert told in text


def test_there_are_default_runs():
    assert len(DEFAULT_RUNS) >= 3


@pytest.mark.parametrize("name", [run.name.removeprefix("default_train_") for run in DEFAULT_RUNS])
@pytest.mark.parametrize("figure", ["top1", "macro_f1"])
def test_the_default_run_stands_with_its_intervals_and_with_what_it_and_its_probe_reached(name, figure):
    raw = read(ROOT / f"benchmarks/results/default_train_{name}/measured.json")
    claim = SUMMARY[f"default_train_minus_probe_{name}_{figure}"]
    page = (ROOT / "docs/benchmarks/results.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if f"`default_train_minus_probe_{name}_{figure}`" in line]
    chance = ", includes 0" if claim["low"] <= 0 <= claim["high"] else ""
    said = [f"{claim['low']:+.1f} to {claim['high']:+.1f}{chance}"]
    if figure == "top1":
        said += [f"{100 * raw[side]:.1f} %" for side in ("top1", "probe_top1")] + [f"{raw['num_train_images']:,}"]
    assert not [one for one in said if f" {one} |" not in row]
    assert figure == "top1" or f", {raw[figure]:.3f} of the run" in row


def _label(recipe):
    return " ".join(named_recipes()[recipe].description.split())


def _page(name: str) -> str:
    return " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())


def _land_cover_page() -> str:
    return _page("benchmarks/land-cover.md")


def test_the_page_of_land_cover_gives_the_folds_with_their_intervals_and_what_stands_beside_them():
    best, page = (read(ROOT / "benchmarks/results/land_cover.json")["best"], _land_cover_page())
    # Of what the first fold began with, which is ImageNet's weights only where folds are dealt at random.
    (probe,) = best["stratified"]["split_comparison"]
    for split, told in best.items():
        (low, high), (least, most) = told["intervals"]["macro_f1"], told["intervals"]["top1"]
        over = told["fold_mean"]["macro_f1"]
        beside = probe["by_place" if split == "spatial" else "at_random"]["macro_f1"]
        assert (
            f"`land_cover_top1_{split}`) | {told['macro_f1']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{over['mean']:.3f} ± {over['deviation']:.3f} | {told['top1']:.1%} "
            f"({100 * least:.1f} to {100 * most:.1f}) | {beside:.3f} | {told['majority']['macro_f1']:.3f} |"
        ).replace("%", " %") in page
    first = [choice[0].partition(" ")[2] for told in best.values() for choice in told["chosen"]]
    assert first.count("class_sampling=equal") == 9
    assert "`class_sampling=equal` was the best in nine of the ten folds" in page
    assert not any(tried.startswith("aerial") for told in best.values() for row in told["chosen"] for tried in row)


def test_the_page_of_land_cover_gives_what_limits_it_as_it_was_counted():
    found = read(ROOT / "benchmarks/results/land_cover_limits.json")
    place, chance, both, page = found["spatial"], found["stratified"], found["both"], _land_cover_page()

    def percent(*which: dict) -> list[int]:
        return [round(100 * one["value"]) for one in which]

    near = [each["neighbours"] for each in (place, chance)]
    doubted = [each["labels"] for each in (place, chance)]
    recalls = [each["classes"][name]["recall"] for each in (place, chance) for name in place["classes"]]
    rare = [each["classes"]["grassland"] for each in (place, chance)]
    apart = percent(*(one["top1_where_it_has_not"] for one in near))
    alike = percent(*(one["top1_where_it_has"] for one in near))
    labels = [sorted(percent(*(one[of] for one in doubted))) for of in ("of_all", "of_the_mistakes")]
    grass = sorted(percent(*(one["by_class"]["grassland"] for one in doubted)))
    others = sorted(percent(*(recall for recall in recalls if recall not in [one["recall"] for one in rare])))
    called = [one["called"]["smallholder_agriculture"] for one in rare]
    learnt = percent(near[1]["top1_learnt_near"], near[1]["top1_not_learnt_near"])
    for said in (
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
        f"{called[0]} and {called[1]} of its images",
        f"Recall of the other classes is {others[0]} % to {others[-1]} %",
        f"have a top-1 of {learnt[0]} %, and the others {learnt[1]} %",
        f"estimates +{place['labelled']['gain']:.2f} of macro-F1",
    ):
        assert said in page, said


@pytest.mark.parametrize("split", ["spatial", "stratified"])
def test_the_page_of_land_cover_gives_every_start_as_it_was_measured(split):
    wide, page = (read(ROOT / "benchmarks/results/land_cover.json")["wide"], _land_cover_page())
    starts = {"imagenet": "ImageNet", "both": "ImageNet, then AID", "aerial": "AID", "scratch": "none"}
    drawn = ("null", "equal")
    assert set(wide[split]) == {
        f"{start} class_sampling={class_sampling}" for start in starts for class_sampling in drawn
    }
    rows = []
    for start, class_sampling in product(starts, drawn):
        told = wide[split][f"{start} class_sampling={class_sampling}"]
        (low, high), (least, most) = told["intervals"]["macro_f1"], told["intervals"]["top1"]
        over, probe = told["fold_mean"]["macro_f1"], told["linear_probe_macro_f1"]
        rows.append(
            f"| {starts[start]} | `{class_sampling}` | {told['macro_f1']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{over['mean']:.3f} ± {over['deviation']:.3f} | {100 * told['top1']:.1f} % "
            f"({100 * least:.1f} to {100 * most:.1f}) | {'' if probe is None else f'{probe:.3f} '}|"
        )
    assert " ".join(rows) in page


def test_the_page_of_rare_classes_gives_every_way_of_balancing_as_it_was_measured():
    found = read(ROOT / "benchmarks/results/land_cover.json")["balancing"]
    page = (ROOT / "docs/benchmarks/land-cover.md").read_text(encoding="utf-8")
    rows = []
    for way, told in found.items():
        low, high = told["gain_interval"]
        seeds = ", ".join(f"{score:.3f}" for score in told["macro_f1"])
        assert len(told["macro_f1"]) == 3
        chance = ", includes 0" if low <= 0 <= high else ""
        over = "" if way == "class_sampling=null" else f"{told['gain']:+.3f} ({low:+.3f} to {high:+.3f}){chance} "
        rows.append(f"| `{way}` | {seeds} | {sum(told['macro_f1']) / 3:.3f} | {over}|")
    assert "\n".join(rows) in page


def test_the_guide_on_calibration_gives_what_was_measured():
    page = _page("how-to/evaluate-and-compare.md")
    for halves in read(RESULTS / "calibration.json").values():
        top1 = sum(one["top1"] for one in halves) / 2
        before, after = (", ".join(f"{one[when]['ece']:.3f}" for one in halves) for when in ("without", "with"))
        assert f"| {100 * top1:.1f} % | {before} | {after} |" in page


def test_the_guide_on_unknown_images_gives_what_was_measured():
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


def test_the_guide_on_weights_gives_what_wrong_preprocessing_costs():
    found, page = read(RESULTS / "linear_probe_imagenette.json"), _page("how-to/convert-weights.md")
    shown = [sides for name, sides in found.items() if name.endswith(", 224 px") and "crop" not in name]
    assert len(shown) == 6
    for sides in shown:
        own, given = (100 * sum(sides[side]) / len(sides[side]) for side in ("own", "given"))
        assert f"| {own:.1f} % | {given:.1f} % |" in page


def test_the_page_of_search_gives_what_its_architecture_came_to():
    found, page = read(RESULTS / "search_found.json")["networks"], _page("explanation/architecture-search.md")
    for one in found.values():
        size = f"{one['parameters'] / 1e6:.3f} M"
        assert f"| {100 * one['top1']:.1f} % | {one['step_ms']:.1f} ms | {size} | {one['reward']:.3f} |" in page
    ours, baseline = found["found"], found["V2-B0"]
    assert f"{100 * (baseline['top1'] - ours['top1']):.1f} points more top-1" in page
    assert f"{baseline['step_ms'] / ours['step_ms']:.1f} times as long" in page
