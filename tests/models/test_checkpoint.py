import hashlib
import io
import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from models.checkpoint import (
    FORMAT,
    Checkpoint,
    attach,
    load,
    load_weights,
    restore_classifier,
    save,
    weights_hash,
    weights_of,
)
from models.encoder import EncoderSpec
from models.heads import HEADS, Classifier

SPEC = EncoderSpec(name="resnet1d", options={"width": 2, "kernel": 1})
SEAL_LENGTH = 71


def make_checkpoint(**changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        spec=SPEC,
        weights=weights_of(models.build(SPEC)),
        task="masked",
        source="synthetic",
        fingerprint="ab12",
        preprocessing={"rate_hz": 125.0, "scaling": "each beat to 0…1"},
        seed=3,
        cost={"beats": 64.0},
        metrics={"loss": 0.5},
        commit="abc1234",
        versions={"torch": "2"},
    )
    return replace(checkpoint, **changes)


def make_classifier(head: str = "linear") -> tuple[Classifier, Checkpoint]:
    torch.manual_seed(1)
    model = Classifier(models.build(SPEC), head, 3)
    return model, make_checkpoint(weights=weights_of(model), head=head, classes=("a", "b", "c"))


def put_sealed(path: Path, content: bytes) -> Path:
    path.write_bytes(content + b"sha256:" + hashlib.sha256(content).hexdigest().encode())
    return path


def saved_bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def plain_content(**changes: object) -> dict[str, object]:
    checkpoint = make_checkpoint()
    return {
        "format": FORMAT,
        "spec": checkpoint.spec.to_json(),
        "weights": checkpoint.weights,
        "task": "t",
        "source": "s",
        "fingerprint": "f",
        "preprocessing": {},
        "seed": 0,
        "classes": [],
        **changes,
    }


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as refused:
        load(path)
    message = str(refused.value)
    assert str(path) in message and "\n" not in message
    return message


def test_round_trip(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "new folder" / "a.pt", make_checkpoint()
    save(path, checkpoint)
    found = load(path)
    assert replace(found, weights={}) == replace(checkpoint, weights={})
    assert list(found.weights) == list(checkpoint.weights)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in checkpoint.weights.items())
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


def test_the_hash_is_of_architecture_and_weights_alone(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    save(tmp_path / "a.pt", replace(checkpoint, seed=9, source="other", metrics={}))
    assert load(tmp_path / "a.pt").weights_hash == checkpoint.weights_hash
    changed = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    next(iter(changed.values())).view(-1)[0].add_(1e-4)
    assert replace(checkpoint, weights=changed).weights_hash != checkpoint.weights_hash
    assert replace(checkpoint, spec=replace(SPEC, num_samples=100)).weights_hash != checkpoint.weights_hash


def test_the_hash_of_these_weights_never_changes() -> None:
    spec = EncoderSpec(name="resnet1d", options={"width": 8})
    weights = {"b": torch.tensor(7), "a": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    golden = "0caa0c946e2eebe969499595a7bcafaca237532598fc8ffbc62c109d4d0a8086"
    assert weights_hash(spec, weights) == golden
    assert weights_hash(spec, dict(reversed(weights.items()))) == golden
    strided = {**weights, "a": weights["a"].T.contiguous().T}
    assert weights_hash(spec, strided) == golden


def test_weights_are_a_copy() -> None:
    encoder = models.build(SPEC)
    before = weights_of(encoder)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    assert all(tensor.is_contiguous() for tensor in before.values())


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(path, make_checkpoint())
    whole = path.read_bytes()
    draw = random.Random(0)
    in_seal = [8 * (len(whole) - 1 - draw.randrange(SEAL_LENGTH)) + draw.randrange(8) for _ in range(20)]
    for bit in [*(draw.randrange(8 * len(whole)) for _ in range(180)), *in_seal]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert "damaged" in refusal(path)


@pytest.mark.parametrize("kept", [0, 1, 70, 71, 100, 0.5, -1, -SEAL_LENGTH, -SEAL_LENGTH - 1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.pt"
    save(path, make_checkpoint())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "truncated" in refusal(path) or "damaged" in refusal(path)


def test_an_appended_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(path, make_checkpoint())
    path.write_bytes(path.read_bytes() + b"\0")
    assert "damaged" in refusal(path)


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


ENVELOPES: dict[str, Callable[[Attack], bytes]] = {
    "in a checkpoint": lambda attack: saved_bytes(plain_content(commit=attack)),
    "as the whole file": saved_bytes,
    "as a plain pickle": lambda attack: pickle.dumps(attack, protocol=2),
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("envelope", ENVELOPES)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, envelope: str, sealed: bool) -> None:
    victim = tmp_path / "written by the attack"
    content = ENVELOPES[envelope](Attack(victim))
    path = tmp_path / "a.pt"
    if sealed:
        put_sealed(path, content)
    else:
        path.write_bytes(content)
    refusal(path)
    assert not victim.exists()
    with suppress(RuntimeError, pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert victim.exists()  # it was a live one


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        {"format": "other/1"},
        {"format": FORMAT},
        plain_content(spec=3),
        plain_content(spec={"nom": "resnet1d"}),
        plain_content(classes=3),
        plain_content(colour="red"),
    ],
    ids=["a list", "another format", "empty", "spec", "spec field", "classes", "unknown field"],
)
def test_sealed_but_not_a_checkpoint(tmp_path: Path, content: object) -> None:
    refusal(put_sealed(tmp_path / "a.pt", saved_bytes(content)))


@pytest.mark.parametrize("weights", ["numbers", "no dictionary"])
def test_sealed_weights_that_are_no_tensors_are_refused(tmp_path: Path, weights: str) -> None:
    wrong = dict.fromkeys(make_checkpoint().weights, 1.0) if weights == "numbers" else 5
    path = put_sealed(tmp_path / "a.pt", saved_bytes(plain_content(weights=wrong)))
    with pytest.raises(ValueError, match=r"a\.pt"):
        attach(load(path), str(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.pt")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "text.pt").write_text("hello " * 100)
    assert "not written by this toolkit" in refusal(tmp_path / "text.pt")


def test_plain_torch_reads_the_file(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "a.pt", make_checkpoint()
    save(path, checkpoint)
    content = torch.load(path, weights_only=True)
    assert content["format"] == FORMAT
    assert EncoderSpec(**content["spec"]) == SPEC
    assert all(torch.equal(content["weights"][name], tensor) for name, tensor in checkpoint.weights.items())


def test_loading_is_counted() -> None:
    checkpoint = make_checkpoint()
    encoder, loaded = attach(checkpoint, "a.pt")
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    assert (loaded.num_tensors, loaded.num_parameters) == (len(checkpoint.weights), num_parameters)
    assert loaded.total_parameters == num_parameters < sum(tensor.numel() for tensor in checkpoint.weights.values())
    assert "(100%)" in str(loaded)


@pytest.mark.parametrize("damage", ["missing", "extra", "of another shape"])
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(damage: str) -> None:
    weights = dict(make_checkpoint().weights)
    name = "parts.block2.branch.0.weight"
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        name = "parts.block9.weight"
        weights[name] = torch.zeros(1)
    else:
        weights[name] = weights[name][:1]
    torch.manual_seed(5)
    encoder = models.build(SPEC)
    before = weights_of(encoder)
    with pytest.raises(ValueError) as refused:
        load_weights(encoder, weights, "a.pt")
    message = str(refused.value)
    assert all(part in message for part in ("a.pt", damage, name))
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())


def test_every_tensor_that_does_not_fit_is_named() -> None:
    weights = dict(make_checkpoint().weights)
    gone = ["parts.block2.branch.0.weight", "parts.block3.shortcut.1.bias"]
    for name in gone:
        del weights[name]
    with pytest.raises(ValueError) as refused:
        load_weights(models.build(SPEC), weights, "a.pt")
    assert [name for name in gone if name not in str(refused.value)] == []


@pytest.mark.parametrize("head", HEADS)
def test_a_classifier_comes_back_whole(tmp_path: Path, head: str) -> None:
    model, checkpoint = make_classifier(head)
    save(tmp_path / "a.pt", checkpoint)
    found = load(tmp_path / "a.pt")
    assert (found.head, found.classes) == (head, ("a", "b", "c"))
    x = torch.rand(2, 1, 187)
    assert torch.equal(restore_classifier(found, "a.pt").eval()(x), model.eval()(x))


def test_an_encoder_is_no_classifier_and_a_classifier_no_encoder() -> None:
    with pytest.raises(ValueError, match=r"a\.pt holds an encoder without a head"):
        restore_classifier(make_checkpoint(), "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt does not fit"):
        attach(make_classifier()[1], "a.pt")
