"""The flags of `python -m pretrain`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import data
import pretrain
from experiments import cli
from models import DEFAULT_ENCODER

if TYPE_CHECKING:
    from pretrain.task import Objective
    from pretrain.train import Outcome


@dataclass(frozen=True, kw_only=True)
class Pretrain(cli.RunFlags):
    """Pretrain an encoder on heartbeats and write a checkpoint that `python -m finetune` attaches to a head."""

    task: str
    """masked (reconstruction), contrastive (NT-Xent) or supervised (the source's own labels)."""
    data: str = "ptb"
    """Source of the beats: ptb, kaggle-ptb, ptbdb, ptbxl, synthetic-ptb, csv:FILE or parquet:FILE."""
    stream: bool = False
    """Read the beats from their Parquet file during the training: for data larger than memory."""
    arch: str = DEFAULT_ENCODER
    """Architecture, as `python -m models list` names it."""
    epochs: int = 80
    """Passes over the source's training beats."""
    batch_size: int = 256
    """Beats a step."""
    lr: float = 2e-3
    """Highest learning rate: reached after a warm-up, then a cosine."""
    weight_decay: float = 0.05
    """AdamW's weight decay, of weights only."""
    mask_ratio: float = 0.5
    """masked: share of each beat's patches to hide."""
    temperature: float = 0.2
    """contrastive: temperature of NT-Xent."""
    precision: cli.Precision = "auto"
    """auto: bf16 autocast where the hardware multiplies in bf16."""
    out: Path | None = None
    """Checkpoint to write (default: checkpoints/DATA_TASK[_ARCH].pt)."""

    @property
    def out_file(self) -> Path:
        arch = "" if self.arch == DEFAULT_ENCODER else f"_{self.arch}"
        default = cli.ROOT / "checkpoints" / f"{data.short_name(self.data)}_{pretrain.entry(self.task).suffix}{arch}.pt"
        return default if self.out is None else self.out

    @property
    def state_file(self) -> Path:
        """Where an interrupted run waits for `--resume`."""
        return self.out_file.with_name(f"{self.out_file.name}.partial")

    def objective(self, num_classes: int) -> "Objective":
        from pretrain.task import Objective

        return Objective(mask_ratio=self.mask_ratio, temperature=self.temperature, num_classes=num_classes)

    def settings(self) -> dict[str, bool | int | float | str]:
        """What decides the weights: equal in a run and in its resumption."""
        names = "task data stream arch epochs batch_size lr weight_decay mask_ratio temperature seed"
        return {name: getattr(self, name) for name in names.split()}

    def run(self) -> None:
        self.check()
        from pretrain.train import pretrain_encoder

        outcome = pretrain_encoder(self)
        show(outcome)
        self.write(asdict(outcome))

    def check(self) -> None:
        """
        Raises:
            ValueError: a flag out of its range, before anything is read or written.
        """
        pretrain.entry(self.task)
        if self.data not in pretrain.SOURCES and not data.is_own(self.data):
            choices = ", ".join([*pretrain.SOURCES, *(f"{prefix}:FILE" for prefix in data.OWN)])
            raise ValueError(f"unknown data set to pretrain on, {self.data!r}; choose from {choices}")
        cli.at_least_one(epochs=self.epochs, batch_size=self.batch_size)
        if not 0 < self.lr < 1:
            raise ValueError(f"--lr {self.lr}: a number between 0 and 1 is needed")
        if not self.weight_decay >= 0:
            raise ValueError(f"--weight-decay {self.weight_decay}: 0 or more is needed")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"--mask-ratio {self.mask_ratio}: a number between 0 and 1 is needed")
        cli.writable(self.out_file)


def show(outcome: "Outcome") -> None:
    from rich.table import Table

    from experiments import tables

    table = Table(title=f"Pretrained on {outcome.source}", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("task", f"{outcome.task}, {outcome.architecture}, {outcome.parameters:,} parameters")
    curve = tables.sparkline(outcome.losses)
    table.add_row("loss", f"{outcome.losses[0]:.4f} {curve} {outcome.losses[-1]:.4f}, {len(outcome.losses)} epochs")
    if outcome.probe is not None and outcome.untrained_probe is not None:
        gain = tables.signed(outcome.probe - outcome.untrained_probe)
        table.add_row("probe", f"macro recall {outcome.probe:.3f}, untrained {outcome.untrained_probe:.3f} ({gain})")
    table.add_row("probed on", outcome.probed_on)
    table.add_row("time", f"{tables.duration(outcome.seconds)}, {outcome.beats:,} beats seen")
    table.add_row("encoder", f"sha256 {outcome.weights_hash}")
    table.add_row("written", outcome.file)
    tables.console().print(table)
