"""RR ratios beside the signal: which of them a recipe's `intervals` names."""

from collections.abc import Mapping

from torch import Tensor

from data.beats import Beats
from data.intervals import RATIOS

COLUMNS: Mapping[str, tuple[int, ...]] = {
    "none": (),
    "causal": tuple(column for column, ratio in enumerate(RATIOS) if not ratio.looks_ahead),
    "all": tuple(range(len(RATIOS))),
}
"""Of `Beats.intervals`."""


def beside(beats: Beats, intervals: str) -> Tensor | None:
    """The ratios that `intervals` names, (num_beats, num_ratios); None for none.

    Raises:
        ValueError: the beats carry no ratios.
    """
    columns = COLUMNS[intervals]
    if not columns:
        return None
    if beats.intervals is None:
        raise ValueError(
            f"--intervals {intervals}: the beats of {beats.source} do not carry their RR intervals; those cut from "
            "records do: mitdb, ptbdb, ptbxl, or arrhythmia with --protocol ds1-ds2 or patient"
        )
    return beats.intervals[:, list(columns)]
