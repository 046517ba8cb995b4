"""A module over a whole tensor, in batches, without gradients and in eval mode."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.inference_mode()
def apply(
    module: nn.Module, *inputs: Tensor, batch_size: int = 1024, call: Callable[..., Tensor] | None = None
) -> Tensor:
    """`module`'s outputs for `inputs`, each (num_beats, …) and taken in step, on the CPU in float32, in order.

    The training mode of every submodule is put back afterwards, so a frozen stage stays in eval mode.

    Args:
        call: stands in for the module's forward, such as a part of it.
    """
    modes = [(part, part.training) for part in module.modules()]
    device = next(module.parameters()).device
    module.eval()
    try:
        batches = zip(*(tensor.split(batch_size) for tensor in inputs), strict=True)
        return torch.cat([(call or module)(*(part.to(device) for part in batch)).float().cpu() for batch in batches])
    finally:
        for part, training in modes:
            part.training = training
