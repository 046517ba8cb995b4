import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.plan import (
    FROZEN_COST,
    MIN_SEEDS,
    SEARCH_EPOCHS,
    SEARCH_SHARE,
    TRIALS,
    VALIDATION_COST,
    Finals,
    Search,
    Work,
    after_search_s,
    parse_duration,
    plan_finals,
    plan_search,
    validation_size,
    with_enough_steps,
    working_s,
)
from finetune.recipe import Recipe

WORKS = st.builds(
    Work,
    num_train=st.integers(50, 100_000),
    num_validation=st.integers(50, 10_000),
    beats_per_s=st.floats(100, 20_000),
    num_workers=st.integers(1, 64),
)
BUDGETS = st.floats(1, 20_000)
NUM_ARMS = 2
COMFORTABLE = Work(num_train=80_000, num_validation=8000, beats_per_s=4000, num_workers=4)


def epoch(num_beats: int, work: Work) -> float:
    """Cost of one epoch and its validation, in training beats."""
    return num_beats + VALIDATION_COST * work.num_validation


def search_cost(plan: Search, work: Work) -> float:
    return NUM_ARMS * plan.num_trials * plan.num_epochs * epoch(plan.num_beats, work)


def finals_cost(plan: Finals, work: Work) -> float:
    return (NUM_ARMS + FROZEN_COST) * plan.num_seeds * plan.num_epochs * epoch(plan.num_beats, work)


def seconds(cost: float, work: Work) -> float:
    return cost / work.beats_per_s / work.num_workers


@given(BUDGETS, WORKS)
def test_counts_are_positive_and_beats_are_there(budget_s: float, work: Work) -> None:
    search, finals = plan_search(budget_s, work, NUM_ARMS), plan_finals(budget_s, work, NUM_ARMS)
    assert min(search.num_trials, search.num_epochs, finals.num_seeds, finals.num_epochs) >= 1
    assert 1 <= search.num_beats <= work.num_train
    assert 1 <= finals.num_beats <= work.num_train


@given(BUDGETS, st.floats(1, 10), WORKS)
def test_more_time_never_plans_less_work(budget_s: float, factor: float, work: Work) -> None:
    for plan, cost in ((plan_search, search_cost), (plan_finals, finals_cost)):
        less = cost(plan(budget_s, work, NUM_ARMS), work)  # pyright: ignore[reportArgumentType]
        more = cost(plan(budget_s * factor, work, NUM_ARMS), work)  # pyright: ignore[reportArgumentType]
        # Beats are whole: a plan may be one short in every epoch of every trial.
        assert more >= less - NUM_ARMS * SEARCH_EPOCHS * max(TRIALS)


@given(st.floats(300, 20_000))
def test_a_comfortable_budget_is_kept(budget_s: float) -> None:
    search, finals = plan_search(budget_s, COMFORTABLE, NUM_ARMS), plan_finals(budget_s, COMFORTABLE, NUM_ARMS)
    assert seconds(search_cost(search, COMFORTABLE), COMFORTABLE) <= SEARCH_SHARE * budget_s
    left_s = after_search_s(budget_s, NUM_ARMS)
    assert (
        (1 - SEARCH_SHARE) * budget_s - 60
        <= left_s
        <= budget_s - seconds(search_cost(search, COMFORTABLE), COMFORTABLE)
    )
    assert seconds(finals_cost(finals, COMFORTABLE), COMFORTABLE) <= budget_s


@given(BUDGETS, WORKS, st.floats(0.1, 1))
def test_a_scheduler_that_spends_less_gets_no_less(budget_s: float, work: Work, spends: float) -> None:
    plan, more = plan_search(budget_s, work, NUM_ARMS), plan_search(budget_s, work, NUM_ARMS, spends=spends)
    assert search_cost(more, work) >= search_cost(plan, work) - NUM_ARMS * SEARCH_EPOCHS * max(TRIALS)


@given(BUDGETS, WORKS, st.floats(0, 60), st.integers(0, 9))
def test_scratch_plus_has_the_epochs_that_pretraining_would_have_bought(
    budget_s: float, work: Work, extra: float, seeds: int
) -> None:
    planned = plan_finals(budget_s, work, NUM_ARMS, extra_epochs=extra)
    asked = plan_finals(budget_s, work, NUM_ARMS, extra_epochs=extra, plus_seeds=seeds)
    for plan in (planned, asked):
        assert plan.plus_seeds <= plan.num_seeds
        assert plan.plus_epochs == (plan.num_epochs + round(extra) if plan.plus_seeds else 0)
    assert planned.plus_seeds == 0 or planned.plus_seeds >= MIN_SEEDS
    assert asked.plus_seeds in (0, min(seeds, asked.num_seeds))


def test_an_hour_affords_scratch_plus_and_ten_minutes_do_not() -> None:
    hour, short = (plan_finals(s, COMFORTABLE, NUM_ARMS, extra_epochs=24) for s in (3600, 300))
    assert hour.plus_seeds >= 3 and hour.num_seeds == 8 and f"scratch+ on {hour.plus_seeds} of the seeds" in str(hour)
    assert short.plus_seeds == 0 and "no scratch+" in str(short)
    assert plan_finals(300, COMFORTABLE, NUM_ARMS, extra_epochs=24, plus_seeds=2).plus_seeds == 2


def test_a_comfortable_budget_is_used() -> None:
    search, finals = plan_search(1800, COMFORTABLE, NUM_ARMS), plan_finals(1200, COMFORTABLE, NUM_ARMS)
    assert seconds(search_cost(search, COMFORTABLE), COMFORTABLE) > 0.5 * SEARCH_SHARE * 1800
    assert search.num_trials >= 16 and finals.num_beats == COMFORTABLE.num_train
    assert finals.num_seeds == 8 and finals.num_epochs >= 4


@pytest.mark.parametrize("num_train", [20_000, 14_000, 2000])
def test_a_small_data_set_gets_more_trials_with_more_time(num_train: int) -> None:
    work = Work(num_train=num_train, num_validation=num_train // 9, beats_per_s=4000, num_workers=4)
    assert plan_search(36_000, work, NUM_ARMS).num_trials > 8


@given(st.floats(-3600, 60), WORKS)
def test_a_spent_budget_plans_the_least_and_not_less_than_nothing(left_s: float, work: Work) -> None:
    plan = plan_finals(left_s, work, NUM_ARMS)
    assert plan.num_seeds >= 1 and plan.num_epochs >= 1
    assert 1 <= plan.num_beats <= work.num_train


@given(st.floats(0.1, 10_000), st.integers(0, 5))
def test_starting_and_ending_never_take_all_the_time(left_s: float, num_stages: int) -> None:
    assert left_s / 4 <= working_s(left_s, num_stages) <= left_s


@given(BUDGETS, WORKS, st.integers(1, 40))
def test_what_the_user_says_is_kept(budget_s: float, work: Work, number: int) -> None:
    assert plan_search(budget_s, work, NUM_ARMS, num_trials=number).num_trials == number
    assert plan_finals(budget_s, work, NUM_ARMS, num_seeds=number).num_seeds == number


def test_a_plan_is_said_in_words() -> None:
    search, finals = plan_search(600, COMFORTABLE, NUM_ARMS), plan_finals(600, COMFORTABLE, NUM_ARMS)
    assert f"{search.num_trials} trials an arm" in str(search) and f"{search.num_beats:,} beats" in str(search)
    assert f"{finals.num_seeds} paired seeds" in str(finals) and "80,000 beats" in str(finals)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), (" 10 m ", 600), ("0.5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "0s", "0.0h", "-5m", "10 minutes", "1h30m", "1e3s", "nan s", "infh", "5d"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--budget .*such as 10m"):
        parse_duration(text)


@given(st.integers(12, 90_000), st.integers(1, 2_000), st.integers(1, 512), st.integers(1, 30))
def test_few_beats_get_enough_steps_in_enough_batches(
    num_train: int, num_steps: int, batch_size: int, epochs: int
) -> None:
    given_recipe = Recipe(epochs=epochs, batch_size=batch_size)
    recipe = with_enough_steps(given_recipe, num_train, num_steps)
    steps_an_epoch = max(1, round(num_train / recipe.batch_size))
    assert recipe.epochs * steps_an_epoch >= num_steps and recipe.epochs >= epochs
    assert recipe.epochs == epochs or (recipe.epochs - 1) * steps_an_epoch < num_steps
    assert recipe.batch_size <= batch_size and steps_an_epoch >= 4
    assert recipe.epochs == epochs or recipe.epochs / recipe.validate_every <= 20


def test_a_long_run_keeps_its_recipe() -> None:
    assert with_enough_steps(Recipe(), 78_000, 600) == Recipe()


@pytest.mark.parametrize(
    ("num_train", "num_validation", "size"),
    [(788, 8757, 2000), (788, 900, 900), (1500, 8757, 3000), (78_000, 8757, 8757)],
)
def test_few_training_beats_have_no_more_to_validate_on(num_train: int, num_validation: int, size: int) -> None:
    assert validation_size(num_train, num_validation) == size
