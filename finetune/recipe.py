"""How to fine-tune: what a search varies, and what it keeps. Imports nothing heavy: its fields are flags of `train`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from experiments.cli import at_least_one
from finetune import schedules

if TYPE_CHECKING:
    from experiments.results import RunResult


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to fine-tune."""

    schedule: str = "full"
    """Freezing: frozen, full, gradual (unfreeze from the output down) or lp_ft (linear probe, then everything)."""
    ratio: float = 1.0
    """Encoder's learning rate over the head's."""
    lr: float = 3e-3
    """Highest learning rate of the head: reached after a warm-up, then a cosine."""
    head: str = "linear"
    """linear, mlp or attention (pooling)."""
    balance: str = "class_weight"
    """Against imbalance, on the training part:
    none, class_weight, smote, borderline_smote, adasyn, smote_tomek, random_over, random_under or balanced_batches."""
    augment: bool = True
    """Scale, noise and shift training beats a little, anew at every step."""
    intervals: str = "none"
    """Log ratios of RR intervals beside the beat, for sources that have them: none, causal (known once the beat is
    there) or all (some look ahead: to the next beat, or over the whole record)."""
    epochs: int = 20
    """Passes over the training beats."""
    batch_size: int = 256
    """Beats a step."""
    validate_every: int = 1
    """Epochs from one look at the validation part to the next; the last epoch is always looked at."""
    weight_decay: float = 0.05
    """AdamW's weight decay, of weights only."""

    def __str__(self) -> str:
        words = f"{self.schedule}, ratio {self.ratio:.2g}, lr {self.lr:.2g}, {self.head}, {self.balance}"
        return words if self.intervals == "none" else f"{words}, {self.intervals} RR ratios"

    def check(self) -> None:
        """
        Raises:
            ValueError: an unknown name, or a number out of its range; the message lists the choices.
        """
        from data.balance import BALANCES
        from finetune.intervals import COLUMNS
        from models.heads import HEADS

        at_least_one(epochs=self.epochs, batch_size=self.batch_size, validate_every=self.validate_every)
        schedules.scales(self.schedule, 0.0, (), self.ratio)
        named = (
            ("balance", self.balance, BALANCES),
            ("head", self.head, HEADS),
            ("intervals", self.intervals, COLUMNS),
        )
        for what, name, choices in named:
            if name not in choices:
                raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(choices)}")
        if not (0 < self.lr < 1 and 0 < self.ratio <= 1 and self.weight_decay >= 0):
            raise ValueError(
                f"lr {self.lr} must lie between 0 and 1, ratio {self.ratio} above 0 and at most 1, "
                f"weight decay {self.weight_decay} not below 0"
            )


def recipe_of(result: RunResult) -> Recipe:
    """The recipe that a recorded result was made by; what it does not say is as by default."""
    said = {field.name for field in fields(Recipe)} & result.config.keys()
    return Recipe(**{name: result.config[name] for name in said})  # pyright: ignore
