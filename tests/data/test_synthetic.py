from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score

import data
from data.beats import measure_length
from data.synthetic import synthetic_arrhythmia, synthetic_ptb

DRAWS = {"ptb": synthetic_ptb, "arrhythmia": synthetic_arrhythmia}
SHARES = {"ptb": (0.28, 0.72), "arrhythmia": (0.828, 0.025, 0.066, 0.007, 0.073)}


@pytest.mark.parametrize("name", DRAWS)
def test_the_seed_decides_every_bit(name: str) -> None:
    first, again, other = (DRAWS[name](500, seed) for seed in (3, 3, 4))
    for field in ("signal", "target", "group", "intervals", "valid_length"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not torch.equal(first.signal, other.signal)


@pytest.mark.parametrize("name", DRAWS)
def test_beats_obey_the_rule_of_real_ones(name: str) -> None:
    beats = DRAWS[name](2000, 0)
    signal = beats.signal[:, 0]
    after_end = torch.arange(187) >= beats.valid_length[:, None]
    assert (signal[after_end] == 0).all()
    assert torch.equal(beats.valid_length, measure_length(beats.signal))
    assert (signal.max(dim=1).values == 1).all()
    assert (signal.masked_fill(after_end, 9).min(dim=1).values >= 0).all()
    assert 50 < beats.valid_length.min() < 90 < beats.valid_length.double().median() < 140


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("num_beats", [50, 3000])
def test_every_class_is_there_in_its_share(name: str, num_beats: int) -> None:
    counts = DRAWS[name](num_beats, 0).counts()
    assert sum(counts.values()) == num_beats
    for count, share in zip(counts.values(), SHARES[name], strict=True):
        assert count >= 1 and abs(count - share * num_beats) <= max(2, 0.002 * num_beats)


@pytest.mark.parametrize("name", DRAWS)
def test_too_few_beats_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 synthetic beats"):
        DRAWS[name](1, 0)


@pytest.mark.parametrize("name", DRAWS)
def test_a_linear_model_learns_something_but_not_everything(name: str) -> None:
    train, test = data.load(f"synthetic-{name}", "train", Path()), data.load(f"synthetic-{name}", "test", Path())
    model = LinearDiscriminantAnalysis(priors=np.full(train.num_classes, 1 / train.num_classes))
    model.fit(train.signal[:5000, 0].numpy(), train.labels[:5000].numpy())
    recall = balanced_accuracy_score(test.labels.numpy(), model.predict(test.signal[:, 0].numpy()))
    assert 1.5 / train.num_classes < recall < 0.98


def test_an_infarction_belongs_to_the_patient() -> None:
    beats = synthetic_ptb(2000, 0)
    assert beats.group is not None
    assert not set(beats.group[beats.labels == 0].tolist()) & set(beats.group[beats.labels == 1].tolist())


def test_sizes_of_the_data_sets() -> None:
    sizes = [len(data.load(f"synthetic-{name}", part, Path())) for name in DRAWS for part in data.PARTS]
    assert sizes == [12_000, 3_000, 20_000, 5_000]
