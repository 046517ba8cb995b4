"""What several tests make: small checkpoints and studies, and the reading of a refusal."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from data.split import Split
from experiments.machine import Machine
from experiments.metrics import scores
from experiments.results import Part, RunResult
from experiments.space import Space
from experiments.tracking import Run
from finetune.controls import Control
from finetune.groups import Group
from finetune.intervals import COLUMNS
from finetune.recipe import Recipe
from finetune.studies import Study
from finetune.train import Arm, Context
from models.checkpoint import Checkpoint, weights_of
from models.encoder import EncoderSpec, Option
from models.heads import Classifier


def checkpoint_of(
    spec: EncoderSpec, module: nn.Module, head: str | None = None, source: str = "synthetic ptb"
) -> Checkpoint:
    """An encoder's checkpoint, or with `head` that of a classifier of five classes."""
    return Checkpoint(
        spec=spec,
        weights=weights_of(module),
        task="masked",
        source=source,
        fingerprint="f",
        preprocessing={},
        seed=0,
        head=head,
        classes=("N", "S", "V", "F", "Q") if head else (),
    )


def classifier_of(arch: str, head: str = "linear", intervals: str = "none", **options: Any) -> Checkpoint:
    """An untrained classifier of five classes, as a file would hold it; its normalisations have seen beats."""
    torch.manual_seed(0)
    encoder = models.build(models.parse(arch))
    num_ratios = len(COLUMNS[intervals])
    classifier = Classifier(encoder, head, 5, num_ratios)
    with torch.no_grad():
        for _ in range(20):
            classifier(torch.rand(16, 1, 187), torch.randn(16, num_ratios) if num_ratios else None)
    of_encoder = checkpoint_of(encoder.spec, classifier, head)
    about = {"rate_hz": 125.0, "num_leads": 1, "num_samples": 187}
    return replace(of_encoder, preprocessing=about, options={"intervals": intervals, **options})


def pretrained_arm(task: str, seed: int, arch: str = "a", source: str = "PTB", **options: Option) -> Arm:
    """A transfer arm whose file says that task and seed; of one of two architectures, a and b."""
    spec = EncoderSpec(name="resnet1d", options={"width": {"a": 2, "b": 3}[arch], "kernel": 3})
    torch.manual_seed(hash((task, seed, arch, source, *options.values())) % 2**31)
    checkpoint = replace(
        checkpoint_of(spec, models.build(spec), source=source), task=task, seed=seed, options={**options, "seed": seed}
    )
    return Arm(name="transfer", spec=spec, checkpoint=checkpoint, origin=f"{task}{seed}.pt")


def results_of(group: Group, recalls: dict[tuple[int, int], float], fraction: float = 0.01) -> list[RunResult]:
    """Validation and test results by (place of the arm in the group, seed); both parts score alike."""
    parts: tuple[Part, ...] = ("validation", "test")
    return [
        _result_of(group, group.arms[place], seed, recall, part, fraction)
        for (place, seed), recall in recalls.items()
        for part in parts
    ]


def _result_of(group: Group, arm: Arm | Control, seed: int, recall: float, part: Part, fraction: float) -> RunResult:
    right = round(1000 * recall)
    confusion = [[right, 1000 - right], [1000 - right, right]]
    return RunResult(
        arm=group.arm,
        encoder=arm.encoder_hash,
        source=arm.source,
        dataset="arrhythmia",
        config={
            **(asdict(group.recipe) if group.recipe else {}),
            "arch": arm.architecture,
            "label_fraction": fraction,
            "train_beats": 788,
        },
        seed=seed,
        protocol="patient",
        badge="patient-disjoint",
        part=part,
        metrics=scores(confusion),
        confusion=confusion,
        classes=["N", "V"],
        cost={"seconds": 2.0, "beats": 9.0},
        commit=None,
        created="2026-01-02T03:04:05+00:00",
    )


def study_of(*, arms: tuple[Arm, ...], split: Split, folder: Path, space: Space, **more: Any) -> Study:
    """A study that is tracked nowhere and recorded in its folder."""
    base = Context(dataset="d", protocol=split.protocol, badge=split.badge, classes=split.train.classes)
    usual: dict[str, Any] = {
        "name": "study",
        "base": base,
        "base_recipe": Recipe(),
        "objectives": ("macro_recall",),
        "searcher": "tpe",
        "scheduler": "fifo",
        "prior": (),
        "seed": 0,
        "num_workers": 2,
        "resources": {"cpu": 1},
        "shares_disk": True,
        "machine": Machine(),
        "trial_bytes": 2**33,
        "store": folder / "results.jsonl",
        "tracked": Run(),
        "interrupted": lambda: False,
    }
    return Study(arms=arms, split=split, folder=folder, space=space, **(usual | more))


def assert_refused(answer: tuple[int | str, str, str], said: Sequence[str]) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds everything in `said`."""
    code, stdout, stderr = answer
    assert (code, stdout.strip()) == (2, ""), answer
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert [part for part in said if part not in stderr] == [], stderr
