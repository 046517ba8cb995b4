"""Parameter groups, freezing and learning rates, said in terms of an encoder's stages.

A group is (stage, kind), kind one of `KINDS`; the head is the last stage. Groups are made once, before the first step,
each with its own `lr`; thawing adds none.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from models import HEAD
from models.adapters import LowRank
from models.heads import Classifier

NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
KINDS = ("weight", "bias", "norm_weight", "norm_bias", "adapter")

Rates = Mapping[str, float | Mapping[str, float] | None]
"""Stage → learning rate of all of it, or of each kind that learns while the others are frozen; None for frozen."""


def parameter_groups(model: Classifier, weight_decay: float) -> list[dict[str, Any]]:
    """One optimizer group for each (stage, kind) that has parameters; only the kind `weight` decays.

    Raises:
        ValueError: the encoder's stages do not cover every parameter exactly once.
    """
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for stage, owner, name, parameter in model.encoder.covered_parameters():
        groups.setdefault((stage, kind_of(owner, name)), []).append(parameter)
    for owner in model.head.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            groups.setdefault((HEAD, kind_of(owner, name)), []).append(parameter)
    return [
        {"params": params, "stage": stage, "kind": kind, "weight_decay": weight_decay if kind == "weight" else 0.0}
        for (stage, kind), params in groups.items()
    ]


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups for what of a module takes gradients: what decays, and what does not."""
    decays = {
        parameter: kind_of(owner, name) == "weight"
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if parameter.requires_grad
    }
    return [
        {"params": [parameter for parameter, decay in decays.items() if decay], "weight_decay": weight_decay},
        {"params": [parameter for parameter, decay in decays.items() if not decay], "weight_decay": 0.0},
    ]


def kind_of(owner: nn.Module, name: str) -> str:
    """Which of `KINDS` a parameter is, from the module that holds it and its name there."""
    if isinstance(owner, LowRank):
        return "adapter"
    kind = "bias" if name.startswith("bias") else "weight"
    return f"norm_{kind}" if isinstance(owner, NORMALISATIONS) else kind


def make_optimizer(model: Classifier, weight_decay: float) -> AdamW:
    """Fused AdamW over `parameter_groups`, every rate zero until `set_rates` is called."""
    return AdamW(parameter_groups(model, weight_decay), lr=0.0, fused=True)


def set_rates(model: Classifier, optimizer: Optimizer, rates: Rates) -> None:
    """Write the learning rates into the groups; freeze the groups that have none.

    A frozen group takes no gradient, no weight decay and no optimizer state. A stage of which nothing learns is in eval
    mode: BatchNorm's running statistics stand still too (but see `Classifier.batchnorm`).

    Raises:
        ValueError: `rates` names a stage that the model lacks, or lacks one that it has.
    """
    if set(rates) != set(model.stages):
        raise ValueError(f"rates for stages {sorted(rates)}, but the model has {sorted(model.stages)}")
    frozen = []
    for group in optimizer.param_groups:
        rate = rates[group["stage"]]
        rate = rate.get(group["kind"]) if isinstance(rate, Mapping) else rate
        group["lr"] = rate or 0.0
        if rate is None:
            frozen.append((group["stage"], group["kind"]))
    if model.frozen != frozenset(frozen):
        _freeze(model, optimizer, frozenset(frozen))


def _freeze(model: Classifier, optimizer: Optimizer, frozen: frozenset[tuple[str, str]]) -> None:
    """Freeze these groups and thaw all others."""
    learning = set()
    for group in optimizer.param_groups:
        is_frozen = (group["stage"], group["kind"]) in frozen
        learning |= set() if is_frozen else {group["stage"]}
        for parameter in group["params"]:
            parameter.requires_grad_(not is_frozen)
            if is_frozen:
                parameter.grad = None
                optimizer.state.pop(parameter, None)
    model.frozen = frozen
    model.still = frozenset(model.stages) - learning
    model.train()
