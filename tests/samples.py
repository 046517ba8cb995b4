"""What several tests make: small checkpoints and studies, and the reading of a refusal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from data.split import Split
from experiments.machine import Machine
from experiments.space import Space
from experiments.tracking import Run
from finetune.recipe import Recipe
from finetune.studies import Study
from finetune.train import Arm, Context
from models.checkpoint import Checkpoint, weights_of
from models.encoder import EncoderSpec


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
