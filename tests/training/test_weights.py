import pytest
import torch

from efficientnetv2.arch.published import published
from efficientnetv2.base.errors import InputError
from efficientnetv2.models import modelfile
from efficientnetv2.models.create import create
from efficientnetv2.training.weights import start_from


@pytest.fixture
def given(tmp_path):
    torch.manual_seed(1)
    network = create("efficientnetv2_b0", num_classes=2)
    facts = {"preprocessing": published("efficientnetv2_b0").preprocessing, "recipe": {}, "metrics": {}}
    modelfile.save(tmp_path / "given.safetensors", network, class_names=("cat", "dog"), **facts)
    return network, str(tmp_path / "given.safetensors")


@pytest.mark.parametrize(("classes", "head_too"), [(("cat", "dog"), True), (("dog", "elk"), False)])
def test_the_trunk_comes_along_and_the_classifier_if_its_classes_do(classes, head_too, given):
    donor, file = given
    torch.manual_seed(2)
    network = create("efficientnetv2_b0", num_classes=2)
    start_from(network, file, classes)
    for name, tensor in network.state_dict().items():
        same = torch.equal(tensor, donor.state_dict()[name])
        assert same or (name == "classifier.weight" and not head_too), name
    assert torch.equal(network.classifier.weight, donor.classifier.weight) == head_too


def test_weights_of_another_network_are_refused(given):
    with pytest.raises(InputError, match="another architecture"):
        start_from(create("efficientnetv2_b1", num_classes=2), given[1], ("cat", "dog"))
