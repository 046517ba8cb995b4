"""Several workers on one batch: each takes rows of it through the encoder, all see all outputs, gradients are averaged.

The loss is that of the whole batch on every worker, so objectives that compare beats (negatives, covariances) compare
all of them, whoever encoded them. What differs from a single worker: BatchNorm inside an encoder sees a worker's rows
alone, and its running statistics are those of the first worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Team:
    """This worker's place among `size`; alone by default, and then every method leaves things as they are."""

    rank: int = 0
    size: int = 1

    def rows(self, tensor: Tensor) -> Tensor:
        """This worker's rows of a batch."""
        return tensor.tensor_split(self.size)[self.rank]

    def gather(self, rows: Tensor, num_rows: int) -> Tensor:
        """The rows of all workers, in order, (num_rows, …); gradients go back to whoever encoded a row."""
        return rows if self.size == 1 else _Gather.apply(rows, num_rows, self)

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients over the workers."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, answer: bool) -> bool:
        """The first worker's answer, for all."""
        if self.size == 1:
            return answer
        said = torch.tensor([answer], dtype=torch.int32)
        dist.broadcast(said, 0)
        return bool(said)


ALONE = Team()


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all workers. Backward sums what every worker's copy of the loss says of one's own rows:
    with `Team.average` over workers after it, that is the gradient of the one loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, num_rows: int, team: Team) -> Tensor:
        ctx.team = team
        sizes = [len(part) for part in torch.empty(num_rows, 0).tensor_split(team.size)]
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:size] for part, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        summed = gradient.contiguous()
        dist.all_reduce(summed)
        return summed.split(ctx.sizes)[ctx.team.rank], None, None
