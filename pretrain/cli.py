"""The flags of `python -m pretrain`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import models
import pretrain
from experiments import cli
from models import DEFAULT_ENCODER
from pretrain import sources

if TYPE_CHECKING:
    from data.batches import Feed
    from pretrain.task import Objective
    from pretrain.train import Outcome


@dataclass(frozen=True, kw_only=True)
class PretrainFlags(cli.RunFlags):
    """How to pretrain, whatever the task and the architecture."""

    data: str = "ptb"
    """Sources of the beats, one or several with commas: ptb, kaggle-ptb, ptbdb, ptbxl, synthetic-ptb, csv:FILE,
    parquet:FILE, or TARGET:train (such as arrhythmia:train) for the target's own training beats without labels."""
    protocol: Literal["beat-random", "ds1-ds2", "patient"] = "beat-random"
    """How the target is split, of which the probe takes the validation part and TARGET:train the training part."""
    epochs: int = 80
    """Passes over the sources' training beats."""
    compute: float | None = None
    """Instead of --epochs: multiply-adds of the whole training in units of 10^12, as near as whole epochs come."""
    batch_size: int = 256
    """Beats a step."""
    lr: float = 2e-3
    """Highest learning rate: reached after a warm-up, then a cosine."""
    weight_decay: float = 0.05
    """AdamW's weight decay, of weights only."""
    mask_ratio: float = 0.6
    """masked, spectrogram, jepa, multitask: share of each beat's patches to hide."""
    temperature: float = 0.2
    """contrastive, supcon: temperature of the similarities."""
    views: Literal["augmented", "patient"] = "augmented"
    """contrastive, supcon, vicreg, byol: two augmented views of a beat, or views of two beats of the same patient."""
    momentum: float = 0.996
    """byol, jepa: how much of the target network stays at a step, at the start; it rises to 1."""
    variance_weight: float = 25.0
    """vicreg: weight of the term that keeps features apart."""
    probe_every: int | None = None
    """Epochs between two looks at the probe (default: ten looks a run)."""
    patience: int = 0
    """End after this many looks without a better probe, and keep the best encoder; 0: train to the end. The probe
    reads labels of the target's validation part."""
    save_every: float = 10.0
    """Seconds between two states from which `--resume` continues."""
    precision: cli.Precision = "auto"
    """auto: bf16 autocast where the hardware multiplies in bf16."""

    def check_training(self) -> None:
        """
        Raises:
            ValueError: a flag out of its range, before anything is read or written.
        """
        sources.check(self.data)
        cli.at_least_one(epochs=self.epochs, batch_size=self.batch_size)
        if self.probe_every is not None:
            cli.at_least_one(probe_every=self.probe_every)
        if not 0 < self.lr < 1:
            raise ValueError(f"--lr {self.lr}: a number between 0 and 1 is needed")
        for name, value in (("weight-decay", self.weight_decay), ("patience", self.patience)):
            if not value >= 0:
                raise ValueError(f"--{name} {value}: 0 or more is needed")
        if not self.save_every >= 0:
            raise ValueError(f"--save-every {self.save_every}: 0 or more is needed")
        if self.compute is not None and not self.compute > 0:
            raise ValueError(f"--compute {self.compute}: a number above 0 is needed")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"--mask-ratio {self.mask_ratio}: a number between 0 and 1 is needed")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"--momentum {self.momentum}: a number from 0 to 1 is needed")


@dataclass(frozen=True, kw_only=True)
class Pretrain(PretrainFlags):
    """Pretrain an encoder on heartbeats and write a checkpoint that `python -m finetune` attaches to a head.

    `python -m pretrain compare` ranks tasks and architectures at equal compute.
    """

    task: str = pretrain.DEFAULT_TASK
    """masked, spectrogram, contrastive (NT-Xent), supcon, vicreg, byol, jepa (transformer1d), supervised or multitask
    (supervised and masked)."""
    arch: str = DEFAULT_ENCODER
    """Architecture, as `python -m models list` names it, perhaps with options: resnet1d@width=48,kernel=7."""
    stream: bool = False
    """Read the beats from their Parquet file during the training: for data larger than memory."""
    workers: int = 1
    """Processes that share each batch, here or (with --address) on a Ray cluster."""
    address: str | None = None
    """Ray cluster to run on, such as auto or ray://HOST:10001 (default: this machine)."""
    out: Path | None = None
    """Checkpoint to write (default: checkpoints/DATA_TASK.pt, with what else is not as by default, _seed1)."""
    pictures: bool = True
    """Draw learning curves, and reconstructions or a map of the embedding, into experiments/runs/pretrain/."""

    @property
    def out_file(self) -> Path:
        told = {
            self.arch.replace(":", "-"): self.arch != DEFAULT_ENCODER,
            self.views: self.views != "augmented",
            self.protocol: self.protocol != "beat-random",
            f"seed{self.seed}": self.seed != 0,
        }
        usual = f"{sources.short_name(self.data)}_{pretrain.entry(self.task).suffix}"
        stem = "_".join([usual, *(part for part, unusual in told.items() if unusual)])
        return cli.ROOT / "checkpoints" / f"{stem}.pt" if self.out is None else self.out

    @property
    def state_file(self) -> Path:
        """Where an interrupted run waits for `--resume`."""
        return self.out_file.with_name(f"{self.out_file.name}.partial")

    @property
    def folder(self) -> Path:
        """Where a run's pictures lie."""
        return cli.RUNS / "pretrain" / self.out_file.stem

    def objective(self, feed: Feed) -> Objective:
        from pretrain.task import Objective

        counts = [1] if feed.labels is None else feed.labels.bincount(minlength=feed.about.num_classes).tolist()
        return Objective(
            mask_ratio=self.mask_ratio,
            temperature=self.temperature,
            views=self.views,
            momentum=self.momentum,
            variance_weight=self.variance_weight,
            class_shares=tuple(count / sum(counts) for count in counts),
        )

    def settings(self) -> dict[str, bool | int | float | str]:
        """What decides the weights: equal in a run and in its resumption."""
        names = (
            "task data protocol stream arch epochs batch_size lr weight_decay mask_ratio temperature views momentum "
            "variance_weight patience seed"
        )
        looks = (self.patience and self.probe_every) or 0
        return {name: getattr(self, name) for name in names.split()} | {
            "compute": self.compute or 0.0,
            "probe_every": looks,
        }

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
        self.check_training()
        cli.at_least_one(workers=self.workers)
        if self.workers > 1:
            self.check_workers()
        if self.stream and (self.workers > 1 or self.address):
            raise ValueError("--stream with --workers or --address: a stream is read by one process, where its file is")
        cli.writable(self.out_file)

    def check_workers(self) -> None:
        """
        Raises:
            ValueError: more workers than beats in a batch, or than this machine has cores for.
        """
        from experiments.cluster import available_cores

        if self.workers > self.batch_size:
            raise ValueError(
                f"--workers {self.workers}: each needs a beat of the batch, and --batch-size is {self.batch_size}"
            )
        most = max(2, available_cores())
        if self.address is None and self.workers > most:
            raise ValueError(f"--workers {self.workers}: this machine has cores for {most}; --address names a cluster")


@dataclass(frozen=True, kw_only=True)
class Compare(PretrainFlags):
    """Pretrain by several tasks and architectures at equal compute, several seeds each, and rank them by the probe.

    Runs go side by side, as many as there are threads, on one thread each.
    """

    tasks: tuple[str, ...] = tuple(pretrain.TASKS)
    """Tasks to compare (default: all); a task that an architecture cannot do is left out for it."""
    archs: tuple[str, ...] = (DEFAULT_ENCODER, "transformer1d")
    """Architectures to compare."""
    seeds: int = 3
    """Pretraining seeds of each."""
    compute: float = 3.0
    """Multiply-adds of each run in units of 10^12, as near as whole epochs come."""
    out: Path | None = None
    """Folder of the checkpoints (default: checkpoints/compare)."""

    @property
    def folder(self) -> Path:
        return cli.ROOT / "checkpoints" / "compare" if self.out is None else self.out.resolve()

    def cells(self) -> list[Pretrain]:
        """Every run of the comparison, seed by seed, so that an interrupted one has whole rounds."""
        shared = {field.name: getattr(self, field.name) for field in fields(PretrainFlags)}
        fixed = {"json": None, "threads": 1, "tracking": "none", "data_dir": self.data_folder, "pictures": False}
        runs = []
        for seed in range(self.seed, self.seed + self.seeds):
            for arch in self.archs:
                for task in self.tasks:
                    entry = pretrain.entry(task)
                    if not entry.encoders or arch.partition("@")[0] in entry.encoders:
                        name = f"{sources.short_name(self.data)}_{entry.suffix}_{arch.replace(':', '-')}_seed{seed}.pt"
                        own = {"task": task, "arch": arch, "seed": seed, "out": self.folder / name}
                        runs.append(Pretrain(**shared | fixed | own))
        return runs

    def settings(self) -> dict[str, bool | int | float | str]:
        return {"tasks": " ".join(self.tasks), "archs": " ".join(self.archs), "seeds": self.seeds}

    def run(self) -> None:
        self.check_training()
        cli.at_least_one(
            seeds=self.seeds,
            tasks=len(self.tasks),
            archs=len(self.archs),
            threads=1 if self.threads is None else self.threads,
        )
        for arch in self.archs:
            models.parse(arch)
        for cell in self.cells():
            cell.check()
        from pretrain.compare import compare

        self.write([asdict(row) for row in compare(self)])


def show(outcome: Outcome) -> None:
    from rich.table import Table

    from experiments import tables

    table = Table(title=f"Pretrained on {outcome.source}", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("task", f"{outcome.task}, {outcome.architecture}, {outcome.parameters:,} parameters")
    curve = tables.sparkline(outcome.losses)
    table.add_row("loss", f"{outcome.losses[0]:.4f} {curve} {outcome.losses[-1]:.4f}, {len(outcome.losses)} epochs")
    now, before = outcome.probe, outcome.untrained
    for name, trained, untrained in (
        ("linear probe", now.linear, before.linear),
        ("neighbours", now.neighbours, before.neighbours),
    ):
        if trained is not None and untrained is not None:
            gain = tables.signed(trained - untrained)
            table.add_row(name, f"macro recall {trained:.3f}, untrained {untrained:.3f} ({gain})")
    table.add_row("probed on", outcome.probed_on)
    table.add_row(
        "embedding",
        f"effective rank {now.effective_rank:.1f}, untrained {before.effective_rank:.1f}; "
        f"spread {now.spread:.2f}, untrained {before.spread:.2f}",
    )
    for warning in outcome.warnings:
        table.add_row("[bold red]warning[/bold red]", warning)
    table.add_row(
        "cost",
        f"{tables.duration(outcome.seconds)}, {outcome.beats:,} beats seen, {outcome.multiply_adds / 1e12:.2f} × 10¹² "
        "multiply-adds",
    )
    table.add_row("encoder", f"sha256 {outcome.weights_hash}")
    table.add_row("written", outcome.file)
    tables.console().print(table)
