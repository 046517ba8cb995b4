"""How to fine-tune: what a search varies, and what it keeps. Imports nothing heavy: its fields are flags of `train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from experiments.cli import at_least_one
from finetune import schedules
from finetune.schedules import Freezing

if TYPE_CHECKING:
    from experiments.results import RunResult

PLANNED = ("epochs", "validate_every")
"""What a search decides by its plan."""
AUGMENTS = ("none", "thawed", "always")


@dataclass(frozen=True, kw_only=True)
class Recipe(Freezing):
    """How to fine-tune."""

    batchnorm: str = "stage"
    """The encoder's running statistics move in stages of which something learns (stage), nowhere (still), or in all
    (moving)."""
    rank: int = 4
    """adapters: rank of each."""
    l2_sp: float = 0.0
    """Pull of the encoder's weights towards those they started from, in place of their weight decay (arXiv
    1802.01483)."""
    lr: float = 3e-3
    """Highest learning rate of the head: reached after a warm-up, then a cosine."""
    weight_decay: float = 0.05
    """AdamW's weight decay, of weights only."""
    average: float = 0.0
    """Half-life in epochs of the moving average of the weights, which is then validated and kept; 0: no average."""
    head: str = "linear"
    """linear, mlp or attention (pooling)."""
    feature_dropout: float = 0.0
    """Share of the encoder's features that each step hides from the head. With --intervals it makes the head learn
    from rhythm what shape would otherwise tell it of known patients alone."""
    balance: str = "class_weight"
    """Against imbalance, on the training part:
    none, class_weight, smote, borderline_smote, adasyn, smote_tomek, random_over, random_under or balanced_batches."""
    weight_power: float = 0.6
    """class_weight: 0 weighs all beats alike, 1 all classes; between, recall of rare classes against precision."""
    loss: str = "cross_entropy"
    """cross_entropy, focal, class_balanced, ldam or logit_adjusted; all but class_balanced use the class weights."""
    gamma: float = 2.0
    """focal: how little what is already right counts."""
    beta: float = 0.999
    """class_balanced: how fast another beat of a class adds less."""
    margin: float = 0.5
    """ldam: the rarest class's."""
    tau: float = 1.0
    """logit_adjusted: how much of the classes' log shares is added."""
    augment: str = "thawed"
    """Scale, noise and shift training beats a little, anew at every step: none, always, or only while the encoder's
    first stage learns (thawed), since what a frozen stage makes of unchanged beats need not be computed twice."""
    intervals: str = "none"
    """Log ratios of RR intervals beside the beat, for sources that have them: none, causal (known once the beat is
    there) or all (some look ahead: to the next beat, or over the whole record)."""
    epochs: int = 20
    """Passes over the training beats."""
    batch_size: int = 256
    """Beats a step."""
    validate_every: int = 1
    """Epochs from one look at the validation part to the next; the last epoch is always looked at."""
    recall_floor: float = 0.95
    """Alarms: each class's threshold is the highest that finds this share of its validation beats."""

    def __str__(self) -> str:
        """What is usually asked first, and whatever else differs from the defaults."""
        ratio = [] if self.schedule == "frozen" else [f"ratio {self.ratio:.2g}"]
        words = [self.schedule, *ratio, f"lr {self.lr:.2g}", self.head, self.balance]
        said = ("schedule", "ratio", "lr", "head", "balance", "epochs", "validate_every", "batch_size")
        rest = {name: value for name, value in self.changed().items() if name not in said}
        return ", ".join([*words, *(f"{name.replace('_', ' ')} {_short(value)}" for name, value in rest.items())])

    @property
    def adapter_rank(self) -> int:
        """0 for a schedule without adapters."""
        return self.rank if self.schedule == "adapters" else 0

    def untrained(self) -> Recipe:
        """The same for random weights: there is nothing in them to spare, to go near, or to normalise by."""
        return replace(self, **asdict(Freezing()), l2_sp=0.0, batchnorm="stage")

    def changed(self) -> dict[str, bool | int | float | str]:
        """What differs from the defaults."""
        usual = asdict(Recipe())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    def check(self) -> None:
        """
        Raises:
            ValueError: an unknown name, or a number out of its range; the message lists the choices.
        """
        from data.balance import BALANCES
        from finetune.intervals import COLUMNS
        from models.heads import BATCHNORMS, HEADS
        from models.losses import LossOptions, check_loss

        schedules.check(self)
        at_least_one(epochs=self.epochs, batch_size=self.batch_size, validate_every=self.validate_every, rank=self.rank)
        named = (
            ("balance", self.balance, BALANCES),
            ("head", self.head, HEADS),
            ("intervals", self.intervals, COLUMNS),
            ("batchnorm", self.batchnorm, BATCHNORMS),
            ("augment", self.augment, AUGMENTS),
        )
        for what, name, choices in named:
            if name not in choices:
                raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(choices)}")
        check_loss(self.loss, LossOptions(gamma=self.gamma, beta=self.beta, margin=self.margin, tau=self.tau))
        if not 0 <= self.feature_dropout < 1:
            raise ValueError(f"--feature-dropout {self.feature_dropout}: 0 or more and less than 1 is needed")
        if not 0 < self.lr < 1:
            raise ValueError(f"--lr {self.lr}: a number between 0 and 1 is needed")
        if not (0 <= self.weight_power <= 1 and 0 < self.recall_floor <= 1):
            raise ValueError(
                f"--weight-power {self.weight_power} must lie in 0 … 1, --recall-floor {self.recall_floor} above 0 "
                "and at most 1"
            )
        for flag, value in {"weight-decay": self.weight_decay, "l2-sp": self.l2_sp, "average": self.average}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"--{flag} {value}: 0 or more is needed")


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def fixed_by(assignments: Sequence[str], flag: str = "--fixed") -> dict[str, str | int | float]:
    """NAME=VALUE, such as schedule=gradual → the fields of a recipe that are said, of their types.

    Raises:
        ValueError: no such field, or a value that it cannot have; the message names the flag.
    """
    usual, said = asdict(Recipe()), {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if name not in usual or name in PLANNED:
            choices = ", ".join(choice for choice in usual if choice not in PLANNED)
            raise ValueError(f"{flag} {assignment}: NAME=VALUE is needed, NAME one of {choices}")
        try:
            said[name] = type(usual[name])(text)
        except ValueError:
            raise ValueError(f"{flag} {assignment}: {text!r} is not a number") from None
    return said


def in_words(recipes: Sequence[Recipe]) -> list[str]:
    """Of each what differs between them, such as "full, ratio 0.1"; nothing where there is one."""
    names = [field.name for field in fields(Recipe) if len({getattr(recipe, field.name) for recipe in recipes}) > 1]
    idle = {"frozen": ("ratio",)}
    return [
        ", ".join(_said(name, getattr(recipe, name)) for name in names if name not in idle.get(recipe.schedule, ()))
        for recipe in recipes
    ]


def _said(name: str, value: object) -> str:
    return _short(value) if name == "schedule" else f"{name.replace('_', ' ')} {_short(value)}"


def recipe_of(result: RunResult) -> Recipe:
    """The recipe that a recorded result was made by; what it does not say is as by default."""
    said = {field.name for field in fields(Recipe)} & result.config.keys()
    return Recipe(**{name: result.config[name] for name in said})  # pyright: ignore
