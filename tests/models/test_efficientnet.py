"""The complete model: shapes, memory format, compilation, initialization."""

from dataclasses import replace

import pytest
import torch
from tests.messages import mentioning
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from efficientnetv2.architectures.registry import NAMES, get_architecture
from efficientnetv2.architectures.spec import Architecture, Stage, fused_mbconv, mbconv
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.factory import create
from efficientnetv2.utils.errors import InputError

TINY = Architecture(
    stem_channels=8,
    stages=(
        Stage(fused_mbconv(expand=1, kernel=3), 1, 8, 1),
        Stage(fused_mbconv(expand=2, kernel=3), 2, 16, 2),
        Stage(mbconv(expand=2, kernel=3), 2, 24, 2),
    ),
    head_channels=32,
)


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps_have_strides_2_to_32_and_the_channels_of_the_architecture(name):
    """Each map is the last of its size: before each stage with stride 2, and the last stage."""
    table = get_architecture(name)
    ends = [table.stages[i].channels for i in range(len(table.stages)) if
            i + 1 == len(table.stages) or table.stages[i + 1].stride == 2]  # fmt: skip
    height, width = 97, 64
    with torch.device("meta"):
        maps = create(name).eval().features(torch.empty(2, 3, height, width))
    expected = [(2, c, -(-height // s), -(-width // s)) for c, s in zip(ends, (2, 4, 8, 16, 32), strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


def test_stem_is_the_first_map_if_the_first_stage_has_stride_2():
    small = Architecture(8, (Stage(mbconv(expand=2, kernel=3), 2, 16, 1),), 32)
    maps = create(small).features(torch.zeros(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (16, 8, 8)]


def test_logits_are_the_classifier_of_the_embedding():
    torch.manual_seed(0)
    network = create(TINY, num_classes=7, in_channels=5).eval()
    pictures = torch.randn(3, 5, 40, 33)
    embedding = network.embed(pictures)
    assert embedding.shape == (3, 32)
    torch.testing.assert_close(network(pictures), embedding @ network.classifier.weight.T + network.classifier.bias)
    assert (network.num_classes, network.in_channels, network.architecture) == (7, 5, TINY)


def test_output_without_classes_is_the_embedding():
    network = create(TINY, num_classes=0).eval()
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(pictures), network.embed(pictures))
    assert not any(key.startswith("classifier") for key in network.state_dict())


def test_all_maps_are_channels_last():
    """A layer with another format would copy its input at every step."""
    network = create("efficientnetv2_b0").to(memory_format=torch.channels_last)
    pictures = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    for m in network.features(pictures):
        assert m.is_contiguous(memory_format=torch.channels_last)


def test_model_compiles_to_one_graph_with_stochastic_depth():
    network = create(TINY, num_classes=5, drop_path=0.5, dropout=0.1).train()
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)  # as in training
    for px in (32, 48):
        assert compiled(torch.randn(4, 3, px, px)).shape == (4, 5)


def _counting_backend(programs):
    """A backend that compiles nothing and records each traced program."""

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    return backend


@pytest.mark.parametrize("training", [False, True])
def test_one_traced_program_supports_all_sizes_after_the_first(training):
    """Padding depends on the size. Symbolic shapes remain short, and odd sizes need no other program."""
    network = create(replace(TINY, padding="same"), num_classes=5, drop_path=0, dropout=0).train(training)
    programs = []
    torch.compiler.reset()  # removes the sizes of other tests
    compiled = torch.compile(network, backend=_counting_backend(programs))
    for height, width in ((64, 67), (96, 95), (128, 131), (65, 64), (99, 200)):
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), network(images))
    assert len(programs) == 2


def test_exported_program_supports_other_sizes():
    network = create(replace(TINY, padding="same"), num_classes=5).eval()
    sides = {0: torch.export.Dim("n", min=2), 2: torch.export.Dim("h", min=33), 3: torch.export.Dim("w", min=33)}
    exported = torch.export.export(network, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(sides,)).module()
    for images in (torch.randn(3, 3, 65, 96), torch.randn(2, 3, 67, 130)):
        torch.testing.assert_close(exported(images), network(images))


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_model_with_squeeze_excite_can_be_traced():
    """The tracer compares two calls, and TensorBoard's graph uses it."""
    network = create("efficientnetv2_b0", num_classes=3).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(torch.jit.trace(network, images)(images), network(images))


def test_each_weight_is_initialized_once():
    """The initialization of random values takes most of the time of create()."""
    drawn = []

    class Draws(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default) and not args[0].is_meta:
                drawn.append(args[0].numel())
            return function(*args, **kwargs or {})

    with Draws():
        network = create(TINY, num_classes=5)
    weights = [m.weight.numel() for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(drawn) == sorted(weights)


def test_model_is_created_on_the_default_device():
    with torch.device("meta"):
        assert {weight.device.type for weight in create(TINY).state_dict().values()} == {"meta"}
    assert {weight.device.type for weight in create(TINY).state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_larger_than_memory_are_rejected_before_allocation(device):
    """One layer has a terabyte. On the meta device it takes no memory."""
    wide = replace(TINY, stages=(*TINY.stages, Stage(fused_mbconv(expand=1, kernel=3), 1, 200_000, 2)))
    with torch.device(device):
        if device == "meta":
            assert EfficientNet(wide).blocks[-1].spatial.conv.weight.numel() == 9 * 200_000**2
            return
        with pytest.raises(InputError, match=mentioning("GiB", "parameters")):
            create(wide, num_classes=2)


def test_equal_seeds_give_equal_weights():
    networks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        networks.append(create(TINY).state_dict())
    first, again, other = networks
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def test_gradients_reach_every_weight():
    network = create(TINY, num_classes=4, dropout=0, drop_path=0).train()
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_classes": -1}, ("num_classes", "-1")),
        ({"in_channels": 0}, ("in_channels", "0")),
        ({"dropout": 1.0}, ("1", "dropout")),
        ({"drop_path": -0.1}, ("drop_path", "-0.1")),
    ],
)
def test_invalid_arguments_are_rejected(wrong, said):
    with pytest.raises(InputError, match=mentioning(*said)):
        EfficientNet(TINY, **wrong)


@pytest.mark.parametrize(
    ("px", "middle"),
    [(56, slice(2, 5)), (80, slice(3, 7)), (16, slice(0, 2)), (8, slice(0, 1))],  # maps of 7, 10, 2 and 1
)
def test_center_pooling_averages_the_middle_third_of_the_last_map(px, middle):
    torch.manual_seed(0)
    network = create(replace(TINY, global_pool="avg+center"), num_classes=3).eval()
    pictures = torch.randn(2, 3, px, px)
    maps = network.head(network.features(pictures)[-1])
    assert maps.shape[-1] == px // 8
    expected = torch.cat([maps.flatten(2).mean(2), maps[:, :, middle, middle].flatten(2).mean(2)], dim=1)
    torch.testing.assert_close(network.embed(pictures), expected)
    assert network.classifier.in_features == network.embed_dim == 64
