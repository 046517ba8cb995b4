import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from experiments.files import atomic, load_tensors, nan_to_null, save_tensors, sha256, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "a.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [True, False])
def test_an_error_leaves_what_was_there_and_no_temporary(
    tmp_path: Path, existing: bool, error: type[BaseException]
) -> None:
    path = tmp_path / "a.bin"
    if existing:
        path.write_bytes(b"old")
    with pytest.raises(error), atomic(path) as stream:
        stream.write(b"half of the new")
        stream.flush()
        raise error
    assert names(tmp_path) == (["a.bin"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_json_is_readable_and_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"recall": [0.5, None], "name": "é"})
    assert json.loads(path.read_text()) == {"recall": [0.5, None], "name": "é"}
    assert path.read_text().endswith("}\n")
    whole = path.read_bytes()
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"recall": number})
    assert path.read_bytes() == whole
    assert names(tmp_path) == ["a.json"]


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 100_000)
    assert sha256(path) == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_tensors_come_back_with_the_values_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    content = {"step": 3, "losses": [0.1], "weight": torch.arange(3.0), "nested": {"flag": True, "none": None}}
    save_tensors(path, content)
    found = load_tensors(path)
    assert torch.equal(found.pop("weight"), content.pop("weight"))
    assert found == content


def test_the_seal_is_the_hash_of_all_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_tensors(path, {"step": 3})
    content, seal = path.read_bytes()[:-71], path.read_bytes()[-71:]
    assert seal == b"sha256:" + hashlib.sha256(content).hexdigest().encode()


def test_a_seal_of_other_content_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    save_tensors(one, {"step": 3})
    save_tensors(other, {"step": 4})
    one.write_bytes(one.read_bytes()[:-71] + other.read_bytes()[-71:])
    with pytest.raises(ValueError, match=r"one\.pt is damaged"):
        load_tensors(one)


def test_what_is_not_defined_becomes_null_however_deep() -> None:
    nan = float("nan")
    given = {"a": nan, "b": [1.0, (nan, "x", None)], "c": {"d": nan, "e": True}}
    assert nan_to_null(given) == {"a": None, "b": [1.0, [None, "x", None]], "c": {"d": None, "e": True}}
    assert given["a"] is nan
