"""Muon takes torch's steps, all matrices of a shape at once."""

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.learn.optimizers import Muon, make_optimizers
from torch import nn


def test_steps_equal_those_of_torch() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has no Muon")
    torch.manual_seed(0)
    shapes = [(6, 4), (6, 4), (3, 8), (5, 5)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(one.detach().clone()) for one in ours]
    rate = torch.tensor(0.02)
    one = Muon(ours, rate, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # both compute in bfloat16
        assert (a - b).abs().max() < 0.03 * 0.02 * 3 * 0.2 * max(a.shape) ** 0.5


def test_a_stack_of_experts_is_as_many_matrices() -> None:
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 6, 4))
    each = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    gradient = torch.randn(3, 6, 4)
    stack.grad = gradient
    for matrix, part in zip(each, gradient, strict=True):
        matrix.grad = part.clone()
    for parameters in ([stack], each):
        Muon(parameters, 0.02).step()
    assert torch.equal(stack.detach(), torch.stack([matrix.detach() for matrix in each]))


def test_muon_is_for_the_matrices_of_blocks() -> None:
    module = nn.ModuleDict(
        {
            "a": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)]), "gate": nn.Linear(4, 2)}),
            "embed": nn.Embedding(5, 4),
        }
    )
    rate = torch.zeros(())
    muon, adamw = make_optimizers(module, "muon", rate, 0.01, 0.1)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adamw.param_groups[0]["params"]) == 4
    (only,) = make_optimizers(module, "adamw", rate, 0.01, 0.1)
    assert len(only.param_groups[0]["params"]) == 5
    with pytest.raises(OptionError, match="accepted: muon, adamw"):
        make_optimizers(module, "sgd", rate, 0.01, 0.1)
