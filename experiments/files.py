"""Files that are either whole or absent: atomic writing, SHA-256, sealed tensors.

The one module that every room may import; it imports torch only when tensors are read or written.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import pickle
import sys
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


def nan_to_null(content: Any) -> Any:
    """A copy of nested dictionaries and lists in which NaN, what is not defined, is None: JSON has no NaN."""
    if isinstance(content, dict):
        return {name: nan_to_null(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [nan_to_null(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def append_line(path: Path, line: str) -> None:
    """Add one line, safe against other writers and against being killed half-way.

    Raises:
        OSError: it cannot be written; the disk may be full.
    """
    content = line.encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _drop_torn_line(descriptor)
        if os.write(descriptor, content) != len(content):
            raise OSError(f"{path}: written in part only, the disk may be full")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[bytes]:
    """Every whole line, oldest first; none where there is no file.

    A last line without its line break was torn by a killed writer: it is skipped, with a warning on stderr.
    """
    if not path.exists():
        return []
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        *lines, torn = stream.read().split(b"\n")
    if torn:
        print(f"warning: {path}: skipped a torn last line", file=sys.stderr)
    return lines


def _drop_torn_line(descriptor: int) -> None:
    """Cut what follows the last line break, or the next line would be glued to it."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.ftruncate(descriptor, os.pread(descriptor, size, 0).rfind(b"\n") + 1)


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
