"""Models on the hub: loading in timm and transformers, the model card, and errors."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from tests.command_line import effnetv2, effnetv2_fresh
from tests.hub_server import serving
from tests.messages import mentioning, mentions
from tests.workflows.conftest import MACHINE, TINY
from typer.testing import CliRunner

import efficientnetv2 as ev2
from efficientnetv2.cli.main import app
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.ensemble import write_members
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.training.initial_weights import BUNDLED
from efficientnetv2.workflows import push as workflow

timm = pytest.importorskip("timm")
# huggingface_hub calls httpx2 with this argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

B0 = "efficientnetv2_b0"
CLASSES = ("oak", "elm|ash", "fir")


def saved(path: Path, model: str | ev2.Architecture = B0, classes=CLASSES, *, channels=3, **attributes) -> Path:
    """A model file with random weights at 64 px."""
    torch.manual_seed(0)
    network = ev2.create(model, num_classes=len(classes), in_channels=channels)
    network.preprocessing = Preprocessing(image_size=64).with_channels(channels)
    for name, value in attributes.items():
        setattr(network, name, value)
    ev2.save(path, network, class_names=classes)
    return path


@pytest.fixture
def image(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def logits(network, channels=3):
    images = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network.eval()(images)


@pytest.mark.parametrize(
    ("model", "channels"),
    [(B0, 3), (B0, 5), (replace(ev2.get_architecture("efficientnet_b0"), padding="symmetric"), 3),
     ("timm:resnet18", 3), ("timm:mobilenetv3_small_050", 4)],
)  # fmt: skip
def test_timm_opens_a_folder_with_equal_logits(tmp_path, model, channels):
    path = saved(tmp_path / "model.safetensors", model, channels=channels)
    pushed = ev2.push(path, output=tmp_path / "folder")
    assert {file.name for file in pushed.folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert pushed.url is None
    theirs = timm.create_model(f"local-dir:{pushed.folder}", pretrained=True)
    assert torch.allclose(logits(ev2.load(path), channels), logits(theirs, channels), atol=1e-5)
    assert tuple(theirs.pretrained_cfg["label_names"]) == CLASSES
    assert list(theirs.pretrained_cfg["input_size"]) == [channels, 64, 64]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_pipeline_of_transformers_gives_the_probabilities_of_predict(tmp_path, image, activation):
    transformers = pytest.importorskip("transformers")
    calibration = Calibration(2.5, 100, "minival")
    path = saved(tmp_path / "model.safetensors", activation=activation, calibration=calibration)
    folder = ev2.push(path, output=tmp_path / "folder").folder
    classify = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    ours = ev2.Predictor(path, device="cpu")(image)[0].probabilities
    theirs = {one["label"]: one["score"] for one in classify(str(image))}
    assert theirs == pytest.approx(ours, abs=1e-5)
    # The temperature is part of the weights.
    theirs = logits(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert torch.allclose(logits(ev2.load(path)) / 2.5, theirs, atol=1e-5)
    back = convert.read(folder).network
    assert (back.class_names, back.activation) == (CLASSES, activation)
    assert torch.allclose(logits(back), theirs, atol=1e-5)


def test_code_of_the_card_turns_photos_upright(tmp_path, image):
    photo = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).resize((64, 40)).save(photo, quality=95, exif=exif)
    path = saved(tmp_path / "model.safetensors")
    folder = ev2.push(path, output=tmp_path / "folder").folder
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    code = code.replace("image.jpg", str(photo)).replace("local-dir:folder", f"local-dir:{folder}")
    *statements, value = code.strip().splitlines()
    names = {}
    exec("\n".join(statements), names)
    theirs = eval(value, names)
    assert theirs == pytest.approx(ev2.Predictor(path, device="cpu")(photo)[0].probabilities, abs=1e-3)
    turned = Image.fromarray(np.asarray(Image.open(photo)))  # without its orientation
    assert ev2.Predictor(path, device="cpu")(turned)[0].probabilities != pytest.approx(theirs, abs=1e-3)


def test_temperature_of_several_views_is_left_out(tmp_path):
    own = {"preprocessing": Preprocessing(image_size=64, tta="d4"), "calibration": Calibration(2.5, 100, "minival")}
    path = saved(tmp_path / "model.safetensors", **own)
    pushed = ev2.push(path, output=tmp_path / "folder")
    theirs = logits(timm.create_model(f"local-dir:{pushed.folder}", pretrained=True))
    assert torch.allclose(logits(ev2.load(path)), theirs, atol=1e-5)
    assert any(mentions(note, "temperature", "left out") for note in pushed.notes)


def test_card_has_the_facts_of_the_run(tmp_path, photos):
    small = TINY | {"model": "timm:test_efficientnet", "epochs": 1}
    run = ev2.train(photos, output=tmp_path / "run", settings={"progressive.stages": 1}, **small)
    folder = ev2.push(run, output=tmp_path / "folder", license="cc-by-4.0").folder
    card = ModelCard.load(folder / "README.md")
    low, high = run.intervals["top1"]
    assert mentions(
        card.text, "Top-1 accuracy", f"{100 * run.metrics['top1']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"
    )
    assert mentions(card.text, f"Evaluated on {run.report['num_images']} images", "photos", "None of these")
    assert mentions(card.text, f"Trained on {run.report['num_train_images']} images")
    assert mentions(card.text, "green", run.report["per_class"]["green"]["support"])
    assert mentions(card.text, "Fewer than 30", "blue", "green", "red")
    assert mentions(card.text, "random weights")
    assert not any(str(tmp_path) in text or str(photos) in text for text in (card.content, card.text))
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "timm")
    ev2.evaluate(run, photos, split="all", output=tmp_path / "evaluation", **MACHINE)
    ev2.push(run, output=folder, evaluation=tmp_path / "evaluation", overwrite=True)
    text = (folder / "README.md").read_text()
    assert mentions(text, "Evaluated on 48 images")
    assert mentions(text, "optimistic")
    other = saved(tmp_path / "other.safetensors")
    with pytest.raises(ev2.InputError, match=mentioning("evaluation", "another model", "effnetv2 evaluate")):
        ev2.push(other, output=tmp_path / "none", evaluation=tmp_path / "evaluation")
    for options, facts in (({"tta": "d4"}, ("tta d4", "none")), ({"image_size": 80}, ("image_size 80",))):
        ev2.evaluate(run, photos, split="all", output=tmp_path / "otherwise", **options, **MACHINE)
        with pytest.raises(ev2.InputError, match=mentioning("evaluation", *facts, "effnetv2 evaluate")):
            ev2.push(run, output=folder, evaluation=tmp_path / "otherwise", overwrite=True)


@pytest.mark.parametrize(
    ("weights", "facts", "base"),
    [
        ("efficientnetv2_b0.in1k", ("efficientnetv2_b0.in1k", "Apache-2.0"), "timm/tf_efficientnetv2_b0.in1k"),
        ("efficientnet_b0.tv_in1k", ("efficientnet_b0.tv_in1k", "BSD-3-Clause"), None),
        ("timm:resnet18.a1_in1k", ("resnet18.a1_in1k", "apache-2.0"), "timm/resnet18.a1_in1k"),
        ("/srv/private/efficientnetv2_b0.in1k.safetensors", ("Apache-2.0",), "timm/tf_efficientnetv2_b0.in1k"),
        (str(BUNDLED / "efficientnetv2_b0.safetensors"), ("bundled with efficientnetv2", "Apache-2.0"), None),
        (
            r"C:\python\Lib\site-packages\efficientnetv2\examples\weights\efficientnetv2_b0.safetensors",
            ("bundled with efficientnetv2", "Apache-2.0"),
            None,
        ),
        ("/srv/private/mine.safetensors", ("mine.safetensors", "unknown"), None),
        ("../private/mine.safetensors", ("mine.safetensors", "unknown"), None),
        (r"C:\private\mine.safetensors", ("mine.safetensors", "unknown"), None),
        ("/srv/private/efficientnet_b0.tv_in1k.pth", ("BSD-3-Clause",), None),
        ("none", ("random weights",), None),
    ],
)
def test_card_has_the_license_of_the_initial_weights(tmp_path, weights, facts, base):
    model = "timm:resnet18" if "resnet" in weights else B0
    path = saved(tmp_path / "model.safetensors", model, recipe={"weights": weights})
    folder = ev2.push(path, output=tmp_path / "folder").folder
    card = ModelCard.load(folder / "README.md")
    assert mentions(card.text, *facts)
    assert card.data.base_model == base
    assert not any(b"private" in file.read_bytes() for file in folder.iterdir())


@pytest.mark.parametrize(("activation", "shown"), [("softmax", False), ("sigmoid", True), (None, True)])
def test_card_has_no_calibration_error_of_labels_that_share_a_probability(tmp_path, activation, shown):
    network = ev2.load(saved(tmp_path / "model.safetensors"))
    found = {"ece": 0.5, "intervals": {}, "per_class": {}, "num_images": 9, "evaluated_on": "val", "data": "x"}
    found |= {"optimistic": False, "bootstrap_unit": "image"} | ({"activation": activation} if activation else {})
    assert mentions(workflow._card(network, found, "a/b", (), None), "calibration") == shown


def test_report_of_another_program_next_to_the_model_is_ignored(tmp_path):
    path = saved(tmp_path / "model.safetensors")
    (tmp_path / "report.json").write_text('{"intervals": {}, "optimistic": false}')
    folder = ev2.push(path, output=tmp_path / "folder").folder
    assert mentions((folder / "README.md").read_text(), "No report")
    with pytest.raises(ev2.InputError, match=mentioning("report.json", "evaluation")):
        ev2.push(path, output=tmp_path / "other", evaluation=tmp_path)


def test_unsupported_models_are_rejected_with_their_name(tmp_path):
    for model, classes, facts in (
        (replace(ev2.get_architecture(B0), head_channels=64), CLASSES, ("published", "effnetv2 export")),
        (replace(ev2.get_architecture(B0), global_pool="avg+center"), CLASSES, ("avg+center", "effnetv2 export")),
        ("torchvision:mobilenet_v3_small", CLASSES, ("torchvision:mobilenet_v3_small", "effnetv2 export")),
        (B0, (), ("classifier", "weights")),
    ):
        path = saved(tmp_path / "model.safetensors", model, classes)
        with pytest.raises(ev2.InputError, match=mentioning(path, *facts)):
            ev2.push(path, output=tmp_path / "folder")
    for number in (1, 2):
        (tmp_path / f"folds/fold{number}").mkdir(parents=True)
        saved(tmp_path / f"folds/fold{number}/model.safetensors")
    write_members(tmp_path / "folds", ["fold1/model.safetensors", "fold2/model.safetensors"])
    with pytest.raises(ev2.InputError, match=mentioning("ensemble", "fold1")):
        ev2.push(tmp_path / "folds", output=tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert not list(tmp_path.glob(".hub.*"))


def test_card_in_the_current_folder_has_the_name_of_the_folder(tmp_path, monkeypatch):
    path = saved(tmp_path / "model.safetensors")
    (tmp_path / "trees").mkdir()
    monkeypatch.chdir(tmp_path / "trees")
    ev2.push(path, output=".")
    assert "local-dir:trees" in (tmp_path / "trees/README.md").read_text()
    assert {file.name for file in Path().iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_overwrite_replaces_only_a_pushed_folder(tmp_path):
    path = saved(tmp_path / "model.safetensors")
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("mine")
    (project / "config.json").write_text("{}")
    with pytest.raises(ev2.InputError, match=mentioning("output", "project", "folder")):
        ev2.push(path, output=project, overwrite=True)
    trained = saved(project / "model.safetensors").read_bytes()
    with pytest.raises(ev2.InputError, match=mentioning("output", "project", "folder")):
        ev2.push(path, output=project, overwrite=True)
    assert (project / "README.md").read_text() == "mine"
    assert (project / "model.safetensors").read_bytes() == trained


def test_raster_bands_are_noted(tmp_path):
    bands = replace(Preprocessing(image_size=64).with_channels(4), bands=Bands((1, 2, 3, 4)))
    path = saved(tmp_path / "model.safetensors", channels=4, preprocessing=bands)
    pushed = ev2.push(path, output=tmp_path / "folder")
    assert mentions(pushed.notes, "raster bands")
    card = (pushed.folder / "README.md").read_text()
    assert mentions(card, "4 channels", "transformers", "RGB")
    assert "pipeline(" not in card
    assert ModelCard(card).data.tags == ["timm", "efficientnetv2"]


@pytest.mark.parametrize("channels", [3, 4])
def test_command_names_transformers_only_if_its_pipeline_opens_the_files(tmp_path, channels):
    saved(tmp_path / "model.safetensors", channels=channels)
    done = effnetv2("push", "model.safetensors", "--output", "folder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "timm.create_model" in done.stdout
    assert ("pipeline(" in done.stdout) == (channels == 3)


def test_push_is_one_commit_that_timm_opens_by_name(tmp_path, hub):
    path = saved(tmp_path / "model.safetensors")
    pushed = ev2.push(path, "owner/trees", private=True)
    assert (pushed.url, pushed.folder) == (f"{hub.url}/owner/trees", None)
    assert hub.repositories["owner/trees"]["visibility"] == "private"
    assert len(hub.commits) == 1
    theirs = timm.create_model("hf_hub:owner/trees", pretrained=True)
    assert torch.allclose(logits(ev2.load(path)), logits(theirs), atol=1e-5)
    assert b'create_model("hf_hub:owner/trees"' in hub.files["owner/trees/README.md"]
    with pytest.raises(ev2.InputError, match=mentioning("owner/trees", "exists", "config.json", "overwrite=True")):
        ev2.push(path, "owner/trees")
    assert len(hub.commits) == 1
    ev2.push(path, "owner/trees", overwrite=True, output=tmp_path / "folder", license="mit")
    assert len(hub.commits) == 2
    assert (tmp_path / "folder/README.md").read_bytes() == hub.files["owner/trees/README.md"]


def test_private_push_into_a_public_repository_is_rejected(tmp_path, hub):
    path = saved(tmp_path / "model.safetensors")
    ev2.push(path, "owner/trees")
    with pytest.raises(ev2.InputError, match=mentioning("owner/trees", "public", "private")):
        ev2.push(path, "owner/trees", private=True, overwrite=True)
    assert len(hub.commits) == 1


@pytest.mark.parametrize("exists", [False, True])
def test_later_one_of_two_parallel_pushes_is_rejected(tmp_path, hub, monkeypatch, exists):
    path, other = saved(tmp_path / "model.safetensors"), saved(tmp_path / "other.safetensors", classes=("oak", "fir"))
    if exists:
        ev2.push(path, "owner/trees")
    write = convert.write

    def meanwhile(folder, network, to):
        monkeypatch.setattr(workflow.convert, "write", write)
        ev2.push(other, "owner/trees", overwrite=True)
        return write(folder, network, to)

    monkeypatch.setattr(workflow.convert, "write", meanwhile)
    facts = ("changed", "overwrite=True") if exists else ("name is taken", "another name")
    with pytest.raises(ev2.InputError, match=mentioning("owner/trees", *facts)):
        ev2.push(path, "owner/trees", overwrite=exists)
    assert len(hub.commits) == 1 + exists
    assert json.loads(hub.files["owner/trees/config.json"])["num_classes"] == 2
    ev2.push(path, "owner/trees", overwrite=True)
    assert json.loads(hub.files["owner/trees/config.json"])["num_classes"] == len(CLASSES)


def test_nothing_is_uploaded_if_the_hub_does_not_find_the_new_repository(tmp_path, hub):
    """Without the id of the last commit, another push could be overwritten."""
    path = saved(tmp_path / "model.safetensors")
    hub.repositories = type("Unseen", (dict,), {"__contains__": lambda *_: False})()
    with pytest.raises(ev2.InputError, match=mentioning("owner/trees", "was created", "push again")):
        ev2.push(path, "owner/trees")
    assert not hub.commits
    hub.repositories = dict(hub.repositories)
    ev2.push(path, "owner/trees")
    assert len(hub.commits) == 1


def test_command_pushes_and_prints_how_to_load_the_model(tmp_path, hub):
    saved(tmp_path / "model.safetensors")
    done = effnetv2_fresh("push", "model.safetensors", "owner/trees", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"] == f"{hub.url}/owner/trees"
    assert mentions(done.stderr, "timm.create_model", "hf_hub:owner/trees")


def test_command_writes_a_folder(tmp_path):
    saved(tmp_path / "model.safetensors")
    done = effnetv2("push", "model.safetensors", "--output", "folder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "timm.create_model", "local-dir:folder")
    for words, facts in (
        (("push", "model.safetensors"), ("REPO", "--output")),
        (("push", "model.safetensors", "--output", "folder"), ("--output", "exists", "--overwrite")),
        (("push", "model.safetensors", "--output", "model.safetensors"), ("--output", "file")),
        (("push", "nowhere", "--output", "other"), ("nowhere", "does not exist")),
        (("push", "model.safetensors", "trees"), ("REPO", "owner/name", "trees")),
        (("push", "model.safetensors", "https://huggingface.co/owner/trees"), ("REPO", "owner/name")),
        (("push", "model.safetensors", "owner/trees"), ("token", "hf auth login")),
    ):
        done = effnetv2(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert mentions(done.stderr, *facts), done.stderr


def test_errors_of_the_hub_or_connection_are_explained(tmp_path, hub, monkeypatch):
    path = saved(tmp_path / "model.safetensors")
    with pytest.raises(ev2.InputError, match=mentioning("john/trees", 403, "rights", "token")):
        ev2.push(path, "john/trees", output=tmp_path / "kept")
    assert (tmp_path / "kept/model.safetensors").is_file()
    with pytest.raises(ev2.InputError, match=mentioning("owner/trees", "license", "must be a known one")):
        ev2.push(path, "owner/trees", license="Apache 2.0")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ev2.InputError, match=mentioning("owner/trees", 401, "hf auth login")):
        ev2.push(path, "owner/trees")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ev2.InputError, match=mentioning("HF_HUB_OFFLINE")):
        ev2.push(path, "owner/trees")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ev2.InputError, match=mentioning("owner/trees", "http://127.0.0.1:9", "output")):
        ev2.push(path, "owner/trees")
    assert not hub.commits


def test_files_with_other_logits_in_timm_are_not_written(tmp_path, monkeypatch):
    path = saved(tmp_path / "model.safetensors")
    write = convert.write

    def damaged(folder, network, to):
        network = ev2.load(path)
        with torch.no_grad():
            network.classifier.bias += 1
        return write(folder, network, to)

    monkeypatch.setattr(workflow.convert, "write", damaged)
    with pytest.raises(ev2.InputError, match=mentioning("timm", "other logits")):
        ev2.push(path, output=tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_command_passes_every_option_on(monkeypatch):
    seen = []

    def push(model, repo, **given):
        seen.append((model, repo, given))
        return workflow.Push("https://hub/owner/name", None, (), False)

    monkeypatch.setattr(workflow, "push", push)
    words = "push run owner/name --private --overwrite --license mit --evaluation rated --output out"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    given = {"output": Path("out"), "evaluation": Path("rated"), "license": "mit", "private": True, "overwrite": True}
    assert seen == [("run", "owner/name", given)]


def test_folder_may_be_a_link_to_another_disk(tmp_path, monkeypatch):
    disk, replace_file = tmp_path / "disk", Path.replace

    def rename(file, place):
        if disk not in file.resolve().parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace_file(file, place)

    (disk / ".hub.killed.partial").mkdir(parents=True)
    (tmp_path / "link").symlink_to(disk)
    model = saved(tmp_path / "model.safetensors")
    monkeypatch.setattr(Path, "replace", rename)
    ev2.push(model, output=tmp_path / "link")
    assert {file.name for file in disk.iterdir()} == {*workflow._FILES, ".hub.killed.partial"}
