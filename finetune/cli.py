"""The flags of `python -m finetune` train, tune and compare, and what `train` prints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

import models
from data import short_name
from experiments import cli
from finetune import model_commands
from finetune.recipe import Recipe, fixed_by
from models import DEFAULT_ENCODER

if TYPE_CHECKING:
    from data.split import Split
    from finetune.train import Arm, Context

SCRATCH = "scratch"


def make_arm(encoder: str, arch: str) -> Arm:
    """The arm that `--encoder` names; from scratch, of the architecture that `--arch` names."""
    from finetune.train import Arm

    return Arm(name=SCRATCH, spec=models.parse(arch)) if encoder == SCRATCH else Arm.from_file(encoder)


def _reach(address: str | None) -> None:
    """
    Raises:
        ValueError: no cluster answers; said before anything is loaded.
    """
    if address is not None:
        from experiments.cluster import reach

        reach(address)


@dataclass(frozen=True, kw_only=True)
class TargetFlags(cli.RunFlags):
    """What every command asks."""

    data: str = "arrhythmia"
    """Target task: arrhythmia, mitdb, ptbxl …, csv:FILE or parquet:FILE (see `python -m data list`)."""
    precision: cli.Precision = "auto"
    """auto: bf16 autocast where the hardware multiplies in bf16."""

    def context(self, split: Split, **labels: str | int | float) -> Context:
        from experiments.results import git_commit
        from finetune.train import Context

        return Context(
            dataset=self.data,
            protocol=split.protocol,
            badge=split.badge,
            classes=split.train.classes,
            commit=git_commit(),
            labels=labels,
        )


@dataclass(frozen=True, kw_only=True)
class FineTuneFlags(TargetFlags):
    """What the commands of one encoder ask."""

    encoder: str
    """Checkpoint FILE of an encoder, or scratch: random weights."""
    protocol: cli.Protocols = "beat-random"
    """Split: beat-random (as published), ds1-ds2 (de Chazal), patient or folds; all but the first need records."""
    arch: str = DEFAULT_ENCODER
    """Architecture from scratch, as NAME or NAME@OPTION=VALUE,… (resnet1d, transformer1d …); a checkpoint brings its
    own."""

    def arm(self) -> Arm:
        return make_arm(self.encoder, self.arch)

    def default_out(self, ending: str) -> Path:
        """The file's name says what it was trained on and from, and the protocol where it is not the usual one."""
        encoder = "" if self.encoder == SCRATCH else Path(self.encoder).stem
        arch = "" if encoder or self.arch == DEFAULT_ENCODER else self.arch
        protocol = "" if self.protocol == "beat-random" else self.protocol
        stem = "_".join(filter(None, (short_name(self.data), encoder, ending, arch, protocol)))
        return cli.ROOT / "checkpoints" / f"{stem}.pt"


@dataclass(frozen=True, kw_only=True)
class Train(FineTuneFlags):
    """One run: fine-tune a checkpoint, or train from scratch, and look at the test part once."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)
    label_fraction: float = 1.0
    """Share of the training beats to learn from, stratified; validation and test stay whole."""
    label_draw: int = 0
    """Which of several draws of that share; the shares of one draw are nested."""
    out: Path | None = None
    """Classifier to write (default: checkpoints/DATA_ENCODER.pt)."""

    def run(self) -> None:
        self.recipe.check()
        arm = self.arm()
        out = self.out or self.default_out("" if arm.checkpoint else arm.name)
        cli.writable(out)
        from finetune.single import fit, show

        fitted = fit(self, arm, out)
        show(fitted, out)
        self.write(fitted.to_json() | {"file": str(out)})


@dataclass(frozen=True, kw_only=True)
class Tune(FineTuneFlags):
    """Search recipes for transfer and for scratch at equal budgets, then compare the best of each on paired seeds.

    Trials run side by side, as many as there are threads, on one thread each.
    """

    budget: str = "10m"
    """Time for the whole command, such as 90s, 10m or 2h; trials, epochs and seeds are planned to fit."""
    space: str = "default"
    """Search space: small, default, wide (see `python -m experiments spaces`), or a .toml FILE."""
    fixed: tuple[str, ...] = ()
    """NAME=VALUE of what is not searched, such as schedule=gradual or intervals=causal: any field of a recipe (the
    flags of `train`). What concerns pretrained weights alone is not held against scratch."""
    objective: tuple[str, ...] = ("macro_recall",)
    """What the search maximises on validation data: macro_recall, macro_f1, recall_V, precision_S …; of several the
    Pareto front is shown, and the recipe of the highest mean compared. Which epoch of a run is kept, and which arm is
    chosen in the end, goes by macro recall."""
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    """Where to look next."""
    scheduler: Literal["asha", "fifo", "median", "hyperband", "pbt"] = "asha"
    """Which trials go on; fifo: all of them."""
    warm_start: bool = False
    """Learn from the recorded trials of earlier tunes of the same data, split and encoder; they count for nothing."""
    address: str | None = None
    """Ray cluster to run on, such as HOST:6379; without it, this machine."""
    epochs: int | None = None
    """Passes over all training beats of each compared run (default: planned)."""
    trials: int | None = None
    """Trials of each arm (default: planned)."""
    seeds: int | None = None
    """Paired seeds of the comparison (default: planned)."""
    scratch_plus: int | None = None
    """Seeds of `scratch+`, scratch with pretraining's compute on top (default: planned; 0: none)."""
    out: Path | None = None
    """Classifier to write, of the chosen arm (default: checkpoints/DATA_ENCODER_tuned.pt)."""

    def run(self) -> None:
        start = time.monotonic()
        from finetune.plan import parse_duration

        budget_s = parse_duration(self.budget)
        counts = {"epochs": self.epochs, "trials": self.trials, "seeds": self.seeds, "threads": self.threads}
        cli.at_least_one(**{name: count for name, count in counts.items() if count is not None})
        if self.scratch_plus is not None and self.scratch_plus < 0:
            raise ValueError(f"--scratch-plus {self.scratch_plus}: 0 or more seeds are needed")
        for name in self.objective or ("",):
            if not name or self.objective.count(name) > 1:
                raise ValueError(f"--objective {name}: {'named twice' if name else 'name one or more'}")
        if self.encoder == SCRATCH:
            raise ValueError("--encoder scratch: tune compares a checkpoint with scratch; name a checkpoint FILE")
        cli.writable(self.out_file)
        _reach(self.address)
        from finetune.study import Budget, run_study

        run_study(self, Budget(seconds=budget_s, start=start))

    @property
    def out_file(self) -> Path:
        return self.out or self.default_out("tuned")

    @property
    def folder(self) -> Path:
        """Of the study: one for each checkpoint, data set, protocol and seed."""
        return cli.RUNS / f"tune_{Path(self.encoder).stem}_{short_name(self.data)}_{self.protocol}_seed{self.seed}"

    def settings(self) -> dict[str, int | str | None]:
        """What a resumed study must have in common with the interrupted one."""
        names = "encoder data protocol budget epochs trials seeds scratch_plus seed threads precision device"
        search = {"searcher": self.searcher, "scheduler": self.scheduler, "objective": " ".join(self.objective)}
        return {name: getattr(self, name) for name in names.split()} | search | {"fixed": " ".join(self.fixed)}


@dataclass(frozen=True, kw_only=True)
class Compare(TargetFlags):
    """Fine-tune several checkpoints, and untrained encoders of their architectures, by one recipe on paired seeds.

    Checkpoints that differ in their pretraining seed alone are one row: the interval of its difference to scratch is
    over both kinds of seeds. The controls: `scratch`, trained whole, and `random-frozen`, where only the head learns.
    Runs go side by side, as many as there are threads, on one thread each. Where labels are few, batches hold at most a
    quarter of the training beats, epochs are raised until they make --steps steps, and validation looks at no more
    than 2,000 beats or twice the training beats, 20 times a run: all the same for every arm.
    """

    encoders: tuple[str, ...]
    """Checkpoint FILES of pretrained encoders; several seeds of each pretraining say more."""
    protocol: tuple[cli.Protocols, ...] = ("beat-random",)
    """Splits, each a comparison of its own: beat-random (as published), ds1-ds2 (de Chazal), patient, folds."""
    label_fractions: tuple[str, ...] = ("1",)
    """Shares of the training beats to learn from, stratified, as SHARE or SHARE@SEEDS where it has fewer seeds than
    --seeds says; seed k takes draw k."""
    vary: tuple[str, ...] = ()
    """Recipes to compare, each as NAME=VALUE,… on top of the other flags, such as schedule=frozen
    schedule=full,ratio=0.1 schedule=full; controls have each of them that says anything of random weights."""
    address: str | None = None
    """Ray cluster to run on, such as HOST:6379; without it, this machine."""
    seeds: int = 3
    """Fine-tune seeds, from --seed on: each is a validation cut, a label draw, a head and a batch order of its own."""
    steps: int = 600
    """Optimizer steps of each run at least; --epochs is raised to reach them."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)

    def run(self) -> None:
        cli.at_least_one(seeds=self.seeds, steps=self.steps, threads=1 if self.threads is None else self.threads)
        for recipe in self.recipes():
            recipe.check()
        if not self.encoders:
            raise ValueError("--encoders: name one checkpoint FILE or more")
        if not self.protocol:
            raise ValueError("--protocol: name one or more")
        for flag, named in (("protocol", self.protocol), ("vary", self.vary)):
            for name in named:
                if named.count(name) > 1:
                    raise ValueError(f"--{flag} {name} is named twice")
        self.seeds_of()
        _reach(self.address)
        from finetune.compare import run_comparisons

        run_comparisons(self)

    def recipes(self) -> list[Recipe]:
        """The recipe of the flags, or one for each of --vary.

        Raises:
            ValueError: a variation of what no recipe has, or of what is planned.
        """
        if not self.vary:
            return [self.recipe]
        return [replace(self.recipe, **fixed_by(one.split(","), "--vary")) for one in self.vary]

    def seeds_of(self) -> dict[float, range]:
        """Of each label fraction the fine-tune seeds.

        Raises:
            ValueError: not SHARE or SHARE@SEEDS, out of range, or twice.
        """
        found: dict[float, range] = {}
        for text in self.label_fractions or ("",):
            share, _, count = text.partition("@")
            try:
                fraction, number = float(share), int(count or self.seeds)
            except ValueError:
                fraction, number = 0.0, 1
            if not 0 < fraction <= 1 or not 1 <= number <= self.seeds:
                raise ValueError(
                    f"--label-fractions {text}: a share above 0 and at most 1 is needed, or SHARE@SEEDS with at most "
                    f"the {self.seeds} seeds of --seeds"
                )
            if fraction in found:
                raise ValueError(f"--label-fractions {text} is named twice")
            found[fraction] = range(self.seed, self.seed + number)
        return found

    def load_split(self, protocol: str, seed: int) -> Split:
        import data

        return data.load_split(self.data, protocol, self.data_folder, seed)

    def settings(self, protocol: str) -> dict[str, str | int | float]:
        """What all runs of a comparison have in common; checkpoints, seeds, shares and variations may join later."""
        return {"data": self.data, "protocol": protocol, "steps": self.steps, **asdict(self.recipe)}


@dataclass(frozen=True, kw_only=True)
class Schedule(cli.Report):
    """Show what a recipe's schedule means: what learns in each epoch, how many parameters, at which learning rate."""

    encoder: str = SCRATCH
    """Checkpoint FILE of an encoder, or scratch."""
    arch: str = DEFAULT_ENCODER
    """Architecture where there is no checkpoint."""
    classes: int = 5
    """Of the head."""
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)

    def run(self) -> None:
        from experiments import tables
        from finetune.timetable import timetable, timetable_table

        cli.at_least_one(classes=self.classes)
        rows = timetable(self.recipe, make_arm(self.encoder, self.arch), self.classes)
        tables.console().print(timetable_table(rows, self.recipe))
        self.write([asdict(row) for row in rows])


COMMANDS: dict[str, type[cli.Command]] = {
    "train": Train,
    "tune": Tune,
    "compare": Compare,
    "schedule": Schedule,
    **model_commands.COMMANDS,
}
