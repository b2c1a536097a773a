"""What a Keras network does after its last convolution: it is taken for ours only if it does what ours do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efficientnetv2.base.answer import Answer
from efficientnetv2.base.errors import InputError, some
from efficientnetv2.models.interop.keras_scaling import flat

_CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2D"})
# What ours do too, and what changes no numbers in evaluation.
_KNOWN = frozenset(
    {
        "InputLayer", "BatchNormalization", "Activation", "GlobalAveragePooling2D", "Flatten", "Dropout", "Dense",
        "Identity", "GaussianNoise", "Activity", "Softmax",
    }
)  # fmt: skip
_LOGITS = ("linear", None)


def refuse_other_heads(path: Path, config: dict[str, Any], answer: Answer = "softmax") -> None:
    """Refuse what would be read without an error and answer otherwise.

    Args:
        path: for the message.
        config: the network's description.
        answer: that this package has written the network with; of others softmax is expected.

    Raises:
        InputError: several dense layers, another pooling, another activation of the classifier, a single output, or a
            layer that is not known.
    """
    layers = [(str(one.get("class_name")), one.get("config") or {}) for one in flat(config)]
    last = max((place for place, (kind, _) in enumerate(layers) if kind in _CONVOLUTIONS), default=-1)
    dense = [str(inner.get("name", kind)) for kind, inner in layers[last + 1 :] if kind == "Dense"]
    if len(dense) > 1:
        raise InputError(
            f"{path}: its head has {len(dense)} dense layers ({some(dense)}), but networks here have one. Save the "
            "network before these layers, keras.Model(inputs, pooled).save(FILE), and train a new classifier on it."
        )
    answered = False
    for kind, inner in layers[last + 1 :]:
        name = inner.get("name", kind)
        if kind not in _KNOWN:
            raise InputError(
                f"{path}: its layer '{name}' ({kind}) stands behind the last convolution, where networks here average "
                "over the map and classify. Save the network without what is not so."
            )
        answered = answered or kind == "Dense"
        activation = _activation(inner)
        if answered and kind in ("Dense", "Activation") and activation not in (answer, *_LOGITS):
            raise InputError(
                f"{path}: its classifier '{name}' ends in {activation}, but networks here answer with one of several "
                "classes (softmax). Train it with a softmax of as many outputs as there are classes."
            )
        if kind == "Dense" and inner.get("units") == 1:
            raise InputError(
                f"{path}: its classifier '{name}' has one output. Networks here have one for each class: two for a yes "
                "or no. Train it with two."
            )


def _activation(config: dict[str, Any]) -> Any:
    said = config.get("activation")
    if isinstance(said, dict):  # as a class of its own, such as {"class_name": "Softmax", ...}
        inner = said.get("config")
        said = inner if isinstance(inner, str) else str(said.get("class_name")).lower()
    return said
