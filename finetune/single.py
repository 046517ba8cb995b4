"""One `train` from start to end: train, look at the test part once, save, show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

import data
from data.split import with_fewer_labels
from experiments import results, tables
from experiments.calibration import probabilities
from experiments.files import nan_to_null
from experiments.machine import Machine
from experiments.metrics import bootstrap_interval, macro_recall
from experiments.results import RunResult
from experiments.thresholds import Alarms, Thresholds, alarms
from experiments.tracking import Tracker
from finetune.train import Arm, to_checkpoint, train, with_test
from finetune.trainee import confusion_of, predict
from models.checkpoint import save

if TYPE_CHECKING:
    from finetune.cli import Train


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What `train` has found."""

    validation: RunResult
    test: RunResult
    thresholds: Thresholds
    alarms: list[Alarms]
    """On the test part, one for each class."""

    def to_json(self) -> dict[str, Any]:
        """What is not defined becomes null."""
        alarms = [nan_to_null(asdict(raised)) for raised in self.alarms]
        return {
            "validation": self.validation.to_json(),
            "test": self.test.to_json(),
            "thresholds": self.thresholds.to_json(),
            "alarms": dict(zip(self.test.classes, alarms, strict=True)),
        }


def fit(flags: Train, arm: Arm, out: Path) -> Fitted:
    """Train, test and save; both results are then in the store."""
    machine = Machine.resolve(flags.device, flags.precision, flags.threads)
    split = data.load_split(flags.data, flags.protocol, flags.data_folder, flags.seed)
    split = with_fewer_labels(split, flags.label_fraction, flags.label_draw)
    context = flags.context(split, label_fraction=flags.label_fraction, label_draw=flags.label_draw)
    recipe = flags.recipe
    arm.check(split, flags.data, recipe)
    state_file = out.with_name(f"{out.name}.partial")
    for line in (*split.train.notes, *filter(None, [arm.loaded])):
        tables.say(line)
    with (
        Tracker.open(flags.tracking, "finetune").run(
            f"train {arm.name}", asdict(recipe), {"arm": arm.name, "badge": split.badge}
        ) as tracked,
        tables.ProgressLine(f"{arm.name} {recipe.schedule}", recipe.epochs) as listener,
    ):
        trained = train(
            arm,
            split,
            recipe,
            flags.seed,
            context,
            machine,
            state_file=state_file,
            resume=flags.resume,
            listener=listener,
            on_epoch=lambda epoch: tracked.log(epoch.metrics, epoch.number),
        )
        tables.say(f"balance {recipe.balance}: {trained.counts}")
        checkpoint = to_checkpoint(trained, split)
        save(out, checkpoint)
        state_file.unlink(missing_ok=True)
        beats = split.load_test()
        logits = predict(trained.model, beats, recipe.intervals)
        test = context.result(arm, recipe, flags.seed, "test", confusion_of(logits, beats), trained.validation.cost)
        calibrated = probabilities(logits.numpy(), trained.temperature)
        raised = alarms(trained.thresholds, calibrated, beats.labels.numpy())
        save(out, with_test(checkpoint, test))
        tracked.log({f"test_{name}": value for name, value in test.metrics.items()})
    for result in (trained.validation, test):
        results.append(results.STORE, result)
    return Fitted(validation=trained.validation, test=test, thresholds=trained.thresholds, alarms=raised)


def show(fitted: Fitted, out: Path) -> None:
    validation, test = fitted.validation, fitted.test
    table = Table(title=f"{test.arm} on {test.dataset}, seed {test.seed}, leakage {test.badge}", title_style="bold")
    table.add_column("part")
    for name in test.metrics:
        table.add_column(name.replace("_", " "), justify="right")
    for result in (validation, test):
        table.add_row(result.part, *(f"{value:.3f}" for value in result.metrics.values()))
    low, high = bootstrap_interval([test.confusion], macro_recall)
    shown = tables.console()
    shown.print(table)
    tables.say(f"test macro recall 95 % interval {tables.interval(low, high)}, bootstrap over beats (optimistic)")
    shown.print(tables.confusion_table(test.confusion, test.classes, "Test beats"))
    shown.print(_alarm_table(fitted))
    tables.say(f"{tables.duration(test.cost['seconds'])} of training; written: {out}")


def _alarm_table(fitted: Fitted) -> Table:
    floor = fitted.thresholds.floor
    table = Table(title=f"Alarms: thresholds set on validation data to find {floor:.0%} of each class")
    table.title_style, table.caption = "bold", "one class against the rest; a beat may raise several alarms, or none"
    for header in ("class", "threshold", "test recall", "precision", "alarms", "beats"):
        table.add_column(header, justify="left" if header == "class" else "right")
    for label, threshold, raised in zip(fitted.test.classes, fitted.thresholds.values, fitted.alarms, strict=True):
        shares = ["–" if isnan(value) else f"{value:.3f}" for value in (raised.recall, raised.precision)]
        limit = "–" if threshold is None else f"{threshold:.3g}"
        table.add_row(label, limit, *shares, f"{raised.num_alarms:,}", f"{raised.support:,}")
    return table
