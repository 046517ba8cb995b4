"""Beats a second of masked pretraining of the transformer: visible patches alone, against the whole sequence.

    python -m tests.benchmarks.masked_speed

Both are the same encoder, decoder, loss and batch; one lets only the visible patches through the encoder, the other all
of them, with a learned token in place of the hidden ones (as in BERT, Devlin et al. 2019, arXiv 1810.04805).
Pairs alternate, so that a noisy machine disturbs both alike.
"""

import statistics
import time

import torch
from torch import Tensor, nn

import models
from data.synthetic import synthetic_ptb
from experiments.machine import autocast, resolve_precision
from models.params import decay_groups
from models.transformer1d import Transformer1d
from pretrain.masked import Masked, VisiblePatches
from pretrain.task import Batch, Objective

BATCH, NUM_STEPS, NUM_PAIRS = 256, 20, 9


class WholeSequence(VisiblePatches):
    """Hidden patches go through the encoder too, as a token that says nothing."""

    def __init__(self, encoder: Transformer1d, width: int, num_hidden: int) -> None:
        super().__init__(encoder, width, num_hidden)
        self.unknown = nn.Parameter(torch.zeros(encoder.dim))

    def forward(self, signal: Tensor, order_BN: Tensor) -> Tensor:
        embedded = self.encoder.embed(signal)
        hidden = order_BN[:, : self.num_hidden, None].expand(-1, -1, self.encoder.dim)
        token = self.unknown.to(embedded.dtype).expand_as(hidden)
        return self.decode(self.narrow(self.encoder.contextualise(embedded.scatter(1, hidden, token))) + self.position)


def make_task(whole: bool) -> Masked:
    torch.manual_seed(0)
    encoder = models.build(models.parse("transformer1d"))
    task = Masked(encoder, Objective())
    if whole:
        assert isinstance(encoder, Transformer1d)
        task.reconstruct = WholeSequence(encoder, task.width, task.num_hidden)
    return task


def beats_per_s(task: Masked, batch: Batch, precision: str) -> float:
    optimizer = torch.optim.AdamW(decay_groups(task, 0.05), lr=1e-3, fused=True)
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        with autocast("cpu", precision):
            loss = task.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return NUM_STEPS * BATCH / (time.perf_counter() - start)


def main() -> None:
    beats = synthetic_ptb(BATCH, 0)
    batch, precision = Batch(beats.signal, beats.valid_length), resolve_precision("auto", "cpu")
    tasks = {whole: make_task(whole) for whole in (False, True)}
    for task in tasks.values():
        beats_per_s(task, batch, precision)
    speeds = {whole: [] for whole in tasks}
    for _ in range(NUM_PAIRS):
        for whole, task in tasks.items():
            speeds[whole].append(beats_per_s(task, batch, precision))
    ratios = [visible / whole for visible, whole in zip(speeds[False], speeds[True], strict=True)]
    print(
        f"{torch.get_num_threads()} threads, {precision}, batch {BATCH}: "
        f"visible patches {statistics.median(speeds[False]):,.0f} "
        f"beats/s, whole sequence {statistics.median(speeds[True]):,.0f}; ratio {statistics.median(ratios):.2f} "
        f"(median of {NUM_PAIRS} pairs, {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
