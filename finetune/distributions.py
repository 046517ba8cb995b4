"""A search space as Optuna knows it."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.space import Dimension, Given, Space


def distribution(dimension: Dimension) -> BaseDistribution:
    """The one that an Optuna trial has after `dimension.draw`."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    log = dimension.scale == "log"
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=log)
    return FloatDistribution(dimension.low, dimension.high, log=log)


def distributions(space: Space, config: Given, facts: Given) -> dict[str, BaseDistribution]:
    """By name, of the dimensions that are active in a recorded config; for `optuna.trial.create_trial`, beside
    `space.params(config, facts)`, where the space accepts the config."""
    return {dimension.name: distribution(dimension) for dimension in space.active(config, facts)}
