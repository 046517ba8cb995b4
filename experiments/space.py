"""What a search draws from: typed dimensions with conditions, read from TOML. Knows nothing of what they mean."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeGuard

from rich.markup import escape
from rich.table import Table

Scalar = bool | int | float | str
Given = Mapping[str, Scalar | None]
"""Values by name: facts, or a recorded config, which may hold more than a space has."""
Conditions = Mapping[str, tuple[Scalar, ...]]

FOLDER = Path(__file__).resolve().parent / "spaces"
FACTS = ("pretrained",)
"""What is known of an arm before anything is drawn: true or false."""
SCALES = ("linear", "log")
KEYS = {"choices": ("choices", "when", "first"), "range": ("range", "scale", "when", "first")}
LARGEST = 2.0**53
"""Of a number: whole numbers up to here are exact as floats too."""
LARGEST_GRID = 100_000


class Suggester(Protocol):
    """What draws, one dimension at a time: an Optuna trial, say."""

    def suggest_categorical(self, name: str, choices: Sequence[Scalar], /) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, /, *, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, /, *, log: bool) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Something that is searched: one of some choices, or a number of a range."""

    name: str
    choices: tuple[Scalar, ...] = ()
    """Empty for a range."""
    low: float = 0.0
    high: float = 0.0
    scale: str = "linear"
    whole: bool = False
    """Whole numbers only, both ends included."""
    when: Conditions = field(default_factory=dict)
    """Drawn only where each named dimension or fact has one of the values."""
    first: Scalar | None = None
    """What a search tries first."""

    @classmethod
    def from_table(cls, name: str, table: Any) -> Self:
        """
        Raises:
            ValueError: not what a dimension of a TOML file has to be; names the dimension and the key.
        """
        if not isinstance(table, dict):
            raise ValueError(f"key {name}: unknown; choose from about and tables such as [{name}], the dimensions")
        try:
            return cls(name=name, **_fields(table))
        except ValueError as error:
            raise ValueError(f"dimension {name}, {error}") from None

    def to_table(self) -> dict[str, Any]:
        """What `from_table` reads, of JSON's types."""
        if self.choices:
            table: dict[str, Any] = {"choices": list(self.choices)}
        else:
            table = {"range": [self.low, self.high], "scale": self.scale}
        if self.when:
            table["when"] = {name: list(wanted) for name, wanted in self.when.items()}
        return table if self.first is None else table | {"first": self.first}

    @property
    def is_continuous(self) -> bool:
        return not (self.choices or self.whole)

    def holds(self, value: object) -> bool:
        """Whether the value could be drawn."""
        if self.choices:
            return _is_among(value, self.choices)
        return _is_number(value) and (isinstance(value, int) or not self.whole) and self.low <= value <= self.high

    def is_active(self, given: Given) -> bool:
        """Whether it is drawn, given the facts and the active dimensions before it."""
        return all(_is_among(given.get(name), wanted) for name, wanted in self.when.items())

    def draw(self, trial: Suggester) -> Scalar:
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.scale == "log")
        return trial.suggest_float(self.name, self.low, self.high, log=self.scale == "log")

    def at(self, share: float) -> Scalar:
        """The value of a range at a share of it, 0 … 1, by its scale."""
        if self.scale == "log":
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        value = self.high if share == 1 else min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def grid(self, points: int) -> tuple[Scalar, ...]:
        """Every choice, or values spread evenly over the range by its scale: `points`, or the fewer whole ones.

        Raises:
            ValueError: fewer than one point.
        """
        if points < 1:
            raise ValueError(f"a grid of {points} points: at least 1 is needed")
        if self.choices:
            return self.choices
        shares = [place / (points - 1) for place in range(points)] if points > 1 else [0.5]
        return tuple(dict.fromkeys(self.at(share) for share in shares))

    def start(self) -> Scalar:
        """`first`, or else the first choice, or the middle of the range by its scale."""
        if self.first is not None:
            return self.first
        return self.choices[0] if self.choices else self.at(0.5)

    @property
    def over(self) -> str:
        """What it ranges over, in words."""
        return ", ".join(map(said, self.choices)) if self.choices else f"{said(self.low)} … {said(self.high)}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """Dimensions, each after those that its conditions name.

    Raises:
        ValueError: a condition on what is not there or never so, conditions in a circle, a dimension named as a fact.
    """

    name: str
    about: str
    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        named = {dimension.name: dimension for dimension in self.dimensions}
        for dimension in self.dimensions:
            _check_conditions(dimension, named)
        object.__setattr__(self, "dimensions", _ordered(self.dimensions))

    @classmethod
    def load(cls, name: str) -> Self:
        """
        Args:
            name: of a file in experiments/spaces/, or a path that ends in .toml.

        Raises:
            ValueError: no such file, or not a search space; names the file, the dimension and the key.
        """
        path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
        if not path.is_file():
            known = ", ".join(space_names())
            raise ValueError(f"no search space {name!r}; choose from {known}, or give the path of a .toml file")
        try:
            content = tomllib.loads(path.read_text("utf-8"))
            about = content.pop("about", "")
            if not content:
                raise ValueError("no dimension: a table such as [lr] is needed")
            return cls._of(path.stem, about, content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Rebuild what `to_json` gave.

        Raises:
            ValueError: something else.
        """
        if not isinstance(content, dict) or content.keys() != {"name", "about", "dimensions"}:
            raise ValueError("not a recorded search space: it has name, about and dimensions")
        if not (isinstance(content["name"], str) and isinstance(content["dimensions"], dict)):
            raise ValueError("not a recorded search space: its name is a text, its dimensions are tables")
        return cls._of(content["name"], content["about"], content["dimensions"])

    @classmethod
    def _of(cls, name: str, about: Any, tables: Mapping[str, Any]) -> Self:
        if not isinstance(about, str):
            raise ValueError(f"key about: {about!r} is not a text")
        dimensions = tuple(Dimension.from_table(key, table) for key, table in tables.items())
        return cls(name=name, about=about, dimensions=dimensions)

    def to_json(self) -> dict[str, Any]:
        tables = {dimension.name: dimension.to_table() for dimension in self.dimensions}
        return {"name": self.name, "about": self.about, "dimensions": tables}

    def draw(self, trial: Suggester, facts: Given) -> dict[str, Scalar]:
        """Let the trial suggest each active dimension, define-by-run.

        Args:
            facts: of `FACTS`; one that is not given meets no condition.
        """
        return self._walk(facts, lambda dimension: dimension.draw(trial))

    def first(self, facts: Given) -> dict[str, Scalar]:
        """What a search tries first."""
        return self._walk(facts, Dimension.start)

    def _walk(self, facts: Given, take: Callable[[Dimension], Scalar]) -> dict[str, Scalar]:
        taken: dict[str, Scalar] = {}
        for dimension in self.dimensions:
            if dimension.is_active({**facts, **taken}):
                taken[dimension.name] = take(dimension)
        return taken

    def grid(self, points: int, facts: Given) -> list[dict[str, Scalar]]:
        """All combinations of the choices and of `points` values of each range.

        Raises:
            ValueError: more than `LARGEST_GRID` of them, or fewer than one point.
        """
        configs: list[dict[str, Scalar]] = [{}]
        for dimension in self.dimensions:
            values = dimension.grid(points)
            grown: list[dict[str, Scalar]] = []
            for config in configs:
                active = dimension.is_active({**facts, **config})
                grown += [config | {dimension.name: value} for value in values] if active else [config]
                if len(grown) > LARGEST_GRID:
                    raise ValueError(
                        f"the grid of space {self.name} with {points} points a range has more than {LARGEST_GRID:,} "
                        "configurations; fewer points or fewer dimensions are needed"
                    )
            configs = grown
        return configs

    def active(self, config: Given, facts: Given) -> list[Dimension]:
        """The dimensions that are drawn where the others have a recorded config's values."""
        given, found = dict(facts), []
        for dimension in self.dimensions:
            if dimension.is_active(given):
                given[dimension.name] = config.get(dimension.name)
                found.append(dimension)
        return found

    def params(self, config: Given, facts: Given) -> dict[str, Scalar]:
        """The active dimensions' values of a recorded config, as far as it has them."""
        active = self.active(config, facts)
        return {one.name: value for one in active if (value := config.get(one.name)) is not None}

    def accepts(self, config: Given, facts: Given) -> bool:
        """Whether a recorded config could have been drawn, apart from what it holds besides."""
        return all(dimension.holds(config.get(dimension.name)) for dimension in self.active(config, facts))

    def with_fixed(self, **values: Scalar) -> Self:
        """Without the dimensions named, and with their values in the conditions of the others.

        Where the conditions of a fixed dimension do not hold, those that depend on it stay inactive, as before.

        Raises:
            ValueError: no such dimension.
        """
        names = [dimension.name for dimension in self.dimensions]
        if unknown := [name for name in values if name not in names]:
            raise ValueError(f"space {self.name} has no dimension {', '.join(unknown)}; choose from {', '.join(names)}")
        kept: list[Dimension] = []
        gone: dict[str, Conditions | None] = {}
        for dimension in self.dimensions:
            when = _resolved(dimension.when, values, gone)
            if dimension.name in values or when is None:
                gone[dimension.name] = when
            else:
                kept.append(replace(dimension, when=when))
        return replace(self, dimensions=tuple(kept))

    def table(self) -> list[tuple[str, str, str, str]]:
        """In words, of each dimension: name, what it ranges over, scale, condition."""
        named = {dimension.name: dimension for dimension in self.dimensions}
        return [
            (
                one.name,
                one.over,
                "" if one.choices else one.scale + ", whole" * one.whole,
                "; ".join(_condition(named.get(name), name, wanted) for name, wanted in one.when.items()),
            )
            for one in self.dimensions
        ]


def space_names() -> list[str]:
    """Of the files in experiments/spaces/."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def space_table(space: Space) -> Table:
    table = Table(title=f"Search space {escape(space.name)}", title_style="bold", caption=escape(space.about))
    for header in ("dimension", "over", "scale", "when"):
        table.add_column(header, no_wrap=header in ("dimension", "scale"))
    for row in space.table():
        table.add_row(*map(escape, row))
    return table


def said(value: Scalar) -> str:
    """As a TOML file says it, numbers to six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"


def _condition(dimension: Dimension | None, name: str, wanted: Sequence[Scalar]) -> str:
    """In words, the shorter of what it has to be and what it must not be."""
    left = [choice for choice in dimension.choices if not _is_among(choice, wanted)] if dimension else []
    if 0 < len(left) < len(wanted):
        return f"{name} ≠ {', '.join(map(said, left))}"
    return f"{name} = {', '.join(map(said, wanted))}"


def _fields(table: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Dimension` from its table, without the name."""
    kinds = [kind for kind in KEYS if kind in table]
    if len(kinds) != 1:
        raise ValueError(f"keys choices and range: {'both' if kinds else 'neither'} given; exactly one is needed")
    for key in table:
        if key not in KEYS[kinds[0]]:
            raise ValueError(f"key {key}: unknown beside {kinds[0]}; choose from {', '.join(KEYS[kinds[0]])}")
    when = _conditions(table.get("when", {}))
    if "choices" in table:
        fields: dict[str, Any] = {"choices": _choices(table["choices"]), "when": when}
    else:
        fields = _range(table["range"], table.get("scale", "linear")) | {"when": when}
    if (first := table.get("first")) is None:
        return fields
    dimension = Dimension(name="", **fields)
    if not dimension.holds(first):
        raise ValueError(f"key first: {first!r} lies outside of the dimension, {dimension.over}")
    return fields | {"first": float(first) if dimension.is_continuous else first}


def _choices(values: Any, key: str = "choices") -> tuple[Scalar, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"key {key}: {values!r} is not a list of one value or more")
    for value in values:
        if not (isinstance(value, (bool, str)) or _is_number(value)):
            raise ValueError(f"key {key}: {value!r} is none of true, false, a text and a number up to 2^53")
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"key {key}: {twice[0]!r} is there twice (1, 1.0 and true count as one)")
    return tuple(values)


def _range(ends: Any, scale: Any) -> dict[str, Any]:
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)) and ends[0] < ends[1]):
        raise ValueError(f"key range: {ends!r} is not two increasing numbers up to 2^53, such as [0.1, 1.0]")
    if scale not in SCALES:
        raise ValueError(f"key scale: {scale!r} is unknown; choose from {', '.join(SCALES)}")
    if scale == "log" and ends[0] <= 0:
        raise ValueError(f"key range: a log scale starts above 0, not at {ends[0]!r}")
    whole = all(isinstance(end, int) for end in ends)
    low, high = ends if whole else map(float, ends)
    return {"low": low, "high": high, "scale": scale, "whole": whole}


def _conditions(table: Any) -> Conditions:
    if not isinstance(table, dict):
        raise ValueError(f'key when: {table!r} is not a table such as {{ schedule = ["gradual", "top"] }}')
    return {
        name: _choices(values if isinstance(values, list) else [values], f"when, {name}")
        for name, values in table.items()
    }


def _is_number(value: object) -> TypeGuard[int | float]:
    """Neither a bool nor NaN, nor too large to be exact."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_among(value: object, choices: Sequence[Scalar]) -> bool:
    """1 is 1.0, but neither is true."""
    return any(isinstance(value, bool) is isinstance(choice, bool) and value == choice for choice in choices)


def _check_conditions(dimension: Dimension, named: Mapping[str, Dimension]) -> None:
    """
    Raises:
        ValueError: it is named as a fact, or a condition can never hold.
    """
    if dimension.name in FACTS:
        raise ValueError(f"dimension {dimension.name}: that is the name of a fact; choose another")
    for name, wanted in dimension.when.items():
        where = f"dimension {dimension.name}, key when"
        if name not in FACTS and name not in named:
            known = [*(other for other in named if other != dimension.name), *FACTS]
            raise ValueError(f"{where}: {name} is neither a dimension nor a fact; choose from {', '.join(known)}")
        if name in named and named[name].is_continuous:
            raise ValueError(f"{where}: {name} has no single values to wait for: no choices, no whole numbers")
        possible = Dimension(name=name, choices=(True, False)) if name in FACTS else named[name]
        if never := [value for value in wanted if not possible.holds(value)]:
            raise ValueError(f"{where}: {name} is never {never[0]!r}; choose from {possible.over}")


def _ordered(dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Each after those that its conditions name, and else as they come.

    Raises:
        ValueError: conditions in a circle.
    """
    waiting, placed = {dimension.name: dimension for dimension in dimensions}, []
    while waiting:
        ready = next((one for one in waiting.values() if not one.when.keys() & waiting.keys()), None)
        if ready is None:
            raise ValueError(f"dimension {_circle(waiting)}: conditions in a circle")
        placed.append(waiting.pop(ready.name))
    return tuple(placed)


def _circle(waiting: Mapping[str, Dimension]) -> str:
    """a → b → a, where every dimension waits for another one."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in waiting[path[-1]].when if name in waiting))
    return " → ".join(path[path.index(path[-1]) :])


def _resolved(
    when: Conditions, values: Mapping[str, Scalar], gone: Mapping[str, Conditions | None]
) -> Conditions | None:
    """Conditions in terms of what is still drawn; None if they can no longer hold.

    Args:
        values: of the fixed dimensions.
        gone: conditions of those no longer drawn, in such terms; None for one that is never active.
    """
    resolved: dict[str, tuple[Scalar, ...]] = {}
    for name, wanted in when.items():
        inherited: Conditions | None = {name: wanted}
        if name in gone:
            inherited = gone[name] if name in values and _is_among(values[name], wanted) else None
        if inherited is None:
            return None
        for other, allowed in inherited.items():
            resolved[other] = tuple(value for value in resolved.get(other, allowed) if _is_among(value, allowed))
            if not resolved[other]:
                return None
    return resolved
