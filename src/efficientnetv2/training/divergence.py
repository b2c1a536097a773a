"""Stop a run whose loss, weights or outputs are no longer finite."""

from __future__ import annotations

import torch
from torch import Tensor

from efficientnetv2.training.loop import StepOutput
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.training.train_state import TrainState
from efficientnetv2.utils.errors import DivergedError

# Factor of the learning rate to try next, and the largest rate that is advised. Ours.
_LOWER, _LARGEST_LR = 0.1, 0.1


class DivergenceCheck:
    """Collects the losses of the steps, and checks them when a check does not delay the device."""

    def __init__(self, config: RunConfig, state: TrainState) -> None:
        self._recipe, self._length, self._state = config.recipe, config.length, state
        self._unchecked: list[tuple[int, float, Tensor]] = []  # number, learning rate and loss of steps
        self._lr = config.recipe.optimizer.lr

    def add(self, output: StepOutput) -> None:
        """Collect the loss of a step."""
        # In fp16 the scaler leaves out a step that overflows, so that only lasting overflow is divergence.
        self._unchecked = [] if self._recipe.precision == "fp16" else self._unchecked
        self._unchecked.append((output.step, output.lr, output.loss))
        self._lr = output.lr

    def check_loss(self) -> None:
        """Check all losses since the last check; waits for the device.

        Raises:
            DivergedError: A loss is not finite. The message names the first such step.
        """
        steps, self._unchecked = self._unchecked, []
        if not steps:
            return
        losses = torch.stack([loss for _, _, loss in steps]).cpu()
        broken = (~losses.isfinite()).nonzero().flatten().tolist()
        if broken:
            step, lr, _ = steps[broken[0]]
            raise self._error(f"the loss is {float(losses[broken[0]])}", step, lr)

    def check_weights(self) -> None:
        """Check the losses, and the weights and statistics to keep; waits for the device.

        Raises:
            DivergedError: A value is not finite. The message names the tensor.
        """
        self.check_loss()
        tensors = {
            name: tensor.detach()
            for name, tensor in self._state.eval_network.state_dict().items()
            if tensor.is_floating_point() and tensor.numel()
        }
        largest = torch.stack(torch._foreach_norm(list(tensors.values()), float("inf"))).cpu()
        broken = (~largest.isfinite()).nonzero().flatten().tolist()
        if broken:
            name = list(tensors)[broken[0]]
            raise self._error(f"the weights are not finite (first: {name})", self._state.step - 1, self._lr)

    def output_error(self) -> DivergedError:
        """The error where the weights are finite, but too large for the activations."""
        return self._error("the model's outputs are NaN or infinite", self._state.step - 1, self._lr)

    def _error(self, what: str, step: int, lr: float) -> DivergedError:
        schedule, length = self._recipe.schedule, self._length
        lower = min(_LOWER * self._recipe.optimizer.lr, _LARGEST_LR)
        longer = min(
            schedule.warmup_epochs + 2, schedule.max_warmup_fraction * length.steps / length.steps_per_epoch
        )
        warmup = f" or a longer warm-up (--set schedule.warmup_epochs={longer:.3g})"
        return DivergedError(
            f"Training diverged at step {step} (learning rate {lr:.3g}): {what}. Start a new run (another --output) "
            "with "
            f"a lower learning rate (--set optimizer.lr={lower:.2g})"
            f"{warmup if longer > 1.1 * schedule.warmup_epochs else ''}."
        )
