"""Every schedule as a table: what learns in each epoch, how many parameters, and at which rate."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe import Recipe
from finetune.schedules import ORDERS, SCHEDULES, WHOLE, Freezing, Timeline
from finetune.timetable import timetable
from finetune.train import Arm
from models import HEAD
from models.encoder import EncoderSpec
from models.params import KINDS

STAGES = ("stem", "block1", "block2", "block3", "block4")
EVERYTHING = "stem block1 block2 block3 block4 head"
NUM_EPOCHS = 10
ARM = Arm(name="scratch", spec=EncoderSpec(name="resnet1d", options={"width": 4, "kernel": 3}))

GOLDEN: Mapping[str, tuple[dict[str, float | int | str], list[str]]] = {
    "frozen": ({}, ["head"] * 10),
    "full": ({}, [EVERYTHING] * 10),
    "top": ({"num_stages": 2}, ["block3 block4 head"] * 10),
    "first": ({"num_stages": 2}, ["stem block1 head"] * 10),
    "single": ({"which_stage": 2}, ["block1 head"] * 10),
    "gradual": (
        {"thaw_start": 0.2, "thaw_interval": 0.1},
        [
            *("head", "head", "block4 head", "block3 block4 head", "block2 block3 block4 head"),
            *("block1 block2 block3 block4 head", *[EVERYTHING] * 4),
        ],
    ),
    "lp_ft": ({"thaw_start": 0.5}, [*["head"] * 5, *[EVERYTHING] * 5]),
    "chain_thaw": (
        {"thaw_start": 0.1, "thaw_interval": 0.1, "thaw_order": "input"},
        ["head", "stem", "block1", "block2", "block3", "block4", *[EVERYTHING] * 4],
    ),
    "norm_only": ({}, ["stem.norm block1.norm block2.norm block3.norm block4.norm head"] * 10),
    "bias_only": ({}, ["stem.bias block1.bias block2.bias block3.bias block4.bias head"] * 10),
    "adapters": (
        {},
        ["stem.adapter block1.adapter block2.adapter block3.adapter block4.adapter head"] * 10,
    ),
}
"""Schedule → its parameters, and what learns in each of ten epochs: a stage, or of a stage one sort of parameter."""

SORTS = {
    "norm": {"norm_weight", "norm_bias"},
    "bias": {"bias", "norm_bias"},
    "adapter": {"adapter"},
    "": {"weight", "bias", "norm_weight", "norm_bias"},
}
"""Written out again, so that a change of the schedules' own sets is seen."""

CHANNELS = (4, 4, 6, 10, 16)
"""resnet1d of width 4."""
KERNEL, HEAD_SIZE = 3, 16 * 5 + 5


def sizes(stage: str, sort: str) -> int:
    """Parameters of a stage by hand: convolutions without biases, each with a normalisation of as many channels."""
    if stage == HEAD:
        return HEAD_SIZE
    place = STAGES.index(stage)
    before, after = CHANNELS[place - 1], CHANNELS[place]
    convolutions = [(4, 1 * 7)]
    if place:
        convolutions = [(after, before * KERNEL), (after, after * KERNEL), (after, before)]
    norms = sum(out for out, _ in convolutions)
    rank = Recipe().rank
    return {
        "": sum(out * fan_in for out, fan_in in convolutions) + 2 * norms,
        "norm": 2 * norms,
        "bias": norms,
        "adapter": sum(min(rank, out, fan_in) * (out + fan_in) for out, fan_in in convolutions),
    }[sort]


def cells(line: str) -> list[tuple[str, str]]:
    return [(stage, sort) for stage, _, sort in (word.partition(".") for word in line.split())]


def test_every_schedule_has_a_table() -> None:
    assert set(GOLDEN) == set(SCHEDULES)
    assert set.union(*SORTS.values()) == set(KINDS) and SORTS[""] == WHOLE


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_learns_in_each_epoch(name: str) -> None:
    options, table = GOLDEN[name]
    timeline = Timeline(Freezing(schedule=name, **options), STAGES)  # pyright: ignore[reportArgumentType]
    found = [timeline.scales((epoch + 0.5) / NUM_EPOCHS) for epoch in range(NUM_EPOCHS)]
    expected = [{stage: SORTS[sort] for stage, sort in cells(line)} for line in table]
    assert [{stage: set(kinds) for stage, kinds in scales.items()} for scales in found] == expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_how_many_parameters_learn_and_at_which_rate(name: str) -> None:
    options, table = GOLDEN[name]
    recipe = Recipe(schedule=name, epochs=NUM_EPOCHS, lr=0.01, ratio=0.5, layer_decay=0.2, **options)  # pyright: ignore
    rows = timetable(recipe, ARM, 5)
    assert [row.parameters for row in rows] == [sum(sizes(*cell) for cell in cells(line)) for line in table]
    for epoch, (row, line) in enumerate(zip(rows, table, strict=True)):
        done = ((epoch + 0.5) / NUM_EPOCHS - 0.05) / 0.95
        rate = 0.01 if epoch == 0 else 0.01 * (1 + math.cos(math.pi * done)) / 2
        scale = dict(zip(STAGES, (0.5 * 0.2**4, 0.5 * 0.2**3, 0.5 * 0.2**2, 0.5 * 0.2, 0.5), strict=True)) | {HEAD: 1.0}
        learns = {stage for stage, _ in cells(line)}
        expected = {stage: rate * scale[stage] if stage in learns else None for stage in (*STAGES, HEAD)}
        assert row.rates == pytest.approx(expected)


def test_what_thaws_warms_up_and_what_learned_before_does_not() -> None:
    how = Freezing(schedule="gradual", thaw_start=0.2, thaw_interval=0.2, thaw_warm_up=0.1, ratio=0.5)
    timeline = Timeline(how, ("stem", "block1"))
    scales = [timeline.scales(progress) for progress in (0.1, 0.2, 0.25, 0.35, 0.4, 0.45, 0.6)]
    found = [(s.get("stem", {}).get("weight"), s.get("block1", {}).get("weight"), s[HEAD]["weight"]) for s in scales]
    assert found == [
        (None, None, 1.0),
        (None, 0.0, 1.0),
        (None, pytest.approx(0.25), 1.0),
        (None, 0.5, 1.0),
        (0.0, 0.5, 1.0),
        (pytest.approx(0.25), 0.5, 1.0),
        (0.5, 0.5, 1.0),
    ]


def test_after_a_pause_it_warms_up_again() -> None:
    how = Freezing(schedule="chain_thaw", thaw_start=0.2, thaw_interval=0.2, thaw_warm_up=0.1, thaw_order="input")
    timeline = Timeline(how, ("stem", "block1"))
    assert timeline.scales(0.25)["stem"]["weight"] == pytest.approx(0.5)
    assert timeline.scales(0.65)["stem"]["weight"] == pytest.approx(0.5)
    assert timeline.scales(0.65)["block1"]["weight"] == 1.0  # it had gone on
    assert timeline.scales(0.65)[HEAD]["weight"] == pytest.approx(0.5)  # it had paused too
    assert HEAD not in timeline.scales(0.3)


@given(
    st.sampled_from(list(SCHEDULES)),
    st.integers(1, 12),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
    st.sampled_from(ORDERS),
    st.floats(0, 0.999),
)
def test_every_schedule_is_whole_at_any_depth(
    name: str, num_stages: int, start: float, interval: float, order: str, progress: float
) -> None:
    """Phases cover the training; what ends with everything learning gets there, however many stages there are."""
    stages = [f"s{number}" for number in range(num_stages)]
    how = Freezing(schedule=name, thaw_start=start, thaw_interval=interval, thaw_order=order)
    timeline = Timeline(how, stages)
    assert timeline.starts[0] == 0 and timeline.starts == sorted(timeline.starts) and timeline.starts[-1] < 1
    number = timeline.at(progress)
    assert timeline.starts[number] <= progress < timeline.end(number)
    assert set(timeline.scales(progress)) <= {*stages, HEAD}
    if name in ("full", "gradual", "lp_ft", "chain_thaw"):
        assert set(timeline.phases[-1].learns) == {*stages, HEAD}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "melt"}, "unknown schedule 'melt'; choose from frozen, full, top"),
        ({"thaw_order": "sideways"}, "unknown thaw order 'sideways'; choose from output, input"),
        ({"thaw_start": 1.0}, "--thaw-start 1.0"),
        ({"thaw_warm_up": -0.1}, "--thaw-warm-up -0.1"),
        ({"thaw_interval": 0.0}, "--thaw-interval 0.0"),
        ({"ratio": 0.0}, "--ratio 0.0"),
        ({"ratio": float("nan")}, "--ratio nan"),
        ({"layer_decay": 1.1}, "--layer-decay 1.1"),
        ({"schedule": "top", "num_stages": 6}, "--num-stages 6: the encoder has 5 stages .stem, block1"),
        ({"schedule": "single", "which_stage": 9}, "--which-stage 9: the encoder has 5 stages"),
        ({"num_stages": 0}, "--num-stages 0"),
    ],
    ids=str,
)
def test_a_mistake_is_named(change: dict[str, float | str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Timeline(Freezing(**change), STAGES)  # pyright: ignore[reportArgumentType]
