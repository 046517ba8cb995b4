from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import models
from models.cost import multiply_adds
from models.encoder import EncoderSpec
from models.params import count_parameters
from models.scheme import Block, describe_module, fold, merged, scheme, svg


def build(name: str, **options: int) -> list[Block]:
    return scheme(models.build(EncoderSpec(name=name, options=options)))


@pytest.mark.parametrize("name", models.ENCODERS)
def test_a_block_for_each_stage_between_input_and_output(name: str) -> None:
    encoder = models.build(EncoderSpec(name=name, num_leads=2)).train()
    blocks = scheme(encoder)
    assert [block.name for block in blocks] == ["input", *encoder.stages, "output"]
    assert (blocks[0].shape, blocks[-1].shape) == ((2, 187), (encoder.dim,))
    assert sum(block.parameters for block in blocks) == count_parameters(encoder)
    assert sum(block.multiply_adds for block in blocks) == multiply_adds(encoder, torch.rand(1, 2, 187))
    assert all(block.layers and block.shape for block in blocks[1:-1])
    assert all(part.training for part in encoder.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in encoder.modules())


def test_a_residual_block_is_told_as_it_runs() -> None:
    block = build("resnet1d", width=16)[2]
    assert (block.kind, block.shape) == ("convolution", (16, 1, 47))
    assert block.layers == (
        "Conv 1×5, 16→16, stride 2 · BatchNorm · ReLU",
        "Conv 1×5, 16→16 · BatchNorm",
        "shortcut: Conv 1×1, 16→16, stride 2 · BatchNorm",
        "Sum · ReLU",
    )
    assert block.multiply_adds == 47 * 16 * 16 * (5 + 5 + 1)


def test_attention_is_told_though_it_is_no_module() -> None:
    block = build("transformer1d", depth=2, dim=32)[2]
    assert (block.kind, block.shape) == ("attention", (17, 32))
    assert block.layers == (
        "LayerNorm · Linear 32→96",
        "Attention, 4 heads, 17 tokens",
        "Linear 32→32 · Sum",
        "LayerNorm · Linear 32→64 · GELU",
        "Linear 64→32 · Sum",
    )


def test_other_kinds() -> None:
    assert "GRU 24→24, both directions" in build("gru", width=24, depth=1)[2].layers
    assert {"MaxPool 1×3", "Concatenation · BatchNorm"} <= set(build("inception1d", width=12, depth=2)[2].layers)
    assert "dilation 2" in build("tcn1d", width=24, depth=2)[3].layers[0]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Conv1d(8, 8, 5, groups=8, stride=2), "Conv 5, 8→8, stride 2, depthwise"),
        (nn.Conv2d(8, 4, (1, 3), groups=2, dilation=(1, 2)), "Conv 1×3, 8→4, dilation 2, 2 groups"),
        (nn.LSTM(4, 6, num_layers=2), "2 × LSTM 4→6"),
        (nn.MultiheadAttention(16, 4), "Attention, 4 heads of 4"),
        (nn.BatchNorm1d(4), "BatchNorm"),
        (nn.MaxPool1d(3), "MaxPool 3"),
        (nn.AdaptiveAvgPool2d(1), "AdaptiveAvgPool 1"),
        (nn.SiLU(), "SiLU"),
        (nn.Dropout(0.1), ""),
        (nn.Sequential(nn.ReLU()), ""),
    ],
)
def test_a_module_in_words(module: nn.Module, text: str) -> None:
    assert describe_module(module) == text


def test_repeated_lines_are_said_once() -> None:
    assert fold(["a", "a", "a", "b"]) == ["a × 3", "b"]
    assert fold(["x", "a", "b", "a", "b", "y"]) == ["x", "2 ×", "  a", "  b", "y"]
    assert fold(["a", "a", "b"] * 2) == ["2 ×", "  a", "  a", "  b"]
    assert fold([]) == []


def unfold(folded: list[str]) -> list[str]:
    lines: list[str] = []
    times, once = 1, []
    for line in [*folded, ""]:
        if line.startswith("  "):
            once.append(line.strip())
            continue
        lines += once * times
        once = []
        text, _, number = line.partition(" ×")
        if line.endswith(" ×"):
            times = int(text)
        elif line:
            lines += [text] * int(number or 1)
    return lines


@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_folding_loses_nothing(lines: list[str]) -> None:
    folded = fold(lines)
    assert unfold(folded) == lines
    assert len(folded) <= len(lines) + 3


def test_equal_blocks_are_drawn_as_one() -> None:
    blocks = merged(build("transformer1d", depth=3))
    assert [block.name for block in blocks] == ["input", "embed", "block1 … block3", "norm", "output"]
    assert blocks[2].kind == "3 × attention"
    assert len(merged(build("resnet1d"))) == 7


@pytest.mark.parametrize("name", models.ENCODERS)
def test_the_drawing_is_well_formed_and_fits(name: str) -> None:
    blocks = build(name)
    root = ElementTree.fromstring(svg(blocks, f"{name} <&>"))
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    said = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert said[0] == f"{name} <&>"
    assert {layer.strip() for block in merged(blocks) for layer in block.layers} <= set(said)
    boxes = [box.attrib for box in root.iter("{http://www.w3.org/2000/svg}rect") if "x" in box.attrib]
    assert len(boxes) == 2 * len(merged(blocks))
    for box in boxes:
        assert float(box["x"]) + float(box["width"]) <= width
        assert float(box["y"]) + float(box["height"]) <= height
    assert max(map(len, said)) < 80
