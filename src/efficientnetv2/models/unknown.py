"""Unknown images: those whose features are far from the features of all held-out images of a run.

Source: Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022, arXiv:2204.06507: the
distance to the k-th nearest of L2-normalized features. Ours: the neighbors are held-out images, and each
is compared with the others to fit the threshold, so that no further images are needed.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Metadata entry of a model file. Versions that do not know it ignore it.
KEY = "efficientnetv2.unknown"
# Fraction of known images that are flagged. Source: the usual FPR95 of the literature keeps 95 % of known images.
FALSE_ALARM_RATE = 0.05
# Of the nearest images, the one that counts: a single outlier or duplicate decides nothing, and a rare class needs few
# held-out images. Ours.
_NEIGHBOR = 2
# With fewer images, the fraction may be more than 0.1 by chance. With more, the model file grows. Ours.
MIN_IMAGES, MAX_IMAGES = 50, 1_000


@dataclass(frozen=True, eq=False)
class UnknownDetector:
    """Scores images by the cosine distance of their embeddings to the second-nearest held-out image.

    Attributes:
        bank: Directions of the embeddings of the held-out images, (n, embed_dim) int8.
        threshold: Images with a higher score are unknown.
        false_alarm_rate: Fraction of known images with a higher score.
        fitted_on: Name of the held-out images: ``val`` or ``test``.
    """

    bank: Tensor
    threshold: float
    false_alarm_rate: float
    fitted_on: str

    @staticmethod
    def fit(
        embeddings: Tensor,
        fitted_on: str,
        *,
        groups: Tensor | None = None,
        labels: Tensor | None = None,
        false_alarm_rate: float = FALSE_ALARM_RATE,
    ) -> UnknownDetector | None:
        """Fit on (n, embed_dim) embeddings of images that did not train the model.

        Images with the same of the (n,) ``groups`` do not count as neighbors: a new image has none of its group. Of
        several images of a group and a class, of the (n,) ``labels``, none sets the threshold if the class has too few
        images of other groups: a new image of the class has neighbors. None if too few images are left.
        """
        largest = embeddings.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        bank = (127 * embeddings / largest).round().to(torch.int8).cpu()
        ids = torch.arange(len(bank)) if groups is None else groups
        same = ids[:, None] == ids
        counts = torch.ones(len(bank), dtype=torch.bool)
        if groups is not None and labels is not None:
            alike = labels[:, None] == labels
            counts = ((~same & alike).sum(dim=1) >= _NEIGHBOR) | ((same & alike).sum(dim=1) == 1)
        if int(counts.sum()) < MIN_IMAGES:
            return None
        cosine = _cosine(embeddings.cpu(), bank).masked_fill(same, -math.inf)
        scores = _distances(cosine[counts]).sort().values
        # The rank at which a new image of the same distribution is above with at most this probability. Source: split
        # conformal prediction, arXiv:2107.07511, section 1.
        rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - false_alarm_rate)))
        threshold = float(scores[rank - 1])
        return UnknownDetector(bank, threshold, false_alarm_rate, fitted_on) if math.isfinite(threshold) else None

    def scores(self, embeddings: Tensor) -> Tensor:
        """(N,) scores of (N, embed_dim) embeddings, from 0 to 2; high ones are far from all held-out images."""
        return _distances(_cosine(embeddings, self.bank.to(embeddings.device)))

    def to_json(self) -> str:
        """The metadata entry; ``from_json`` reads it."""
        plain: dict[str, Any] = {
            "num_images": len(self.bank),
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "fitted_on": self.fitted_on,
            "bank": base64.b64encode(self.bank.numpy().tobytes()).decode(),
        }
        return json.dumps(plain)

    @staticmethod
    def from_json(text: str, embed_dim: int) -> UnknownDetector:
        """Read a metadata entry. Raises ValueError, KeyError or TypeError if it is damaged."""
        plain = json.loads(text)
        content = bytearray(base64.b64decode(plain["bank"], validate=True))
        if plain["num_images"] < _NEIGHBOR or len(content) != plain["num_images"] * embed_dim:
            raise ValueError(f"the bank has {len(content)} bytes, not num_images times {embed_dim}")
        threshold, rate = float(plain["threshold"]), float(plain["false_alarm_rate"])
        if not (math.isfinite(threshold) and 0 < rate < 1):
            raise ValueError(f"threshold is {threshold} and false_alarm_rate {rate}")
        bank = torch.frombuffer(content, dtype=torch.int8).reshape(-1, embed_dim)
        return UnknownDetector(bank, threshold, rate, str(plain["fitted_on"]))


def _cosine(embeddings: Tensor, bank: Tensor) -> Tensor:
    return normalize(embeddings.float()) @ normalize(bank.float()).T


def _distances(cosine: Tensor) -> Tensor:
    """(N,) from (N, n) similarities."""
    return 1 - cosine.topk(_NEIGHBOR, dim=1).values[:, -1]
