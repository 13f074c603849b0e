"""The gradient of the rational-quadratic splines, derived by hand, against that of their formulas."""

import warnings

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from pyro_coupling.transforms.elementwise import (
    BoundedRationalQuadraticSpline,
    CircularRationalQuadraticSpline,
    RationalQuadraticSpline,
)
from pyro_coupling.transforms.elementwise import _rational_quadratic_kernel as kernel

MAPS = {
    "linear-tails": RationalQuadraticSpline(4, 3.0),
    "free-ends": BoundedRationalQuadraticSpline(4, 3.0),
    "circular": CircularRationalQuadraticSpline(4, 3.0),
}
METHODS = ["forward_and_log_det", "inverse_and_log_det"]
maps = pytest.mark.parametrize("spline", MAPS.values(), ids=MAPS)
directions = pytest.mark.parametrize("method", METHODS)
float64 = torch.float64


def draw(spline, batch=(5,), features=2, dtype=float64):
    """Points within and beyond the interval, and raw numbers of which some press against their bound."""
    torch.manual_seed(0)
    x = 2.5 * torch.randn(*batch, features, dtype=dtype)
    raw = 1.5 * torch.randn(*batch, spline.num_params, features, dtype=dtype)
    return x.requires_grad_(), raw.requires_grad_()


def formulas(function, *inputs):
    """Outputs and their gradients by autograd through the formulas, which function transforms get to see."""
    outputs, pull = torch.func.vjp(function, *inputs)
    return outputs, pull(tuple(part.cos() for part in outputs))


def gradients(function, *inputs):
    outputs = function(*inputs)
    return outputs, torch.autograd.grad(outputs, inputs, [part.detach().cos() for part in outputs])


def same(found, expected, tolerance=1e-9):
    pairs = [*zip(found[0], expected[0], strict=True), *zip(found[1], expected[1], strict=True)]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)


@maps
@directions
def test_first_and_second_derivatives_are_those_of_the_map(spline, method):
    inputs = draw(spline)
    assert gradcheck(getattr(spline, method), inputs)
    assert gradgradcheck(getattr(spline, method), inputs)


@maps
@directions
@pytest.mark.parametrize("batch", [(), (7,), (7, 3, 4), (0,)])
def test_the_gradient_is_that_of_the_formulas(spline, method, batch):
    inputs = draw(spline, batch)
    assert same(gradients(getattr(spline, method), *inputs), formulas(getattr(spline, method), *inputs))


@maps
@directions
@pytest.mark.parametrize("shape", [(7,), ()])
def test_long_batches_are_read_row_by_row_to_the_same_end(spline, method, shape, monkeypatch):
    x, raw = draw(spline, batch=(7,))[0], draw(spline, batch=shape)[1]
    whole = gradients(getattr(spline, method), x, raw)
    monkeypatch.setattr(kernel, "_SHORT", 0)
    assert same(gradients(getattr(spline, method), x, raw), whole)


@maps
@directions
def test_gradients_in_float32_are_exact_to_its_rounding(spline, method):
    # errors reached, relative to 1 + the gradient: at most 1e-4, where a point lies close to a knot
    inputs = draw(spline, (2000,), dtype=torch.float32)
    _, found = gradients(getattr(spline, method), *inputs)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    _, expected = gradients(getattr(spline, method), *exact)
    for a, b in zip(found, expected, strict=True):
        assert ((a - b).abs() / (1 + b.abs())).quantile(0.999) < 1e-4


@maps
@directions
@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_gradients_of_shared_parameters_are_sums(spline, method, shape):
    x, raw = draw(spline, (3, 4))
    shared = raw.detach()[0, 0].expand(*shape, -1, -1).clone().requires_grad_()
    found = gradients(getattr(spline, method), x, shared)
    assert same(found, gradients(lambda x, raw: getattr(spline, method)(x, raw.expand(3, 4, -1, -1)), x, shared))


@maps
@directions
def test_gradients_of_a_shared_input_are_sums(spline, method):
    _, raw = draw(spline, (3, 4))
    x = torch.tensor([0.3, -1.2], dtype=float64, requires_grad=True)
    found = gradients(getattr(spline, method), x, raw)
    assert same(found, gradients(lambda x, raw: getattr(spline, method)(x.expand(3, 4, -1), raw), x, raw))
    log_slope = getattr(spline, method)(x, raw)[1]
    assert torch.autograd.grad(log_slope.sum(), x)[0].shape == x.shape


@maps
@directions
@pytest.mark.parametrize("part", [0, 1])
def test_the_value_or_the_slope_may_be_differentiated_alone(spline, method, part):
    inputs = draw(spline)

    def one(*inputs):
        return (getattr(spline, method)(*inputs)[part],)

    assert same(gradients(one, *inputs), formulas(one, *inputs))


@maps
@directions
def test_forward_mode_and_vectorised_jacobians_agree(spline, method):
    x, raw = draw(spline)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = getattr(spline, method)(forward_ad.make_dual(x.detach(), tangent), raw.detach())
        pushed = [forward_ad.unpack_dual(part).tangent for part in dual]
    outputs = getattr(spline, method)(x, raw)
    for part, found in zip(outputs, pushed, strict=True):
        (slope,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        assert torch.allclose(found, slope * tangent)
        rows = torch.eye(x.numel(), dtype=float64).reshape(-1, *x.shape)
        (jacobian,) = torch.autograd.grad(part, x, rows, retain_graph=True, is_grads_batched=True)
        assert torch.allclose(jacobian.sum(0), slope)


@maps
@directions
def test_function_transforms_do_not_warn(spline, method):
    x, raw = (part.detach() for part in draw(spline))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x, raw: getattr(spline, method)(x, raw)[0]))(x, raw)
    log_slope = getattr(spline, method)(x, raw)[1]
    assert torch.allclose(jacobian.diagonal(dim1=-2, dim2=-1).log(), log_slope)


@maps
@directions
def test_training_compiles_to_one_graph(spline, method):
    inputs = draw(spline)
    torch._dynamo.reset()
    compiled = torch.compile(getattr(spline, method), fullgraph=True, backend="aot_eager")  # a graph break would raise
    assert same(gradients(compiled, *inputs), gradients(getattr(spline, method), *inputs))


@maps
@directions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_give_finite_gradients(spline, method, dtype):
    x, raw = draw(spline, (200,), dtype=torch.float32)
    coarse = raw.detach().to(dtype).requires_grad_()
    outputs, found = gradients(getattr(spline, method), x, coarse)
    assert [part.dtype for part in (*outputs, *found)] == [torch.float32] * 3 + [dtype]
    assert all(part.isfinite().all() for part in (*outputs, *found))
    # the log slope does not depend on the phase of a circular map, which is turned in the precision that it comes in
    exact = getattr(spline, method)(x, coarse.detach().float())
    assert torch.equal(outputs[1], exact[1]) or (spline.period and method == "inverse_and_log_det")


def test_what_long_batches_keep_for_backward_is_as_large_as_the_parameters(monkeypatch):
    monkeypatch.setattr(kernel, "_SHORT", 0)
    spline = RationalQuadraticSpline()
    x, raw = draw(spline, (100,), dtype=torch.float32)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        spline.forward_and_log_det(x, raw)
    assert sum(kept.values()) <= (raw.numel() + 3 * x.numel()) * 4


def test_autograd_sees_one_node():
    spline = RationalQuadraticSpline()
    y, log_slope = spline.forward_and_log_det(*draw(spline))
    assert (
        y.grad_fn is log_slope.grad_fn and type(y.grad_fn).__name__ == f"{kernel._RationalQuadratic.__name__}Backward"
    )
