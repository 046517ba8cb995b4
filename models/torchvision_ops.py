"""torchvision beside a torch that it was not built for."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch

_DECLARED: list[torch.library.Library] = []
"""An operator lives as long as the library that declared it."""


def declare_missing() -> None:
    """Let `import torchvision` succeed where its compiled operators cannot be loaded.

    Its Python code registers shapes for `nms` and `qnms`, and fails where the two were never declared: with a CPU
    build of torch beside the stock torchvision. They are declared, not implemented: encoders detect no objects.
    """
    if _DECLARED or _extension_loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)


def _extension_loads() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    found = (Path(spec.origin).with_name(f"_C{suffix}") for suffix in EXTENSION_SUFFIXES)
    try:
        torch.ops.load_library(next(path for path in found if path.exists()))
    except (OSError, StopIteration):
        return False
    return True
