"""Parameters joined for Adam move as they would one by one."""

from __future__ import annotations

import copy

import pytest
import torch

from pyro_coupling.training.joined_adam import JoinedAdam


def parameters():
    """Small and large ones of two dtypes, one of them a scalar."""
    torch.manual_seed(0)
    shapes = [((3, 4), torch.float32), ((), torch.float32), ((300, 300), torch.float32), ((5,), torch.float64)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape, dtype in shapes]


def set_gradients(tensors, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.grad = size * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator)


@pytest.mark.parametrize("size", [0.001, 10.0])
def test_it_is_adam_with_a_clipped_gradient(size):
    ours, theirs = parameters(), parameters()
    joined, adam = JoinedAdam(ours, 0.1, max_norm=1.0), torch.optim.Adam(theirs, betas=(0.9, 0.99))
    for seed, rate in enumerate((0.1, 0.05, 0.01)):
        set_gradients(ours, seed, size)
        set_gradients(theirs, seed, size)
        joined.learning_rate = rate
        assert joined.step()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


def test_a_gradient_that_is_not_finite_moves_nothing():
    ours = parameters()
    before = [parameter.detach().clone() for parameter in ours]
    joined = JoinedAdam(ours, 0.1)
    set_gradients(ours, 0)
    ours[1].grad = torch.tensor(torch.nan)
    assert not joined.step()
    assert joined.state_dict() == {}
    assert all(map(torch.equal, ours, before))


def test_what_others_write_into_a_parameter_stays_and_one_without_gradient_does_not_move():
    ours = parameters()
    joined = JoinedAdam(ours, 0.1)
    set_gradients(ours, 0)
    ours[0].grad = None
    with torch.no_grad():
        ours[0].fill_(7.0)
        ours[1].fill_(5.0)
    joined.step()
    assert torch.equal(ours[0], torch.full_like(ours[0], 7.0))
    assert abs(ours[1].item() - 5.0) == pytest.approx(0.1, rel=1e-4)  # Adam's first step is as long as its rate


def test_a_copy_with_its_state_goes_on_bit_for_bit():
    ours, theirs = parameters(), parameters()
    joined, other = JoinedAdam(ours, 0.1), JoinedAdam(theirs, 0.1)
    set_gradients(ours, 0)
    joined.step()
    with torch.no_grad():
        torch._foreach_copy_(theirs, ours)
    other.load_state_dict(copy.deepcopy(joined.state_dict()))
    for tensors, optimizer in ((ours, joined), (theirs, other)):
        set_gradients(tensors, 1)
        optimizer.step()
    assert all(map(torch.equal, ours, theirs))


def test_a_state_of_other_parameters_is_refused():
    ours = parameters()
    joined = JoinedAdam(ours, 0.1)
    set_gradients(ours, 0)
    joined.step()
    with pytest.raises(ValueError, match="exp_avg must have 5 entries, got 13"):
        JoinedAdam(parameters()[3:], 0.1).load_state_dict(joined.state_dict())
