"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) for linear layers and convolutions.

They belong to a model while it is fine-tuned, not to its spec: `merge` adds them to the weights that they adapt.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Recurrent layers keep their weights in a form of their own, and are not adapted."""


class LowRank(nn.Module):
    """A weight (out, …) plus a product of two thin matrices, which starts at zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        fan_out, fan_in = weight.flatten(1).shape
        rank = min(rank, fan_in, fan_out)
        self.down = nn.Parameter(torch.randn(rank, fan_in) / fan_in**0.5)
        self.up = nn.Parameter(torch.zeros(fan_out, rank))
        channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        self.order = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, weight: Tensor) -> Tensor:
        """In the same order in memory, so that convolutions are as fast."""
        return weight + (self.up @ self.down).view(weight.shape).contiguous(memory_format=self.order)


def adapt(module: nn.Module, rank: int) -> None:
    """Put an adapter beside every linear and convolution weight within; it computes the same, within rounding.

    Random numbers come from torch's global generator.

    Raises:
        ValueError: a rank below 1, or nothing to adapt.
    """
    if rank < 1:
        raise ValueError(f"--rank {rank}: at least 1 is needed")
    adapted = [part for part in module.modules() if isinstance(part, ADAPTED)]
    if not adapted:
        raise ValueError("the encoder has no linear layer and no convolution to adapt")
    for part in adapted:
        parametrize.register_parametrization(part, "weight", LowRank(part.weight, rank))


def merge(module: nn.Module) -> None:
    """Add every adapter to its weight, and leave the module as it was built."""
    for part in [*module.modules()]:
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
