"""Encoders from other libraries: the stages of a module that we did not write, found by running it once."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from models import HEAD
from models.encoder import Encoder, EncoderSpec, Step

TAKEN_APART = ("blocks", "stages", "layers", "encoder")
"""Names that libraries give to a list of equal parts, each of which is a stage."""

Plan = Mapping[str, tuple[str, ...]]
"""Stage → dotted names of the modules and parameters in it, stages in order of execution."""


class Piece(NamedTuple):
    """A module, or a parameter that a module holds beside its parts."""

    name: str
    what: nn.Module | nn.Parameter
    when: float
    """Its place in the order of execution."""

    @property
    def opens(self) -> bool:
        """Whether it belongs with what comes after it, at the input."""
        return isinstance(self.what, nn.Parameter) or self.is_bare

    @property
    def is_bare(self) -> bool:
        return isinstance(self.what, nn.Module) and not _holds_parameters(self.what)

    @property
    def is_layer(self) -> bool:
        """Whether it is a single layer, such as a convolution or its normalisation."""
        return isinstance(self.what, nn.Module) and not any(map(_holds_parameters, self.what.children()))


class LibraryEncoder(Encoder):
    """An encoder around `body`, a module of another library that has lost its head."""

    body: nn.Module
    plan: Plan

    def install(self, make: Callable[[], nn.Module]) -> None:
        """Build the body, and find its stages and what `tokens` gives.

        Raises:
            ValueError: the library cannot build it for such beats, or it cannot be an encoder.
        """
        try:
            self.body = make()
            tokens, self.plan = survey(self.body, self.encode, _two_beats(self.spec))
            _, self.num_tokens, self.dim = tokens.shape
            list(self.covered_parameters())
        except Exception as error:  # whatever a library may raise
            reason = " ".join(str(error).split()) or type(error).__name__
            size = f"{self.spec.num_leads} x {self.spec.num_samples} samples"
            raise ValueError(f"{self.spec.label} cannot encode {size}: {reason}") from error

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        return {stage: gather(self.body, names) for stage, names in self.plan.items()}

    @property
    def steps(self) -> Mapping[str, Step]:
        """One: how its parts are joined is the library's affair."""
        return {list(self.plan)[-1]: self.encode}

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The library's forward, made into tokens: (batch, num_leads, num_samples) → (batch, num_tokens, dim)."""


def _two_beats(spec: EncoderSpec) -> Tensor:
    ramp = torch.linspace(0, 1, 2 * spec.num_leads * spec.num_samples)
    return rearrange(ramp, "(batch lead time) -> batch lead time", batch=2, lead=spec.num_leads)


def survey(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Plan]:
    """Run the module on `x`, two examples, in eval mode; what its output does not depend on is removed from it.

    `run` gives its output, which need not be that of its forward. Returns that output and the stages, which hold every
    parameter that is left, and every submodule.

    Raises:
        ValueError: nothing can be trained, a part is needed although the output has no gradient for it, or an example's
            output depends on the other example.
    """
    was_training = module.training
    module.eval()
    _untangle(module)
    order: dict[nn.Module, int] = {}

    def note(part: nn.Module, _: object) -> None:
        order.setdefault(part, len(order))

    with ExitStack() as hooks, torch.enable_grad():
        for part in module.modules():
            hooks.callback(part.register_forward_pre_hook(note).remove)
        output = run(x)
        _remove_unused(module, output)
    with torch.no_grad():
        # Not element by element: an untrained network may give 1e7, and rounding then shows in its small elements.
        if not (run(x[1:]) - output[1:]).abs().max() <= 1e-3 * output.abs().max():
            raise ValueError("its output depends on the other beats of a batch, or on what has no gradient")
    module.train(was_training)
    return output.detach(), _plan(module, order)


def gather(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A stage: the modules and parameters of these names, not copied."""
    parts = [_find(module, name) for name in names]
    if len(parts) == 1 and isinstance(parts[0], nn.Module):
        return parts[0]
    return nn.ModuleList(part if isinstance(part, nn.Module) else nn.ParameterList([part]) for part in parts)


def _find(module: nn.Module, name: str) -> nn.Module | nn.Parameter:
    owner, _, own_name = name.rpartition(".")
    return getattr(module.get_submodule(owner), own_name)


def _untangle(module: nn.Module) -> None:
    """Drop second names of parameters, and make buffers of those that the library does not train: thawing would."""
    for part in module.modules():
        inner = {parameter for child in part.children() for parameter in child.parameters()}
        for name, parameter in [*part.named_parameters(recurse=False)]:
            if parameter in inner:
                part.register_parameter(name, None)
            elif not parameter.requires_grad:
                delattr(part, name)
                part.register_buffer(name, parameter.data)


def _remove_unused(module: nn.Module, output: Tensor) -> None:
    parameters = [*module.parameters()]
    if not parameters:
        raise ValueError("it has no parameters to train")
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    used = {parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    for name, part in [*module.named_modules()]:
        if name and _holds_parameters(part) and used.isdisjoint(part.parameters()):
            module.set_submodule(name, nn.Identity())
    for part in module.modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            if parameter not in used:
                part.register_parameter(name, None)


def _plan(module: nn.Module, order: Mapping[nn.Module, int]) -> Plan:
    """Layers in a row make one stage; what has no parameters (dropout, say) joins the stage before it."""
    stages: list[list[Piece]] = []
    for piece in sorted(_pieces(module, "", order, is_whole=True), key=lambda piece: piece.when):
        before = stages[-1] if stages else []
        in_a_row = piece.is_layer and all(other.opens or other.is_layer for other in before)
        if before and (piece.is_bare or in_a_row or all(other.opens for other in before)):
            before.append(piece)
        else:
            stages.append([piece])
    return {_name(pieces): tuple(piece.name for piece in pieces) for pieces in stages}


def _name(pieces: list[Piece]) -> str:
    """The name of its first part with parameters, unless that is a bare number or the name of a classifier's head."""
    name = next((piece.name for piece in pieces if not piece.opens), pieces[0].name)
    return f"part{name}" if name.isdigit() else f"body.{name}" if name == HEAD else name


def _pieces(module: nn.Module, prefix: str, order: Mapping[nn.Module, int], is_whole: bool) -> Iterator[Piece]:
    """The module's own parameters and its parts; lists, and a part that holds all there is, are taken apart."""
    own = [
        Piece(prefix + name, parameter, _first(module, order))
        for name, parameter in module.named_parameters(recurse=False)
    ]
    yield from own
    parts = dict(module.named_children())
    is_alone = is_whole and not own and sum(map(_holds_parameters, parts.values())) == 1
    for name, part in parts.items():
        is_list = isinstance(part, nn.ModuleList) or name in TAKEN_APART
        if any(map(_holds_parameters, part.children())) and (is_list or is_alone):
            yield from _pieces(part, f"{prefix}{name}.", order, is_alone)
        else:
            yield Piece(prefix + name, part, _first(part, order))


def _first(module: nn.Module, order: Mapping[nn.Module, int]) -> float:
    """When the module, or anything in it, was first run."""
    return min((order[part] for part in module.modules() if part in order), default=math.inf)


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
