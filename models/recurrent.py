"""Recurrent networks over short windows of a beat, pooled by attention.

GRU: Cho et al. 2014, arXiv 1406.1078. LSTM: Hochreiter and Schmidhuber 1997.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from models.encoder import Dimension, Encoder, EncoderSpec, Step


class Recurrent(Encoder):
    """Windows of a beat, `depth` recurrent layers over them, and attention pooling over time: 187 samples → 17 tokens.

    Options: `patch` (samples from one window to the next), `width` (hidden numbers of a direction), `depth`,
    `bidirectional`.
    """

    dimensions = MappingProxyType(
        {
            "patch": Dimension(11, (6, 8, 11, 17)),
            "width": Dimension(64, (24, 32, 48, 64, 96)),
            "depth": Dimension(2, (1, 2, 3)),
            "bidirectional": Dimension(True, (False, True)),
        }
    )
    layer: ClassVar[type[nn.GRU] | type[nn.LSTM]]

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        patch, width, depth, bidirectional = spec.resolve(self.dimensions).values()
        self.spec = spec
        self.dim = 2 * width if bidirectional else width
        self.num_tokens = -(-spec.num_samples // patch)
        self.embed = Windows(spec.num_leads, width, patch)
        self.layers = nn.ModuleList(
            self.layer(width if number == 0 else self.dim, width, batch_first=True, bidirectional=bidirectional)
            for number in range(depth)
        )
        self.pool = AttentionWeights(self.dim)

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        layers = {f"layer{number}": layer for number, layer in enumerate(self.layers, start=1)}
        return {"embed": self.embed, **layers, "pool": self.pool}

    @property
    def steps(self) -> Mapping[str, Step]:
        layers = {f"layer{number}": _outputs_of(layer) for number, layer in enumerate(self.layers, start=1)}
        return {"embed": self.embed, **layers, "pool": self.pool}


def _outputs_of(layer: nn.Module) -> Step:
    """Of a recurrent layer the outputs alone, not its last state."""
    return lambda hidden_BND: layer(hidden_BND)[0]


class Gru(Recurrent):
    layer = nn.GRU


class Lstm(Recurrent):
    layer = nn.LSTM


class Windows(nn.Module):
    """Overlapping windows, one every `patch` samples: (batch, lead, time) → (batch, ⌈time / patch⌉, width)."""

    def __init__(self, num_leads: int, width: int, patch: int) -> None:
        super().__init__()
        self.project = nn.Conv1d(num_leads, width, 2 * patch - 1, stride=patch, padding=patch - 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(rearrange(self.project(x), "batch channel time -> batch time channel")))


class AttentionWeights(nn.Module):
    """Tokens times the weight that a learned query gives them, scaled so that their mean is the weighted sum.

    Attention pooling (Ilse et al. 2018, arXiv 1802.04712, without the gate); a new one weighs all tokens alike.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        weight_BN = einsum(tokens_BND, self.query, "batch token dim, dim -> batch token").softmax(1)
        return tokens_BND * rearrange(weight_BN * tokens_BND.shape[1], "batch token -> batch token 1")
