"""Freeze schedules: pure functions of training progress. A new one is a function and a line in `SCHEDULES`.

A schedule says, for each encoder stage, the scale of the learning rate relative to the head's, or None for frozen.
The head is always trained, at scale 1.
"""

from collections.abc import Callable, Mapping, Sequence

Scales = dict[str, float | None]
Schedule = Callable[[float, Sequence[str], float], Scales]
"""(progress 0 … 1, encoder stages from input to output, encoder/head learning-rate ratio) → scale of each stage."""

LINEAR_PROBE_SHARE = 0.3
"""lp_ft: share of the training before the encoder thaws."""
THAWED_BY = 0.5
"""gradual: share of the training after which every stage is thawed."""


def frozen(progress: float, stages: Sequence[str], ratio: float) -> Scales:
    """The encoder never learns: a linear probe, if the head is linear."""
    del progress, ratio
    return dict.fromkeys(stages)


def full(progress: float, stages: Sequence[str], ratio: float) -> Scales:
    """Every stage learns from the first step."""
    del progress
    return dict.fromkeys(stages, ratio)


def gradual(progress: float, stages: Sequence[str], ratio: float) -> Scales:
    """Stages thaw one by one from the output to the input (ULMFiT, arXiv 1801.06146); the head starts alone."""
    num_thawed = int(progress / THAWED_BY * (len(stages) + 1))
    first_thawed = len(stages) - min(num_thawed, len(stages))
    return {stage: ratio if place >= first_thawed else None for place, stage in enumerate(stages)}


def lp_ft(progress: float, stages: Sequence[str], ratio: float) -> Scales:
    """Linear probe, then fine-tune everything (arXiv 2202.10054)."""
    return (frozen if progress < LINEAR_PROBE_SHARE else full)(progress, stages, ratio)


SCHEDULES: Mapping[str, Schedule] = {"frozen": frozen, "full": full, "gradual": gradual, "lp_ft": lp_ft}


def scales(name: str, progress: float, stages: Sequence[str], ratio: float) -> Scales:
    """
    Raises:
        ValueError: an unknown schedule; the message lists the choices.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose from {', '.join(SCHEDULES)}")
    return SCHEDULES[name](progress, stages, ratio)
