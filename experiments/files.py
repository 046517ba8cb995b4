"""Files that are either whole or absent: atomic writing, SHA-256, sealed tensors.

The one module that every room may import; it imports torch only when tensors are read or written.
"""

import hashlib
import io
import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; it takes `path`'s name only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic(path) as stream:
        stream.write(content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON. NaN and infinities are refused: they are not JSON."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


SEAL_LENGTH = len("sha256:") + 64


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and JSON scalars as `torch.save` does, followed by the SHA-256 of all of it."""
    import torch

    stream = io.BytesIO()
    torch.save(content, stream)
    write_bytes(path, stream.getvalue() + _seal(stream.getvalue()))


def load_tensors(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Read what `save_tensors` wrote. A file is untrusted input: nothing but tensors and plain values is unpickled.

    Raises:
        ValueError: no such file, a folder, content that differs from its seal, or anything else in it.
    """
    import torch

    sealed = _unseal(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(sealed), weights_only=True, map_location=device)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds something other than tensors and plain values; not loaded") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named tensors and values")
    return content


def _unseal(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    whole = path.read_bytes()
    content, seal = whole[:-SEAL_LENGTH], whole[-SEAL_LENGTH:]
    if not seal.startswith(b"sha256:"):
        raise ValueError(f"{path} does not end in a SHA-256: truncated, damaged, or not written by this toolkit")
    if seal != _seal(content):
        raise ValueError(f"{path} is damaged: its content differs from its SHA-256")
    return content


def _seal(content: bytes) -> bytes:
    return b"sha256:" + hashlib.sha256(content).hexdigest().encode()
