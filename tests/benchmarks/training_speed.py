"""Beats per second of the toolkit's training loop against a bare fp32 PyTorch loop of the same model.

    python -m tests.benchmarks.training_speed [--threads N]

Both train the 1D CNN at batch 256 on the same synthetic beats in memory, with fused AdamW and the same threads, in
alternating pairs. Not a test: it asserts nothing.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional
from torch.optim import AdamW

from data.split import Split, stratified
from data.synthetic import synthetic_arrhythmia
from experiments import loop
from experiments.machine import Machine, resolve_precision, resolve_threads
from finetune.recipe import Recipe
from finetune.train import Arm
from finetune.trainee import FineTuning
from models.encoder import EncoderSpec

BATCH_SIZE = 256
NUM_STEPS = 120
NUM_PAIRS = 5
ARM = Arm(name="scratch", spec=EncoderSpec(name="resnet1d"))


def bare(split: Split) -> float:
    """What one would write by hand: beats per second."""
    model = ARM.build("linear", split.train.num_classes, 0).train()
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=True)
    signal, target = split.train.signal, split.train.labels
    start = time.perf_counter()
    for index in torch.randperm(len(signal)).split(BATCH_SIZE):
        loss = functional.cross_entropy(model(signal[index]), target[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(signal) / (time.perf_counter() - start)


def ours(split: Split, machine: Machine) -> float:
    """The loop behind `python -m finetune train`, without augmentation: beats per second."""
    recipe = Recipe(balance="none", augment="none", epochs=1, batch_size=BATCH_SIZE)
    model = ARM.build("linear", split.train.num_classes, 0)
    tuning = FineTuning(model, split, recipe, 0, machine)
    start = time.perf_counter()
    loop.run(tuning, loop.Settings(num_epochs=1, seed=0, machine=machine))
    return len(split.train) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    threads = resolve_threads(parser.parse_args().threads)
    machine = Machine(precision=resolve_precision("auto", "cpu"), threads=threads)
    beats = synthetic_arrhythmia(BATCH_SIZE * NUM_STEPS + 64, 0)
    train, validation = stratified(beats.labels, 64 / len(beats), 0)
    split = Split(
        train=beats.select(train),
        validation=beats.select(validation),
        load_test=lambda: beats,
        protocol="beat-random",
        badge="beat-random",
    )
    bare(split)
    ours(split, machine)
    ratios = []
    for pair in range(1, NUM_PAIRS + 1):
        plain, toolkit = bare(split), ours(split, machine)
        ratios.append(toolkit / plain)
        print(f"pair {pair}: bare fp32 {plain:7,.0f} beats/s, toolkit {toolkit:7,.0f} beats/s, ratio {ratios[-1]:.2f}")
    print(f"{machine.precision}, {threads} threads, batch {BATCH_SIZE}: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
