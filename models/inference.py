"""A module over a whole tensor, in batches, without gradients and in eval mode."""

import torch
from torch import Tensor, nn


@torch.inference_mode()
def apply(module: nn.Module, signal: Tensor, batch_size: int = 1024) -> Tensor:
    """`module`'s outputs for `signal` (num_beats, num_leads, num_samples), on the CPU in float32, in order.

    The training mode of every submodule is put back afterwards, so a frozen stage stays in eval mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    device = next(module.parameters()).device
    module.eval()
    try:
        return torch.cat([module(batch.to(device)).float().cpu() for batch in signal.split(batch_size)])
    finally:
        for part, training in modes:
            part.training = training
