"""What parity on equal weights needs: weights that mean something, and a distance that does too."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _one_thread():
    """These networks are small enough that threads cost more than they bring; and sums stay in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def randomise():
    """Make every number of a network random, batch-norm's too, with activations of ordinary size."""

    def settle(norm, inputs):
        # Statistics near those of what really comes in, so that nothing dies or explodes; but away from
        # them, so that they matter.
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        norm.running_mean.copy_(mean + 0.3 * variance.sqrt() * torch.randn_like(mean))
        norm.running_var.copy_(variance * torch.empty_like(mean).uniform_(0.5, 1.5) + 0.1 * variance.mean())

    def change(network, seed=0):
        torch.manual_seed(seed)
        hooks = []
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.3)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.2, 0.8)
                nn.init.normal_(module.bias, std=0.3)
                hooks.append(module.register_forward_pre_hook(settle))
        with torch.no_grad():
            network.eval()(torch.randn(8, 3, 96, 96))
        for hook in hooks:
            hook.remove()
        return network

    return change


@pytest.fixture
def distance():
    """The largest difference of two networks' logits on random pictures, over the logits' spread."""

    def measure(ours, theirs, image_px):
        torch.manual_seed(image_px)
        pictures = torch.randn(2, 3, image_px, image_px)
        with torch.inference_mode():
            expected, got = theirs(pictures), ours.eval()(pictures)
        assert expected.isfinite().all()
        assert 0.05 < expected.std() < 5  # dead or exploding logits would prove nothing
        return float((got - expected).abs().max() / expected.std())

    return measure
