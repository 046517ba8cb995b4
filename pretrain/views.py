"""Two views of the same heart, for objectives that bring them together."""

from torch import Tensor, nn

from data.augment import augment
from pretrain.task import Batch, ViewsOf

VARIED_BY = ("amplitude", "baseline_wander", "noise", "span_mask", "shift")


def two_views(batch: Batch, of: ViewsOf) -> tuple[Tensor, Tensor]:
    """Two augmented views of each beat, or an augmented view of each and one of its partner (same patient).

    Returns:
        (batch, num_leads, num_samples) twice.
    """
    other = batch if of == "augmented" else batch.partner
    if other is None:
        raise ValueError("views of a patient's beats need a partner for each beat")
    first, second = (augment(view.signal, view.valid_length, VARIED_BY) for view in (batch, other))
    return first, second


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, linear: (batch, dim) → (batch, out)."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))
