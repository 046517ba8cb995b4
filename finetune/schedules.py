"""Freeze schedules as data: which groups of parameters learn in which phase, and how fast. Pure, without torch.

A group is (stage, kind), kind one of `models.params.KINDS`; the head is the last stage. A schedule lists the phases of
a training; a new one is a function and a line in `SCHEDULES`.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models import HEAD

WHOLE = frozenset({"weight", "bias", "norm_weight", "norm_bias"})
"""All kinds but adapters, which only learn where there are any."""
NORMS = frozenset({"norm_weight", "norm_bias"})
BIASES = frozenset({"bias", "norm_bias"})
ADAPTERS = frozenset({"adapter"})

Learning = Mapping[str, frozenset[str]]
"""Stage → the kinds of its parameters that learn; a stage that is not named is frozen."""
Scales = dict[str, dict[str, float]]
"""Stage → kind → learning rate over the head's; what is not named is frozen."""


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """What learns when, and how fast beside the head."""

    schedule: str = "full"
    """Freezing: full, frozen, top or first (stages), single (stage), gradual (one stage after the other thaws), lp_ft
    (linear probe, then everything), chain_thaw (each stage alone, then everything), norm_only, bias_only or adapters
    (low-rank)."""
    num_stages: int = 1
    """top, first: how many of the encoder's stages learn."""
    which_stage: int = 1
    """single: which stage learns, counted from the input."""
    thaw_start: float = 0.5
    """lp_ft, gradual, chain_thaw: share of the training in which the head learns alone."""
    thaw_interval: float = 0.1
    """gradual, chain_thaw: share of the training from one thaw to the next (shorter where so many do not fit)."""
    thaw_order: str = "output"
    """gradual, chain_thaw: from the output down, or from the input up."""
    thaw_warm_up: float = 0.0
    """Share of the training over which the rate of what has thawed rises from 0."""
    ratio: float = 1.0
    """Encoder's learning rate over the head's."""
    layer_decay: float = 1.0
    """Rate of a stage over that of the stage above it; 1/2.6 are ULMFiT's discriminative rates."""


@dataclass(frozen=True)
class Phase:
    """From `start`, a share 0 … 1 of the training, until the next phase."""

    start: float
    learns: Learning


Schedule = Callable[[Sequence[str], Freezing], Sequence[Phase]]
"""(encoder stages from input to output, parameters) → phases, the first at 0; what starts at 1 or later never does."""


def frozen(_stages: Sequence[str], _how: Freezing) -> Sequence[Phase]:
    """The encoder never learns: a linear probe, if the head is linear."""
    return [_phase(0.0, ())]


def full(stages: Sequence[str], _how: Freezing) -> Sequence[Phase]:
    """Everything learns from the first step."""
    return [_phase(0.0, stages)]


def top(stages: Sequence[str], how: Freezing) -> Sequence[Phase]:
    """The last `num_stages` stages learn, those below them never do."""
    return [_phase(0.0, stages[-how.num_stages :])]


def first(stages: Sequence[str], how: Freezing) -> Sequence[Phase]:
    """The first `num_stages` stages learn: surgical fine-tuning for a change of the input (arXiv 2210.11466)."""
    return [_phase(0.0, stages[: how.num_stages])]


def single(stages: Sequence[str], how: Freezing) -> Sequence[Phase]:
    """One stage learns (surgical fine-tuning of a block, arXiv 2210.11466)."""
    return [_phase(0.0, [stages[how.which_stage - 1]])]


def lp_ft(stages: Sequence[str], how: Freezing) -> Sequence[Phase]:
    """Linear probe, then fine-tune everything (arXiv 2202.10054)."""
    return [_phase(0.0, ()), _phase(how.thaw_start, stages)]


def gradual(stages: Sequence[str], how: Freezing) -> Sequence[Phase]:
    """The head alone, then one stage more at a time: from the output down (ULMFiT, arXiv 1801.06146), or up."""
    order, interval = _ordered(stages, how), _interval(how, len(stages))
    thaws = [_phase(how.thaw_start + number * interval, order[: number + 1]) for number in range(len(order))]
    return [_phase(0.0, ()), *thaws]


def chain_thaw(stages: Sequence[str], how: Freezing) -> Sequence[Phase]:
    """The head alone, each stage alone in turn, then everything (DeepMoji, arXiv 1708.00524, from the input up)."""
    order, interval = _ordered(stages, how), _interval(how, len(stages) + 1)
    links = [Phase(how.thaw_start + number * interval, {stage: WHOLE}) for number, stage in enumerate(order)]
    return [_phase(0.0, ()), *links, _phase(how.thaw_start + len(order) * interval, stages)]


def norm_only(stages: Sequence[str], _how: Freezing) -> Sequence[Phase]:
    """Scales and shifts of normalisations learn (Frankle et al. 2020, arXiv 2003.00152)."""
    return [_phase(0.0, stages, NORMS)]


def bias_only(stages: Sequence[str], _how: Freezing) -> Sequence[Phase]:
    """Biases learn, those of normalisations too (BitFit, arXiv 2106.10199)."""
    return [_phase(0.0, stages, BIASES)]


def adapters(stages: Sequence[str], _how: Freezing) -> Sequence[Phase]:
    """Low-rank adapters beside frozen weights learn (LoRA, arXiv 2106.09685)."""
    return [_phase(0.0, stages, ADAPTERS)]


SCHEDULES: Mapping[str, Schedule] = {
    "frozen": frozen,
    "full": full,
    "top": top,
    "first": first,
    "single": single,
    "gradual": gradual,
    "lp_ft": lp_ft,
    "chain_thaw": chain_thaw,
    "norm_only": norm_only,
    "bias_only": bias_only,
    "adapters": adapters,
}
ORDERS = ("output", "input")


def check(how: Freezing) -> None:
    """
    Raises:
        ValueError: an unknown name, or a number out of its range; the message lists the choices.
    """
    for what, name, choices in (("schedule", how.schedule, SCHEDULES), ("thaw order", how.thaw_order, ORDERS)):
        if name not in choices:
            raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(choices)}")
    shares = {"thaw-start": how.thaw_start, "thaw-warm-up": how.thaw_warm_up}
    for flag, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"--{flag} {share}: a share of the training is needed, 0 or more and below 1")
    for flag, value in {"ratio": how.ratio, "layer-decay": how.layer_decay, "thaw-interval": how.thaw_interval}.items():
        if not 0 < value <= 1:
            raise ValueError(f"--{flag} {value}: a number above 0 and at most 1 is needed")
    for flag, count in {"num-stages": how.num_stages, "which-stage": how.which_stage}.items():
        if count < 1:
            raise ValueError(f"--{flag} {count}: at least 1 is needed")


class Timeline:
    """A schedule worked out for an encoder's stages: what learns at each progress, and at which scale.

    Raises:
        ValueError: as `check`, or the encoder has fewer stages than the schedule names.
    """

    def __init__(self, how: Freezing, stages: Sequence[str]) -> None:
        check(how)
        for schedules, flag, count in (
            (("top", "first"), "num-stages", how.num_stages),
            (("single",), "which-stage", how.which_stage),
        ):
            if how.schedule in schedules and count > len(stages):
                raise ValueError(f"--{flag} {count}: the encoder has {len(stages)} stages ({', '.join(stages)})")
        self.how = how
        self.phases = [phase for phase in SCHEDULES[how.schedule](stages, how) if phase.start < 1]
        self.starts = [phase.start for phase in self.phases]
        self.full_scales = _full_scales(stages, how)
        self.since = [self._since(number) for number in range(len(self.phases))]

    @property
    def settled(self) -> float:
        """Share of the training after which nothing thaws or freezes any more."""
        return self.starts[-1]

    def at(self, progress: float) -> int:
        """Number of the phase at this share of the training."""
        return bisect_right(self.starts, progress) - 1

    def end(self, number: int) -> float:
        return self.starts[number + 1] if number + 1 < len(self.starts) else 1.0

    def scales(self, progress: float) -> Scales:
        """Of every group that learns. What was thawed in the course of the training rises from 0 for `thaw_warm_up`."""
        number = self.at(progress)
        return {
            stage: {
                kind: self.full_scales[stage] * self._warmth(progress, self.since[number][stage, kind])
                for kind in sorted(kinds)
            }
            for stage, kinds in self.phases[number].learns.items()
        }

    def _warmth(self, progress: float, since: float) -> float:
        if not (since and self.how.thaw_warm_up):
            return 1.0
        return min(1.0, (progress - since) / self.how.thaw_warm_up)

    def _since(self, number: int) -> dict[tuple[str, str], float]:
        """When each group that learns in this phase has begun to, without a pause."""
        before = self._since(number - 1) if number else {}
        phase = self.phases[number]
        groups = [(stage, kind) for stage, kinds in phase.learns.items() for kind in kinds]
        return {group: before.get(group, phase.start) for group in groups}


def _phase(start: float, stages: Sequence[str], kinds: frozenset[str] = WHOLE) -> Phase:
    """These kinds of these stages learn, and all of the head."""
    return Phase(start, {**dict.fromkeys(stages, kinds), HEAD: WHOLE})


def _ordered(stages: Sequence[str], how: Freezing) -> list[str]:
    return list(stages) if how.thaw_order == "input" else list(reversed(stages))


def _interval(how: Freezing, num_thaws: int) -> float:
    """Shorter than asked for where the last thaw would otherwise have less than an interval left."""
    return min(how.thaw_interval, (1 - how.thaw_start) / (num_thaws + 1))


def _full_scales(stages: Sequence[str], how: Freezing) -> dict[str, float]:
    """The head's is 1; the encoder's last stage has `ratio`, each one below it `layer_decay` times the one above.

    Discriminative rates (ULMFiT) are a decay of 1/2.6; the layer decay of transformers is one of .65 to .9 (Bao et al.
    2022, arXiv 2106.08254).
    """
    last = len(stages) - 1
    return {stage: how.ratio * how.layer_decay ** (last - place) for place, stage in enumerate(stages)} | {HEAD: 1.0}
