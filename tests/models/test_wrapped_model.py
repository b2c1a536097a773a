"""Models of timm and torchvision and custom modules have the interface of this package's models."""

import builtins
import copy
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch
import torchvision
from tests.messages import mentioning
from torch import nn
from torch.nn import functional

from efficientnetv2.inference.predictor import Predictor
from efficientnetv2.models import model_file
from efficientnetv2.models.adapt import adapt
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.factory import create
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.training.initial_weights import weights_shape
from efficientnetv2.utils.errors import InputError

timm = pytest.importorskip("timm")


def small(classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "embed_dim", "image_size"),
    [
        ("timm:resnet10t", 512, 224),  # published test size: 224
        ("timm:vit_tiny_patch16_224", 192, 224),
        ("torchvision:resnet18", 512, 224),
        ("torchvision:mobilenet_v3_small", 1024, 224),
    ],
)
def test_library_model_has_logits_and_embedding(model, embed_dim, image_size):
    network = create(model, num_classes=5).eval()
    assert isinstance(network, Network)
    assert (network.num_classes, network.in_channels, network.embed_dim) == (5, 3, embed_dim)
    assert network.preprocessing.image_size == image_size
    pictures = torch.randn(2, 3, image_size, image_size)
    with torch.inference_mode():
        logits, embedding = network(pictures), network.embed(pictures)
        assert logits.shape == (2, 5)
        assert embedding.shape == (2, embed_dim)
        classifier = network.module.get_submodule(network.classifier_name)
        torch.testing.assert_close(embedding @ classifier.weight.T + classifier.bias, logits)


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnetv2_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_classifier_and_stem_equal_the_configuration_of_timm(name):
    with torch.device("meta"):
        network = create(f"timm:{name}")
    config = network.module.pretrained_cfg
    assert network.classifier_name == config["classifier"]
    assert network.stem_name == config["first_conv"]


@pytest.mark.parametrize(
    ("name", "classifiers"),
    [
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("levit_128s", ("head.linear", "head_dist.linear")),
        ("crossvit_9_240", ("head.0", "head.1")),
        ("volo_d1_224", ("aux_head", "head")),  # timm names one of them
        ("vit_tiny_patch16_224", ("head",)),
    ],
)
def test_all_classifiers_of_a_model_are_found(name, classifiers):
    """By the published configurations of timm 1.0, in the order of the module."""
    with torch.device("meta"):
        network = create(f"timm:{name}", num_classes=7)
        bare = type(network.module).__name__
    assert network.classifier_names == classifiers, bare
    assert network.classifier_name == classifiers[-1]
    assert {network.module.get_submodule(one).out_features for one in classifiers} == {7}


def test_model_without_its_two_classifiers_is_rejected():
    with pytest.raises(InputError, match=mentioning("num_classes=N", "classifier")):
        WrappedModel(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0))


def test_preprocessing_of_timm_is_used():
    """timm 1.0, tf_efficientnetv2_s.in1k: 384 px, the full image, mean and std 0.5."""
    preprocessing = create("timm:tf_efficientnetv2_s").preprocessing
    assert preprocessing.image_size == 384
    assert preprocessing.crop_pct == 1
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)


def test_module_built_by_timm_has_the_preprocessing_of_timm():
    with torch.device("meta"):
        module = timm.create_model("tf_efficientnetv2_s", num_classes=2, in_chans=4)
        by_name = create("timm:tf_efficientnetv2_s", num_classes=2, in_channels=4)
        network = create(module)
        assert network.preprocessing == by_name.preprocessing
        assert (network.preprocessing.image_size, network.source) == (384, None)
        module.pretrained_cfg = module.pretrained_cfg | {"test_input_size": (3, 64, 96)}
        assert create(module).preprocessing.image_size == 224, "no square, so it is the usual one"
    assert create(small()).preprocessing.image_size == 224


def test_preprocessing_of_torchvision_is_used():
    """Documentation of resnet50 IMAGENET1K_V2: resize to 232, crop 224, bilinear."""
    preprocessing = create("torchvision:resnet50").preprocessing
    assert (preprocessing.image_size, preprocessing.interpolation) == (224, "bilinear")
    assert preprocessing.crop_pct == pytest.approx(224 / 232)


def test_features_equal_timm():
    network = create("timm:resnet10t").eval()
    theirs = timm.create_model("resnet10t", features_only=True).eval()
    theirs.load_state_dict(network.module.state_dict(), strict=False)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, expected in zip(network.features(pictures), theirs(pictures), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("px", [16, 8])
def test_smallest_images_have_the_same_number_of_maps(px):
    """At 16 px the last two maps have one pixel each."""
    backbone = create("timm:resnet10t", features_only=True).eval()
    channels = [one["num_chs"] for one in backbone.network.module.feature_info]
    assert [m.shape[1] for m in backbone(torch.randn(1, 3, px, px))] == list(backbone.channels) == channels


def test_model_without_feature_maps_is_reported():
    with pytest.raises(InputError, match=mentioning("torchvision:resnet18")):
        create("torchvision:resnet18").features(torch.zeros(1, 3, 64, 64))


def test_embeddings_of_two_threads_do_not_mix():
    """As in a server. The first layer waits until both threads are in the module."""
    both = Barrier(2)

    class Waiting(nn.Conv2d):
        def forward(self, x):
            both.wait(timeout=60)
            return super().forward(x)

    module = nn.Sequential(Waiting(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    network = create(module).eval()
    images = [torch.full((1, 3, 8, 8), float(value)) for value in (1, 2)]
    with torch.inference_mode():
        expected = [module[2](module[1](functional.conv2d(x, module[0].weight, module[0].bias))) for x in images]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            found = list(pool.map(network.embed, images))
            assert all(map(torch.equal, found, expected))


def test_custom_module_is_wrapped():
    network = create(small())
    assert (network.num_classes, network.in_channels, network.embed_dim) == (3, 3, 6)
    assert network.source is None
    assert network.preprocessing.image_size == 224
    assert create(network) is network
    assert create(network, num_classes=2)(torch.zeros(2, 3, 16, 16)).shape == (2, 2)


def test_module_around_a_network_keeps_its_preprocessing_and_classes():
    network = create("efficientnetv2_b0", num_classes=2)
    network.preprocessing = replace(network.preprocessing, mean=(0.5, 0.5, 0.5))
    network.class_names, network.activation = ("cat", "dog"), "sigmoid"
    wrapped = create(nn.Sequential(network))
    assert (wrapped.preprocessing, wrapped.class_names) == (network.preprocessing, ("cat", "dog"))
    assert wrapped.activation == "sigmoid"
    other = create(nn.Sequential(network, nn.Linear(2, 5)))
    assert (other.preprocessing, other.class_names) == (network.preprocessing, ())


class Answering(nn.Module):
    """Returns ``form`` of the logits."""

    def __init__(self, form):
        super().__init__()
        self.inner, self.form = small(), form

    def forward(self, x):
        return self.form(self.inner(x))


def test_logits_in_the_output_of_a_module_are_used():
    """As in Hugging Face's classifiers: an ordered dictionary with the loss before or after them."""
    network = create(Answering(lambda logits: OrderedDict(hidden=logits[:, :1], logits=logits))).eval()
    pictures = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(pictures), network.module.inner(pictures))
    assert network.embed(pictures).shape == (2, 6)


@pytest.mark.parametrize(
    ("form", "called"), [(lambda logits: {"scores": logits}, "dict"), (lambda logits: [logits], "list")]
)
def test_output_that_is_not_a_tensor_is_named(form, called):
    with pytest.raises(InputError, match=f"Answering returns a {called}, but .*'logits'"):
        create(Answering(form))(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), ("nn.Conv2d",)),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), ("nn.Linear",)),
    ],
)
def test_module_without_a_convolution_or_a_classifier_is_rejected(module, says):
    with pytest.raises(InputError, match=mentioning(*says)):
        WrappedModel(module)


def test_model_built_without_a_classifier_is_rejected():
    """The last nn.Linear is inside the transformer, which would be cut in two."""
    with pytest.raises(InputError, match=mentioning("num_classes=N", "classifier")):
        WrappedModel(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    pictures = torch.randn(2, 3, 64, 64)
    embedding = create("timm:convnextv2_atto", num_classes=0)
    assert embedding.eval()(pictures).shape == (2, 320)


def test_stochastic_depth_can_be_scheduled_if_timm_builds_none():
    network = create("timm:convnext_atto")
    rates = lambda: [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]  # noqa: E731
    assert set(rates()) == {0.0}
    controlled = apply_regularization(network, dropout=0.3, drop_path=0.2)
    assert controlled.notes == ()
    assert max(rates()) == pytest.approx(0.2)
    assert sorted(rates()) == rates()
    assert min(rates()) < 0.1


def test_dropout_and_drop_path_arguments_are_used():
    built = create("torchvision:efficientnet_b0")
    assert {m.p for m in built.modules() if isinstance(m, nn.Dropout)} == {0.2}  # torchvision's default
    network = create("torchvision:efficientnet_b0", dropout=0.4)
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.4}
    depth = lambda n: max(m.p for m in n.modules() if type(m).__name__ == "StochasticDepth")  # noqa: E731
    assert depth(network) == depth(built) > 0.15
    assert depth(create("torchvision:efficientnet_b0", drop_path=0.5)) == pytest.approx(0.5)
    assert create("timm:resnet10t", dropout=0.1).module.drop_rate == 0.1
    with pytest.raises(InputError, match="dropout is 1"):
        create("timm:resnet10t", dropout=1.0)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("timm:resnet18x", "'resnet18x'; did you mean 'resnet18'"),
        ("timm:resnet18.a9_in1k", r"no weights 'resnet18\.a9_in1k'; did you mean 'resnet18\.a\d_in1k'.*Known: "),
        ("torchvision:resnet_18", "'resnet_18'; did you mean 'resnet18'"),
        ("torchvision:fcn_resnet50", "torchvision.*fcn_resnet50"),
        ("torchvision:resnet50.IMAGENET1K_V3", "'IMAGENET1K_V3'|IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:vit_b_16@300", r"'vit_b_16@300' .*Known: vit_b_16@224, vit_b_16@384\."),
        ("torchvision:resnet18@300", "resnet18@300.* '@300' out"),
        ("torchvision:vit_b_16@224.IMAGENET1K_V1", "vit_b_16@224.* '@224' out"),
    ],
)
def test_unknown_names_and_tags_are_rejected(model, says):
    with pytest.raises(InputError, match=says):
        create(model)


def test_missing_timm_names_the_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=mentioning("timm:resnet18", "2")):
        create("timm:resnet18")


@pytest.mark.parametrize("model", ["timm:resnet10t", "torchvision:regnet_y_400mf", "timm:tiny_vit_5m_224"])
def test_model_file_of_a_library_model_is_self_contained(model, tmp_path):
    """regnet cannot be built on the meta device, and tiny_vit has buffers that are not saved."""
    network = create(model, num_classes=2, in_channels=4).eval()
    path = tmp_path / "m.safetensors"
    model_file.save(path, network, class_names=("a", "b"), recipe={"name": "x"})
    state = torch.random.get_rng_state()
    loaded = model_file.load(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.source == model
    assert (loaded.class_names, loaded.recipe) == (("a", "b"), {"name": "x"})
    assert loaded.preprocessing == network.preprocessing
    pictures = torch.randn(1, 4, 224, 224)
    with torch.inference_mode():
        assert torch.equal(loaded(pictures), network(pictures))


def test_timm_reads_the_model_file_of_its_model(tmp_path):
    network = create("timm:resnet10t", num_classes=2)
    model_file.save(tmp_path / "m.safetensors", network, class_names=("a", "b"))
    theirs = timm.create_model("resnet10t", num_classes=2, checkpoint_path=str(tmp_path / "m.safetensors"))
    assert torch.equal(theirs.fc.weight, network.module.fc.weight)


def test_model_file_of_a_custom_module_needs_the_module(tmp_path):
    network = create(small()).eval()
    path = tmp_path / "m.safetensors"
    model_file.save(path, network, class_names=("a", "b", "c"))
    with pytest.raises(InputError, match=mentioning("network=module")):
        model_file.load(path)
    loaded = model_file.load(path, network=small())
    pictures = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(pictures), network(pictures))
    assert loaded.class_names == ("a", "b", "c")
    other = small(classes=4)
    before, kinds = copy.deepcopy(other.state_dict()), [type(part) for part in other.modules()]
    with pytest.raises(InputError, match=mentioning("7.weight", "3", "6", "float32", "4")):
        model_file.load(path, network=other)
    assert [type(part) for part in other.modules()] == kinds
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_optimizer_of_a_custom_module_goes_on_after_loading(tmp_path):
    model_file.save(tmp_path / "m.safetensors", create(small()), class_names=("a", "b", "c"))
    module = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loaded = model_file.load(tmp_path / "m.safetensors", network=module)
    before = [weight.detach().clone() for weight in module.parameters()]
    loaded(torch.randn(2, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(was, now) for was, now in zip(before, module.parameters(), strict=True))


def test_predictor_accepts_a_custom_module():
    network = create(small())
    picture = np.full((20, 30, 3), 128, np.uint8)
    (answer,) = Predictor(network)(picture)
    assert set(answer.probabilities) == {"0", "1", "2"}


class Flattening(nn.Module):
    """As many tutorials write it; ``view`` takes no maps in channels-last memory."""

    def __init__(self):
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x):
        x = self.convolution(x)
        return self.classifier(x.view(x.size(0), -1))


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_custom_module_may_flatten_with_view(tta):
    module = Flattening()
    network = create(module)
    network.preprocessing = replace(network.preprocessing, image_size=32, tta=tta)
    Predictor(network, device="cpu")([np.full((32, 32, 3), value, np.uint8) for value in (9, 99)])
    module(torch.randn(2, 3, 32, 32))


def test_classifier_of_torchvision_without_a_bias_gets_one():
    """A new classifier has one; the tensors of a run and of its resumed start must be the same."""
    with torch.device("meta"):
        as_built, adapted = create("torchvision:maxvit_t", num_classes=2), create("torchvision:maxvit_t")
        adapt(adapted, num_classes=2)
    assert as_built.state_dict().keys() == adapted.state_dict().keys()


def test_copy_has_equal_embeddings():
    network = create("timm:resnet10t", num_classes=2).eval()
    twin = copy.deepcopy(network)
    pictures = torch.randn(1, 3, 64, 64)
    assert torch.equal(network.embed(pictures), twin.embed(pictures))


def test_predictor_rejects_a_model_without_classes(tmp_path):
    for network in (create(small(), num_classes=0), create("timm:resnet10t", num_classes=0)):
        with pytest.raises(InputError, match=mentioning("`weights`", "classifier")):
            Predictor(network)
    path = tmp_path / "headless.safetensors"
    model_file.save(path, network)
    with pytest.raises(InputError, match=mentioning("headless.safetensors", "`weights`")):
        Predictor(path)


SEVERAL_HEADS = ["torchvision:googlenet", "torchvision:inception_v3", "timm:deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("model", SEVERAL_HEADS)
def test_model_file_of_a_model_with_several_heads_is_loaded(model, tmp_path):
    network = create(model, num_classes=3).eval()
    path = tmp_path / "m.safetensors"
    model_file.save(path, network, class_names=("a", "b", "c"))
    loaded = model_file.load(path)
    pictures = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(loaded(pictures), network(pictures))


def test_unchanged_side_head_is_saved_with_its_classes(tmp_path, monkeypatch):
    """As in a pretrained model with a new classifier: other heads keep their classes."""

    class TwoHeads(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.conv, self.side = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)
            self.fc = nn.Linear(4, num_classes)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))

    def build(source, *, num_classes=None, in_channels=None):
        return WrappedModel(TwoHeads(num_classes or 1000), source=source)

    monkeypatch.setattr("efficientnetv2.models.model_file.build_library_model", build)
    pictures = torch.randn(2, 3, 16, 16)
    for network, side in ((build("timm:two"), 1000), (build("timm:two", num_classes=3), 3)):
        path = tmp_path / f"{side}.safetensors"
        model_file.save(path, adapt(network, num_classes=3), class_names=("a", "b", "c"))
        loaded = model_file.load(path)
        assert loaded.module.side.out_features == side
        assert torch.equal(loaded(pictures), network(pictures))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_random_and_pretrained_models_of_torchvision_are_equal(name, tmp_path, monkeypatch):
    """torchvision scales the input only for pretrained models. The file does not state which it is."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    # PyTorch's initialization. With torchvision's, the output does not depend on the image.
    published = torchvision.models.get_model(name, init_weights=False).eval()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: published.state_dict())
    monkeypatch.setattr("efficientnetv2.models.hub.torchvision_file", lambda *_: tmp_path)
    theirs = torchvision.models.get_model(name, weights=weights).eval()
    network = create(f"torchvision:{name}.{weights.name}").eval()
    model_file.save(tmp_path / "m.safetensors", network, class_names=[str(n) for n in range(1000)])
    pictures = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        expected = theirs(pictures)
        assert not torch.equal(published(pictures), expected)
        assert torch.equal(network(pictures), expected)
        assert torch.equal(model_file.load(tmp_path / "m.safetensors")(pictures), expected)


def test_every_weight_of_a_model_with_side_heads_has_a_gradient():
    network = create("torchvision:inception_v3", num_classes=2).train()
    network(torch.randn(2, 3, 96, 96)).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.fixture
def small_transformers(monkeypatch):
    """torchvision's vision transformers with one narrow layer. Image and patch sizes are unchanged."""
    there = torchvision.models.vision_transformer._vision_transformer
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    monkeypatch.setattr(
        "torchvision.models.vision_transformer._vision_transformer", lambda **words: there(**(words | small))
    )


def test_image_size_of_the_weights_is_saved(small_transformers, tmp_path, monkeypatch):
    """torchvision builds a transformer for the size of its weights: 384 px for fine-tuned SWAG."""
    weights = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    theirs = torchvision.models.vit_b_16(image_size=384).eval()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: theirs.state_dict())
    monkeypatch.setattr("efficientnetv2.models.hub.torchvision_file", lambda *_: tmp_path)
    network = create(f"torchvision:vit_b_16.{weights.name}", num_classes=2).eval()
    assert network.source == "torchvision:vit_b_16@384"
    model_file.save(tmp_path / "m.safetensors", network, class_names=("a", "b"))
    loaded = model_file.load(tmp_path / "m.safetensors")
    assert loaded.source == network.source
    pictures = torch.randn(1, 3, 384, 384)
    with torch.inference_mode():
        assert torch.equal(loaded(pictures), network(pictures))
        again = create(loaded.source, num_classes=2)  # as a resumed run builds it
        assert again.module.load_state_dict(loaded.module.state_dict())
    assert again.preprocessing == network.preprocessing
    assert weights_shape("torchvision:vit_b_16") == weights_shape(network.source)


@pytest.mark.parametrize(
    ("model", "image_size", "interpolation"),
    [("vit_b_16", 224, "bilinear"), ("vit_h_14", 224, "bicubic"), ("vit_h_14@518", 518, "bicubic")],
)
def test_new_transformers_accept_the_image_size_of_their_preprocessing(
    small_transformers, model, image_size, interpolation
):
    """torchvision documents 518 px for the default weights of vit_h_14, but builds 224 px without weights."""
    network = create(f"torchvision:{model}", num_classes=2)
    stated = network.preprocessing
    assert (stated.image_size, stated.interpolation) == (image_size, interpolation)
    assert network(torch.zeros(1, 3, image_size, image_size)).shape == (1, 2)
    assert network.source == f"torchvision:{model}"


def test_model_that_scales_its_input_otherwise_than_by_name_is_not_saved(tmp_path):
    """Trained without the scaling, it would be loaded with it."""
    network = create("torchvision:googlenet", num_classes=2)
    network.module.transform_input = False
    with pytest.raises(InputError, match=mentioning("transform_input", "False")):
        model_file.save(tmp_path / "model.safetensors", network, class_names=("a", "b"))
