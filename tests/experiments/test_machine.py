import pytest
import torch

from experiments import machine


@pytest.mark.parametrize("device", ["tpu", "", "cuda:x", "mps", "meta"])
def test_an_unknown_device_lists_the_choices(device: str) -> None:
    with pytest.raises(ValueError, match=f"unknown device '{device}'; choose from auto, cpu, cuda"):
        machine.resolve_device(device)


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.resolve_device("auto") == "cuda"
    assert machine.resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="'cuda:2': this machine has 2 CUDA devices"):
        machine.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.resolve_device("auto") == "cpu"
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=f"device '{device}': this torch finds no CUDA; choose cpu or auto"):
            machine.resolve_device(device)


@pytest.mark.parametrize("threads", [0, -2])
def test_fewer_than_one_thread_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"--threads {threads}: at least 1 is needed"):
        machine.resolve_threads(threads)


def test_threads_are_set_and_told() -> None:
    before = torch.get_num_threads()
    assert machine.resolve_threads(None) == before == torch.get_num_threads()
    assert machine.resolve_threads(2) == 2 == torch.get_num_threads()
    assert machine.Machine.resolve("cpu", "fp32", 1) == machine.Machine(device="cpu", precision="fp32", threads=1)


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_hardware_unless_it_is_said(
    supported: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert machine.resolve_precision("auto", "cpu") == precision
    assert machine.resolve_precision("bf16", "cpu") == "bf16"
    assert machine.resolve_precision("fp32", "cpu") == "fp32"
