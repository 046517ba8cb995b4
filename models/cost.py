"""Multiply-adds of anything that runs in torch: what "equal compute" means, whatever the machine.

Counted are the matrix products and convolutions that run, forward or backward; elementwise work (activations,
normalisations, the optimizer's step) counts as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry


class Cost(NamedTuple):
    """What one part of a module did: the shape of its last output, batch first, and its multiply-adds."""

    shape: tuple[int, ...]
    multiply_adds: int


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *settings: Any,
    out_val: object,  # noqa: ARG001
) -> int:
    """As many as forward for each of the two gradients asked for."""
    *_, transposed, _padding, _groups, (for_x, for_weight, _for_bias) = settings
    return (for_x + for_weight) * conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), transposed)


def _recurrence(x: Tensor, weight: Tensor, recurrent_weight: Tensor, *_: object, out_val: object) -> int:  # noqa: ARG001
    """One layer in one direction: at each moment of each beat, every weight once."""
    return 2 * x.shape[0] * x.shape[1] * (weight.numel() + recurrent_weight.numel())


def _recurrence_backward(*args: Any, out_val: object) -> int:
    return 2 * _recurrence(*args, out_val=out_val)


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten.mkldnn_rnn_layer: _recurrence,
    torch.ops.aten.mkldnn_rnn_layer_backward: _recurrence_backward,
}
"""Floating-point operations (two a multiply-add) where torch has no formula, or one that forgets groups."""


class Counter(TorchDispatchMode):
    """Adds up multiply-adds of every operation that runs while it is active, the backward pass's too."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = func._overloadpacket
        formula = FORMULAS.get(operation) or flop_registry.get(operation)
        if formula is None:
            # Composite operations come here whole in inference mode.
            with self:
                done = func.decompose(*args, **kwargs)
            if done is not NotImplemented:
                return done
        done = func(*args, **kwargs)
        if formula is not None:
            self.multiply_adds += formula(*args, **kwargs, out_val=done) // 2
        return done


def count(function: Callable[[], object]) -> int:
    """Multiply-adds of everything that runs within `function()`, backward included. It runs, with all its effects."""
    with counting() as counter:
        function()
    return counter.multiply_adds


def multiply_adds(module: nn.Module, *inputs: Tensor, backward: bool = False) -> int:
    """Of one forward pass in eval mode; with `backward`, of the gradients of all parameters too. Leaves no trace."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def run() -> None:
        output = module(*inputs)
        if backward:
            torch.autograd.grad(output.sum(), trained, allow_unused=True)

    with in_eval(module), torch.set_grad_enabled(backward):
        return count(run)


def by_part(parts: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, Cost]:
    """What each of the disjoint `parts` did during `run()`; a part that was not called is left out.

    A part that only groups modules, without being called itself, did what those did.
    """
    costs: dict[str, Cost] = {}
    with counting() as counter, ExitStack() as hooks:
        for name, part in parts.items():
            watch = _Watch(name, counter, costs)
            for module in part.modules():
                hooks.enter_context(module.register_forward_pre_hook(watch.enter))
                hooks.enter_context(module.register_forward_hook(watch.leave))
        run()
    return costs


@contextmanager
def counting() -> Iterator[Counter]:
    """Fused attention and cuDNN's recurrence hide their products from a counter, so within this they run unfused."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.backends.cudnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            Counter() as counter,
        ):
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while: nothing is drawn, and BatchNorm's running statistics stand still."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class _Watch:
    """Hooks on all modules of a part, of which the outermost call counts."""

    def __init__(self, name: str, counter: Counter, costs: dict[str, Cost]) -> None:
        self.name, self.counter, self.costs = name, counter, costs
        self.depth = self.before = 0

    def enter(self, module: nn.Module, args: object) -> None:  # noqa: ARG002
        if self.depth == 0:
            self.before = self.counter.multiply_adds
        self.depth += 1

    def leave(self, module: nn.Module, args: object, output: Any) -> None:  # noqa: ARG002
        self.depth -= 1
        if self.depth == 0:
            earlier = self.costs[self.name].multiply_adds if self.name in self.costs else 0
            tensor: Tensor = output if isinstance(output, Tensor) else output[0]
            spent = self.counter.multiply_adds - self.before
            self.costs[self.name] = Cost(tuple(tensor.shape), earlier + spent)
