"""The contract of every encoder, and the spec from which alone one is rebuilt."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

Option = bool | int | float | str
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Dimension:
    """An option of an architecture, and so a dimension of a search: its default and the values that a search draws."""

    default: Option
    values: tuple[Option, ...]

    def accepts(self, value: Option) -> bool:
        """Words and switches must be among `values`; a whole number may be any from 1, a share any in [0, 1)."""
        if type(value) is not type(self.default):
            return False
        if isinstance(value, bool | str):
            return value in self.values
        return value >= 1 if isinstance(value, int) else 0 <= value < 1


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What to build: JSON scalars only, so that a checkpoint can carry it."""

    name: str
    num_leads: int = 1
    num_samples: int = 187
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How it is written on a command line and in tables: name@option=value,…; see `models.parse`."""
        options = ",".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in self.options.items()
        )
        return f"{self.name}@{options}" if options else self.name

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def resolve(self, dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
        """The defaults of `dimensions`, overridden by `options`.

        Raises:
            ValueError: an option that `dimensions` does not know, or a value that it does not accept.
        """
        if unknown := sorted(set(self.options) - set(dimensions)):
            choices = ", ".join(dimensions) or "none"
            raise ValueError(f"{self.name} has no option {unknown[0]!r}; choose from {choices}")
        for name, value in self.options.items():
            if not dimensions[name].accepts(value):
                choices = ", ".join(map(str, dimensions[name].values))
                raise ValueError(f"{self.name}: option {name} cannot be {value!r}; choose from, or near, {choices}")
        return {name: dimension.default for name, dimension in dimensions.items()} | dict(self.options)


class Encoder(nn.Module, ABC):
    """Beats (batch, num_leads, num_samples) → features (batch, dim).

    `stages` orders the parts from input to output and covers every parameter exactly once: freezing, layer decay
    and discriminative rates are said in terms of stages.
    """

    dimensions: ClassVar[Mapping[str, Dimension]] = {}
    """Every option that `spec` may name."""
    spec: EncoderSpec
    dim: int
    num_tokens: int

    @property
    @abstractmethod
    def stages(self) -> Mapping[str, nn.Module]: ...

    @property
    @abstractmethod
    def steps(self) -> Mapping[str, Step]:
        """What it does to beats, one step after the other, each named after the stage that ends with it.

        Between two steps the work can be cut: what lies below need not be computed again while its stages are frozen.
        """

    def tokens(self, x: Tensor) -> Tensor:
        """(batch, num_leads, num_samples) → (batch, num_tokens, dim); their mean is the feature vector.

        An encoder that pools in its own way gives tokens whose mean is what it pools to, or a single token.
        """
        for step in self.steps.values():
            x = step(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x).mean(1)

    def covered_parameters(self) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
        """(stage, owner module, parameter's own name, parameter), each parameter once.

        Raises:
            ValueError: a parameter in no stage, or in two.
        """
        seen: dict[int, str] = {}
        for stage, part in self.stages.items():
            for owner in part.modules():
                for name, parameter in owner.named_parameters(recurse=False):
                    if id(parameter) in seen:
                        raise ValueError(f"{self.spec.name}: {name} is in stages {seen[id(parameter)]} and {stage}")
                    seen[id(parameter)] = stage
                    yield stage, owner, name, parameter
        if missing := [name for name, parameter in self.named_parameters() if id(parameter) not in seen]:
            raise ValueError(f"{self.spec.name}: no stage holds {', '.join(missing)}")
