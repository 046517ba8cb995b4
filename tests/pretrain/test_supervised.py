import math

import pytest
import torch

import models
from data.synthetic import synthetic_ptb
from models.encoder import EncoderSpec
from pretrain.supervised import Supervised
from pretrain.task import Batch, Objective


def make_task(num_classes: int = 2) -> Supervised:
    torch.manual_seed(0)
    spec = EncoderSpec(name="resnet1d", options={"width": 8, "kernel": 3})
    return Supervised(models.build(spec), Objective(class_shares=(1 / num_classes,) * num_classes))


def test_the_source_decides_the_number_of_classes() -> None:
    task = make_task(5).eval()
    assert task.head(*task(torch.rand(2, 1, 187))).shape == (2, 5)
    assert task.chance(8) == pytest.approx(math.log(5))


def test_it_learns_labels() -> None:
    task, beats = make_task(), synthetic_ptb(64, 0)
    batch = Batch(beats.signal, beats.valid_length, beats.labels)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    losses = []
    for seed in range(15):
        torch.manual_seed(seed)
        loss = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.4)
    assert losses[-1] < 0.6 * losses[0]


def test_a_source_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="learns from labels"):
        make_task().loss(Batch(torch.rand(2, 1, 187), torch.tensor([100, 187]), None))
