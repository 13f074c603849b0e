"""What is recorded repeats what was done, and nothing is recorded that can't be repeated."""

from __future__ import annotations

import pytest
import torch

from pyro_coupling.training.recording import record


def test_a_derivative_taken_inside_is_recorded():
    def slopes(x, w):
        leaf = x.detach().requires_grad_()
        (first,) = torch.autograd.grad((leaf.sin() * w).sum(), leaf)
        return [first, leaf.detach().exp()]

    replay = record(slopes, [torch.zeros(3), torch.ones(3)])
    x, w = torch.randn(3), torch.randn(3)
    slope, value = replay(x, w)
    torch.testing.assert_close(slope, x.cos() * w)
    torch.testing.assert_close(value, x.exp())


def test_values_changed_in_place_are_not_taken_for_equal():
    def changing(x):
        total = torch.zeros_like(x)
        before = total + x
        total.add_(x)
        return [before, total + x, total.view(-1) * 2]

    x = torch.randn(4)
    first, second, third = record(changing, [torch.ones(4)])(x)
    torch.testing.assert_close(first, x)
    torch.testing.assert_close(second, 2 * x)
    torch.testing.assert_close(third, 2 * x)


def test_two_draws_are_not_taken_for_one():
    first, second = record(lambda x: [torch.rand_like(x), torch.rand_like(x)], [torch.zeros(100)])(torch.zeros(100))
    assert not torch.equal(first, second)


def test_numbers_of_different_types_are_not_taken_for_equal():
    def two_types(x):
        return [x + 1, x + 1.0, torch.where(x > 0, 1, 0), torch.where(x > 0, 1.0, 0.0)]

    x = torch.arange(-2, 3)
    for found, expected in zip(record(two_types, [x])(x), two_types(x), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("network", [torch.nn.SiLU(), torch.nn.Softplus(), torch.nn.GELU(), torch.nn.Tanh()])
def test_activations_keep_value_and_slope(network):
    def value_and_slope(x):
        leaf = x.detach().requires_grad_()
        y = network(leaf)
        return [y.detach(), torch.autograd.grad(y.sum(), leaf)[0]]

    x = torch.randn(1000, dtype=torch.float64) * 5
    for found, expected in zip(record(value_and_slope, [torch.zeros_like(x)])(x), value_and_slope(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_branch_on_a_value_can_not_be_recorded():
    with pytest.raises(RuntimeError):
        record(lambda x: [x if x.sum() > 0 else -x], [torch.ones(2)])


def test_no_gradient_flows_out_of_a_replay():
    x = torch.ones(2, requires_grad=True)
    assert not record(lambda x: [x * 2], [torch.ones(2)])(x)[0].requires_grad
