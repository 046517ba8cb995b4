"""Fine-tuning with the activations of frozen stages kept, against the same runs that compute every step in full.

    python -m tests.benchmarks.activation_caching [--arch NAME] [--beats N] [--precision fp32|bf16] [--threads N]

Beats of the arrhythmia file, 20 epochs of each schedule, one run after the other in alternating pairs; making the
activations counts. Not a test: it asserts nothing.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

import data
import models
from data.split import subset
from experiments.machine import Machine
from finetune.activations import NoShelf, Shelf
from finetune.recipe import Recipe
from finetune.train import Arm, Context, Trained, train

SCHEDULES = ("frozen", "top", "gradual", "lp_ft")
NUM_EPOCHS, NUM_PAIRS = 20, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet1d")
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES)
    parser.add_argument("--num-stages", type=int, default=1, help="of top")
    parser.add_argument("--beats", type=int, default=20_000)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("HEART_DATA_DIR", "data")))
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    machine = Machine(precision=flags.precision, threads=flags.threads)
    split = data.load_split("arrhythmia", "beat-random", flags.data_dir, 0)
    split = replace(
        split,
        train=subset(split.train, flags.beats, 0),
        validation=subset(split.validation, flags.beats // 9, 0),
    )
    arm = Arm(name="scratch", spec=models.parse(flags.arch))
    context = Context(dataset="arrhythmia", protocol=split.protocol, badge=split.badge, classes=split.train.classes)

    def timed(schedule: str, shelf: Shelf | None) -> tuple[float, Trained]:
        recipe = Recipe(schedule=schedule, epochs=NUM_EPOCHS, num_stages=flags.num_stages)
        start = time.perf_counter()
        trained = train(arm, split, recipe, 0, context, machine, shelf=shelf)
        return time.perf_counter() - start, trained

    print(f"{flags.precision}, {flags.threads} threads, {flags.beats:,} beats, {NUM_EPOCHS} epochs, {flags.arch}")
    timed("frozen", NoShelf())
    for schedule in flags.schedules:
        for _ in range(NUM_PAIRS):
            whole_s, whole = timed(schedule, None)
            kept_s, kept = timed(schedule, NoShelf())
            pairs = zip(whole.curve, kept.curve, strict=True)
            apart = max(abs(one[name] - other[name]) for one, other in pairs for name in one)
            print(
                f"{schedule:8} in full {whole_s:6.1f} s, kept {kept_s:6.1f} s, ratio {whole_s / kept_s:5.2f}; "
                f"metrics of all epochs differ by {apart:.1e} at most",
                flush=True,
            )


if __name__ == "__main__":
    main()
