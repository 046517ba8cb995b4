"""The contract of every encoder, and the spec from which alone one is rebuilt."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

Option = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What to build: JSON scalars only, so that a checkpoint can carry it."""

    name: str
    num_leads: int = 1
    num_samples: int = 187
    options: Mapping[str, Option] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def resolve(self, defaults: Mapping[str, Option]) -> dict[str, Any]:
        """`defaults` overridden by `options`.

        Raises:
            ValueError: an option that `defaults` does not know.
        """
        if unknown := sorted(set(self.options) - set(defaults)):
            raise ValueError(f"{self.name} has no option {unknown[0]!r}; choose from {', '.join(defaults)}")
        for name, value in self.options.items():
            if type(value) is not type(defaults[name]) or value < 1:  # pyright: ignore[reportOperatorIssue]
                raise ValueError(f"{self.name}: option {name} is {value!r}; a positive {type(defaults[name]).__name__}")
        return {**defaults, **self.options}


class Encoder(nn.Module, ABC):
    """Beats (batch, num_leads, num_samples) → features (batch, dim).

    `stages` orders the parts from input to output and covers every parameter exactly once: freezing, layer decay
    and discriminative rates are said in terms of stages.
    """

    spec: EncoderSpec
    dim: int
    num_tokens: int

    @property
    @abstractmethod
    def stages(self) -> Mapping[str, nn.Module]: ...

    @abstractmethod
    def tokens(self, x: Tensor) -> Tensor:
        """(batch, num_leads, num_samples) → (batch, num_tokens, dim), in the order of time."""

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
