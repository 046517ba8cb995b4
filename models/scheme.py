"""The block scheme of an encoder: what each stage runs, in the order in which it runs, and a drawing of it.

It is found by running one beat, so that it holds for encoders of other libraries too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, pooling
from torch.overrides import TorchFunctionMode

from models.cost import Cost, by_part, in_eval
from models.encoder import Encoder
from models.params import NORMALISATIONS, count_parameters

SHORTCUTS = ("shortcut", "skip")
SUM, JOIN = "Sum", "Concatenation"
COLOURS = {
    "attention": ("#8e5ea2", "#f6f0f8"),
    "recurrent": ("#c0792a", "#fbf4ea"),
    "convolution": ("#2f6fa7", "#edf4fa"),
    "linear": ("#3d8b5f", "#eef7f1"),
    "other": ("#77808a", "#f4f5f6"),
}
"""Edge and inside of a box, by the kind of its stage."""
WORDS = {
    "attention": ("Attention", "Softmax"),
    "recurrent": ("RNN", "GRU", "LSTM"),
    "convolution": ("Conv",),
    "linear": ("Linear",),
    "normalisation": ("Norm",),
}
"""A stage is of the first kind of which one of its layers speaks."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One stage: its layers as lines of text, and the shape of its output, without the batch."""

    name: str
    kind: str
    layers: tuple[str, ...] = ()
    shape: tuple[int, ...]
    parameters: int = 0
    multiply_adds: int = 0


def scheme(encoder: Encoder) -> list[Block]:
    """The input, a block for each stage, and the output; multiply-adds of one beat, forward."""
    device = next(encoder.parameters()).device
    x = torch.zeros(1, encoder.spec.num_leads, encoder.spec.num_samples, device=device)
    with in_eval(encoder), torch.no_grad(), Trace(encoder) as trace:
        costs = by_part(encoder.stages, lambda: encoder(x))
    pooled = f"mean of {encoder.num_tokens} tokens" if encoder.num_tokens > 1 else "features"
    return [
        Block(name="input", kind="one beat", shape=tuple(x.shape[1:])),
        *(_block(name, part, trace.lines(name), costs.get(name)) for name, part in encoder.stages.items()),
        Block(name="output", kind=pooled, shape=(encoder.dim,)),
    ]


def _block(name: str, part: nn.Module, lines: Sequence[str], cost: Cost | None) -> Block:
    text = " ".join(lines)
    return Block(
        name=name,
        kind=next((kind for kind, words in WORDS.items() if any(word in text for word in words)), "other"),
        layers=tuple(fold(lines)),
        shape=cost.shape[1:] if cost else (),
        parameters=count_parameters(part),
        multiply_adds=cost.multiply_adds if cost else 0,
    )


class Layer(NamedTuple):
    """A layer that ran. The text of a large one has more than one word: Conv 1×5, 32→48; of a small one: ReLU."""

    text: str
    branch: str

    @property
    def large(self) -> bool:
        return " " in self.text


class Trace(TorchFunctionMode):
    """Notes the layers of each stage as they run: modules, and functions such as attention that are no modules."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.stages = encoder.stages
        self.layers: dict[str, list[Layer]] = {stage: [] for stage in self.stages}
        self.running: list[tuple[str, str, int]] = []
        """Of every module that runs: its stage, its branch, and how many layers its stage had when it began."""
        self.hooks = ExitStack()

    def __enter__(self) -> Trace:
        for stage, part in self.stages.items():
            for path, module in part.named_modules():
                branch = "shortcut: " if any(word in path for word in SHORTCUTS) else ""
                self.hooks.enter_context(module.register_forward_pre_hook(partial(self._enter, stage, branch)))
                self.hooks.enter_context(module.register_forward_hook(self._leave))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.hooks.close()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        describe = FUNCTIONS.get(getattr(func, "__name__", ""))
        if self.running and describe and (text := describe(*args)):
            stage, branch, _ = self.running[-1]
            self.layers[stage].append(Layer(text, branch))
        return func(*args, **(kwargs or {}))

    def _enter(self, stage: str, branch: str, module: nn.Module, args: object) -> None:  # noqa: ARG002
        self.running.append((stage, branch, len(self.layers[stage])))

    def _leave(self, module: nn.Module, args: object, output: object) -> None:  # noqa: ARG002
        stage, branch, before = self.running.pop()
        ran = self.layers[stage]
        if text := describe_module(module) or ("" if ran[before:] else _own_name(module)):
            ran[before:] = [Layer(text, branch)]

    def lines(self, stage: str) -> list[str]:
        """At most one large layer a line; after a sum only an activation, before a concatenation nothing."""
        lines: list[list[Layer]] = []
        for layer in self.layers[stage]:
            line = lines[-1] if lines else []
            texts = [earlier.text for earlier in line]
            full = layer.large and any(earlier.large for earlier in line)
            ended = SUM in texts and (layer.large or "Norm" in layer.text)
            if not line or full or ended or layer.text == JOIN or line[-1].branch != layer.branch:
                lines.append([layer])
            else:
                line.append(layer)
        return [line[0].branch + " · ".join(layer.text for layer in line) for line in lines]


def describe_module(module: nn.Module) -> str:
    """Such as Conv 1×5, 32→48, stride 2; empty for what is of no interest, or is what its parts are."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return _describe_convolution(module)
        case nn.Linear():
            return f"Linear {module.in_features}→{module.out_features}"
        case nn.RNNBase():
            layers = f"{module.num_layers} × " if module.num_layers > 1 else ""
            both = ", both directions" if module.bidirectional else ""
            return f"{layers}{type(module).__name__} {module.input_size}→{module.hidden_size}{both}"
        case nn.MultiheadAttention():
            return f"Attention, {module.num_heads} heads of {module.head_dim}"
        case nn.Softmax() | nn.Identity() | nn.Dropout():
            return ""
    if isinstance(module, NORMALISATIONS):
        return next(name for name in ("BatchNorm", "LayerNorm", "GroupNorm") if name in _ancestors(module))
    name = type(module).__name__.rstrip("123d")
    if type(module).__module__ == pooling.__name__:
        size = getattr(module, "kernel_size", None) or getattr(module, "output_size", "")
        return f"{name} {_times(size) if isinstance(size, tuple) else size}"
    return name if type(module).__module__ == activation.__name__ else ""


def _describe_convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str:
    parts = [f"Conv {_times(module.kernel_size)}", f"{module.in_channels}→{module.out_channels}"]
    for name, sizes in (("stride", module.stride), ("dilation", module.dilation)):
        if (size := max(int(size) for size in sizes)) > 1:
            parts.append(f"{name} {size}")
    if module.groups > 1:
        parts.append("depthwise" if module.groups == module.in_channels else f"{module.groups} groups")
    return ", ".join(parts)


def _ancestors(module: nn.Module) -> str:
    return " ".join(ancestor.__name__ for ancestor in type(module).__mro__)


def _own_name(module: nn.Module) -> str:
    """Of a module with parameters of its own of which nothing else is known."""
    return type(module).__name__ if any(True for _ in module.parameters(recurse=False)) else ""


def _attention(query: Tensor, *_: object) -> str:
    heads, tokens, dim = query.shape[-3:]
    return f"Attention, {heads} heads of {dim}, {tokens} tokens"


def _softmax(scores: Tensor, *_: object) -> str:
    return f"Attention, {scores.shape[1]} heads, {scores.shape[2]} tokens" if scores.ndim == 4 else "Softmax"


def _sum(one: object, other: object, *_: object) -> str:
    """Of two whole results; not of one and a parameter."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.ndim >= 3 and one.shape == other.shape:
        return SUM
    return ""


FUNCTIONS: dict[str, Callable[..., str]] = {
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
    **dict.fromkeys(("add", "__add__", "add_", "__iadd__"), _sum),
    **dict.fromkeys(("relu", "relu_"), lambda *_: "ReLU"),
    "gelu": lambda *_: "GELU",
    "cat": lambda *_: JOIN,
}
"""Functions that are shown though they are no modules."""


def fold(lines: Sequence[str]) -> list[str]:
    """Runs of the same line, or of the same few lines, once: `line × 3`, or `3 ×` and the lines indented."""
    folded: list[str] = []
    start = 0
    while start < len(lines):
        length, times = max(_runs(lines, start), key=lambda run: (run[0] * run[1] if run[1] > 1 else 1, -run[0]))
        once = lines[start : start + length]
        if times == 1:
            folded += once
        elif length == 1:
            folded.append(f"{once[0]} × {times}")
        else:
            folded += [f"{times} ×", *(f"  {line}" for line in once)]
        start += length * times
    return folded


def _runs(lines: Sequence[str], start: int) -> list[tuple[int, int]]:
    """(1, 1), and for every length of which the lines from `start` on repeat themselves: the length, how often."""
    runs = [(1, 1)]
    for length in range(1, (len(lines) - start) // 2 + 1):
        once, times = lines[start : start + length], 1
        while lines[start + times * length : start + (times + 1) * length] == once:
            times += 1
        if times > 1:
            runs.append((length, times))
    return runs


WIDTH, MARGIN, LINE, PAD, GAP = 660, 24, 17, 12, 26
"""Of a drawing, in pixels: its width, its edge, a line of text, what is around the text of a box, an arrow."""


def svg(blocks: Sequence[Block], title: str) -> str:
    """Boxes from top to bottom with arrows between them; a run of equal blocks is one box."""
    parameters, spent = sum(block.parameters for block in blocks), sum(block.multiply_adds for block in blocks)
    drawn = [
        _text(MARGIN, MARGIN + 10, title, "font-size='17' font-weight='bold'"),
        _text(MARGIN, MARGIN + 30, f"{parameters:,} parameters, {millions(spent)} multiply-adds a beat", GREY),
    ]
    y = MARGIN + 46
    for number, block in enumerate(merged(blocks)):
        if number:
            drawn.append(_arrow(y))
            y += GAP
        drawn.append(_box(block, y))
        y += _height(block)
    height = y + MARGIN
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' "
        "font-family='Helvetica, Arial, sans-serif' font-size='12.5' fill='#1f2630'>"
    )
    return "\n".join([head, f"<rect width='{WIDTH}' height='{height}' fill='white'/>", *drawn, "</svg>\n"])


def merged(blocks: Sequence[Block]) -> list[Block]:
    """Each run of blocks that differ in name alone as one: block1 … block4, 4 × attention."""
    runs = [list(run) for _, run in groupby(blocks, key=lambda block: replace(block, name=""))]
    return [
        replace(run[0], name=f"{run[0].name} … {run[-1].name}", kind=f"{len(run)} × {run[0].kind}")
        if len(run) > 1
        else run[0]
        for run in runs
    ]


def millions(multiply_adds: int) -> str:
    """In millions: 0.86 M."""
    return f"{multiply_adds / 1e6:,.2f} M"


def sizes(shape: Sequence[int]) -> str:
    """48 × 1 × 24."""
    return " × ".join(map(str, shape))


def _times(kernel: Sequence[int | str]) -> str:
    return "×".join(map(str, kernel))


GREY = "fill='#66707c'"


def _height(block: Block) -> int:
    """A line for the name, then the layers, beside which two lines of numbers stand."""
    return 2 * PAD + LINE * (1 + (max(2, len(block.layers)) if block.parameters or block.layers else 0))


def _box(block: Block, y: int) -> str:
    edge, inside = COLOURS.get(block.kind.rpartition("× ")[2], COLOURS["other"])
    left, right, height = MARGIN, WIDTH - MARGIN, _height(block)
    first = y + PAD + 12
    lines = [
        f"<rect x='{left}' y='{y}' width='{right - left}' height='{height}' rx='5' fill='{inside}' stroke='{edge}'/>",
        f"<rect x='{left}' y='{y}' width='7' height='{height}' rx='3' fill='{edge}'/>",
        f"<text x='{left + 20}' y='{first}'><tspan font-weight='bold'>{escape(block.name)}</tspan>"
        f"<tspan dx='10' fill='{edge}'>{escape(block.kind)}</tspan></text>",
        _text(right - 14, first, sizes(block.shape), "text-anchor='end' font-weight='bold'"),
    ]
    for number, layer in enumerate(block.layers, start=1):
        indent = 16 if layer.startswith("  ") else 0
        lines.append(_text(left + 20 + indent, first + number * LINE, layer.strip()))
    if block.parameters or block.layers:
        each = " each" if " × " in block.kind else ""
        numbers = (f"{block.parameters:,} parameters{each}", f"{millions(block.multiply_adds)} multiply-adds{each}")
        for number, text in enumerate(numbers, start=1):
            lines.append(_text(right - 14, first + number * LINE, text, f"text-anchor='end' {GREY}"))
    return "\n".join(lines)


def _arrow(y: int) -> str:
    x, tip = WIDTH // 2, y + GAP - 3
    return (
        f"<path d='M{x} {y + 3}V{tip - 6}' stroke='#66707c' stroke-width='1.5'/>"
        f"<path d='M{x} {tip}l-4.5 -8h9z' {GREY}/>"
    )


def _text(x: int, y: int, text: str, style: str = "") -> str:
    return f"<text x='{x}' y='{y}' {style}>{escape(text)}</text>"
