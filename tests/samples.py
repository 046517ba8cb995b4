"""What several tests make: small checkpoints, and the reading of a refusal."""

from collections.abc import Sequence

from torch import nn

from models.checkpoint import Checkpoint, weights_of
from models.encoder import EncoderSpec


def checkpoint_of(
    spec: EncoderSpec, module: nn.Module, head: str | None = None, source: str = "synthetic ptb"
) -> Checkpoint:
    """An encoder's checkpoint, or with `head` that of a classifier of five classes."""
    return Checkpoint(
        spec=spec,
        weights=weights_of(module),
        task="masked",
        source=source,
        fingerprint="f",
        preprocessing={},
        seed=0,
        head=head,
        classes=("N", "S", "V", "F", "Q") if head else (),
    )


def assert_refused(answer: tuple[int | str, str, str], said: Sequence[str]) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds everything in `said`."""
    code, stdout, stderr = answer
    assert (code, stdout.strip()) == (2, ""), answer
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert [part for part in said if part not in stderr] == [], stderr
