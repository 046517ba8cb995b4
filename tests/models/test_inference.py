import pytest
import torch
from torch import Tensor, nn

from models.inference import apply


def make_module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_equals_a_forward_pass_in_eval_mode_in_order(batch_size: int) -> None:
    module, signal = make_module(), torch.rand(7, 1, 6)
    module(signal)
    out = apply(module, signal, batch_size=batch_size)
    assert out.dtype == torch.float32 and not out.requires_grad
    torch.testing.assert_close(out, module.eval()(signal).detach())


def test_every_mode_is_put_back_and_no_statistic_moves() -> None:
    module = make_module()
    module[2].eval()
    modes = [part.training for part in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    apply(module, torch.rand(7, 1, 6))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"cannot take {len(x)} beats")


def test_modes_are_put_back_after_an_error_too() -> None:
    module = Failing()
    with pytest.raises(RuntimeError, match="cannot take 2 beats"):
        apply(module, torch.rand(2, 1, 1))
    assert module.training and module.layer.training


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        return x.mean(2) + beside + self.bias


def test_several_inputs_are_taken_in_step() -> None:
    signal, beside = torch.rand(7, 1, 6), torch.rand(7, 1)
    torch.testing.assert_close(apply(Sum(), signal, beside, batch_size=3), signal.mean(2) + beside + 1)
