"""Maps without parameters against their formulas, at their seams and far out, and on bounded outputs."""

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from cases_linear import BOUNDED_CASES
from harness import relative_error
from scipy import integrate

from pyro_coupling.transforms import LOFT, DiagonalAffine, LeakyReLU, SoftBound, ToUnitInterval

bounded = pytest.mark.parametrize("name", BOUNDED_CASES)
BUILT = [LeakyReLU(1), LOFT(1), SoftBound(1, 1.0, 3.0), ToUnitInterval(1), ToUnitInterval(1, margin=0.0)]
built = pytest.mark.parametrize("layer", BUILT, ids=repr)


def normal(event_shape, dtype=torch.float64):
    return dist.Normal(torch.zeros(tuple(event_shape), dtype=dtype), 1.0).to_event(len(event_shape))


def slope(layer, x):
    return torch.autograd.functional.jvp(layer, x[..., None], torch.ones_like(x)[..., None], create_graph=True)[1][
        ..., 0
    ]


def far(dtype):
    sizes = torch.tensor([0.0, 1e-6, 1.0, 2.0, 99.0, 100.0, 101.0, 1e3, 1e6], dtype=dtype)
    return torch.cat([sizes, -sizes])


# Formulas


def test_leaky_relu_is_torchs():
    x = torch.randn(50, 3, dtype=torch.float64)
    y, log_det = LeakyReLU(3, 0.2).forward_and_log_det(x)
    assert torch.equal(y, torch.nn.functional.leaky_relu(x, 0.2))
    assert relative_error(log_det, (x < 0).sum(-1) * torch.tensor(0.2, dtype=torch.float64).log()) < 1e-12


def test_loft_is_the_formula_of_the_paper():
    x = far(torch.float64)
    excess = (x.abs() - 100).clamp(min=0)
    y, log_det = LOFT(1).forward_and_log_det(x[:, None])
    assert relative_error(y[:, 0], x.sign() * ((1 + excess).log() + x.abs().clamp(max=100))) < 1e-12
    assert relative_error(log_det, -(1 + excess).log()) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_loft_is_a_bijection_far_beyond_the_logarithm(dtype, tolerance):
    layer = LOFT(1)
    sizes = torch.tensor([0.0, 99.0, 101.0, 129.0, 130.0, 131.0, 1e3, 1e6, 1e20], dtype=dtype)
    y = torch.cat([sizes, -sizes])[:, None].requires_grad_()
    x, log_det = layer.inverse_and_log_det(y)
    assert x.isfinite().all() and log_det.isfinite().all()
    again, opposite = layer.forward_and_log_det(x)
    assert relative_error(again, y) < tolerance and relative_error(opposite, -log_det) < tolerance
    assert torch.autograd.grad(x.sum(), y)[0].isfinite().all()


def test_loft_has_no_jump_where_the_line_begins():
    layer = LOFT(1)
    y = torch.tensor([130 - 1e-9, 130 + 1e-9], dtype=torch.float64)[:, None]
    x, log_det = layer.inverse_and_log_det(y)
    assert relative_error(x[0], x[1]) < 1e-8 and relative_error(log_det[0], log_det[1]) < 1e-8


def test_to_unit_interval_undoes_the_logit_of_the_paper():
    pixels = torch.linspace(0, 1, 11, dtype=torch.float64)
    squeezed = 0.05 + 0.9 * pixels
    x, log_det = ToUnitInterval(1).inverse_and_log_det(pixels[:, None])
    assert relative_error(x[:, 0], squeezed.logit()) < 1e-12
    assert relative_error(log_det, (0.9 / (squeezed * (1 - squeezed))).log()) < 1e-12


def test_to_unit_interval_without_margin_is_torchs_sigmoid():
    x = 5 * torch.randn(20, 3, dtype=torch.float64)
    theirs = torch.distributions.transforms.SigmoidTransform()
    y, log_det = ToUnitInterval(3, 0.0).forward_and_log_det(x)
    assert relative_error(y, theirs(x)) < 1e-12
    assert relative_error(log_det, theirs.log_abs_det_jacobian(x, y).sum(-1)) < 1e-12


def test_soft_bound_is_the_identity_within_and_has_a_limit():
    layer = SoftBound(1, 1.0, 3.0)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    y, log_det = layer.forward_and_log_det(x)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros(9, dtype=torch.float64))
    # 2 - 4/pi atan(z) is 4/(pi z) far out
    assert abs(layer(torch.tensor([1e8], dtype=torch.float64)).item() - 3) < 1e-7


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_soft_bound_has_a_smooth_seam(sign):
    layer = SoftBound(1, 1.0, 3.0)
    x = sign * torch.tensor([1 - 1e-6, 1 + 1e-6], dtype=torch.float64)
    x.requires_grad_()
    first = slope(layer, x)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert relative_error(first, torch.ones_like(first)) < 1e-9
    assert second.abs().max() < 1e-5


@built
def test_slope_at_zero_is_that_of_the_log_determinant(layer):
    # where clamps, signs and absolute values meet
    x = torch.zeros(1, dtype=torch.float64)
    assert relative_error(slope(layer, x).log(), layer.forward_and_log_det(x)[1]) < 1e-12


# Far out


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_scores_and_gradients_are_finite_for_any_input(layer, dtype):
    x = far(dtype)[:, None].requires_grad_()
    y, log_det, score = layer.forward_and_score(x, -x)
    assert all(part.isfinite().all() for part in (y, log_det, score))
    assert torch.autograd.grad(y.sum() + log_det.sum(), x)[0].isfinite().all()
    assert layer.codomain.check(y).all()


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_drawn_has_a_density(layer, dtype):
    y = layer(far(dtype)[:, None]).requires_grad_()
    q = dist.TransformedDistribution(dist.Normal(torch.zeros(1, dtype=dtype), 1e6), [layer])
    log_prob = q.log_prob(y.clone())
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), y)[0].isfinite().all()


# Bounded outputs


@bounded
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_round_trip(name, dtype, tolerance):
    layer = BOUNDED_CASES[name]()
    x = 1.5 * torch.randn(50, *layer.event_shape, dtype=dtype)
    y, log_det = layer.forward_and_log_det(x)
    again, opposite = layer.inverse_and_log_det(y)
    assert y.dtype == log_det.dtype == again.dtype == dtype
    assert relative_error(again, x) < tolerance and relative_error(-opposite, log_det) < tolerance


@bounded
@pytest.mark.parametrize("size", [1.5, 5.0])
def test_log_det_and_score_are_those_of_autograd(name, size):
    layer = BOUNDED_CASES[name]()
    x = size * torch.randn(layer.event_shape, dtype=torch.float64)
    y, log_det, score = layer.forward_and_score(x, -x)
    for method, at, found in (
        (layer.forward_and_log_det, x, log_det),
        (layer.inverse_and_log_det, y, layer.inverse_and_log_det(y)[1]),
    ):
        jacobian = torch.autograd.functional.jacobian(lambda z, method=method: method(z)[0], at)
        n = at.numel()
        assert relative_error(found, torch.linalg.slogdet(jacobian.reshape(n, n)).logabsdet) < 1e-9
    leaf = y.clone().requires_grad_()
    density = dist.TransformedDistribution(normal(layer.event_shape), [layer])
    (expected,) = torch.autograd.grad(density.log_prob(leaf), leaf)
    assert relative_error(score, expected, len(layer.event_shape)) < 1e-9


@bounded
def test_gradients(name):
    layer = BOUNDED_CASES[name]()
    x = torch.randn(2, *layer.event_shape, dtype=torch.float64)
    for method, at in ((layer.forward_and_log_det, x), (layer.inverse_and_log_det, layer(x))):
        assert torch.autograd.gradcheck(method, (at.detach().requires_grad_(),))


@bounded
@pytest.mark.parametrize("batch", [(), (7,), (7, 3, 4), (0,)])
def test_batch_shapes(name, batch):
    layer = BOUNDED_CASES[name]()
    x = torch.randn(*batch, *layer.event_shape)
    y, log_det, score = layer.forward_and_score(x, -x)
    assert y.shape == score.shape == x.shape and log_det.shape == batch
    assert [part.shape for part in layer.inverse_and_log_det(y)] == [x.shape, torch.Size(batch)]


@bounded
def test_vmap_compilation_and_copies(name):
    layer = BOUNDED_CASES[name]()
    x = torch.randn(5, *layer.event_shape, dtype=torch.float64)
    y = layer(x)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for method, at in (("forward_and_log_det", x), ("inverse_and_log_det", y)):
        expected = getattr(layer, method)(at)
        torch._dynamo.reset()
        runs = [
            torch.func.vmap(getattr(layer, method)),
            torch.compile(getattr(layer, method), fullgraph=True, backend="eager"),
        ]
        for run in (*runs, *(getattr(twin, method) for twin in twins)):
            assert all(relative_error(a, b) < 1e-12 for a, b in zip(run(at), expected, strict=True))


@pytest.mark.parametrize("layer", BUILT[2:], ids=repr)
def test_densities_integrate_to_one(layer):
    low, high = (layer.codomain.base_constraint.lower_bound, layer.codomain.base_constraint.upper_bound)
    q = dist.TransformedDistribution(normal((1,)), [layer])
    total, _ = integrate.quad(
        lambda y: q.log_prob(torch.tensor([y], dtype=torch.float64)).exp().item(), low, high, epsabs=1e-9, limit=200
    )
    assert abs(total - 1) < 1e-7


@pytest.mark.parametrize("layer", BUILT[2:], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_and_beyond_its_bound_a_density_is_zero_and_nothing_nan(layer, dtype):
    limit = layer.codomain.base_constraint
    outside = [limit.lower_bound, limit.upper_bound, limit.lower_bound - 1, limit.upper_bound + 1e6]
    y = torch.tensor(outside, dtype=dtype)[:, None].requires_grad_()
    x, log_det = layer.inverse_and_log_det(y)
    assert x.isfinite().all() and (log_det == -torch.inf).all()
    q = dist.TransformedDistribution(normal((1,), dtype), [layer], validate_args=False)
    assert (q.log_prob(y) == -torch.inf).all()
    assert not torch.autograd.grad(x.sum() + log_det.sum(), y)[0].isnan().any()


@pytest.mark.parametrize("layer", BUILT[2:], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_lie_strictly_within_the_bounds(layer, dtype):
    y = layer(far(dtype)[:, None])
    limit = layer.codomain.base_constraint
    assert (y > limit.lower_bound).all() and (y < limit.upper_bound).all()


def test_pyro_reads_the_support():
    chain = [DiagonalAffine(torch.zeros(3)), ToUnitInterval(3, margin=0.0)]
    q = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), chain, validate_args=True)
    assert q.support.check(q.sample((5,))).all()
    assert not q.support.check(torch.tensor([0.5, 0.5, 1.5]))
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.tensor([0.5, 0.5, 1.5]))


# Arguments


INVALID = [
    (lambda: LeakyReLU(3, 0.0), "LeakyReLU: negative_slope"),
    (lambda: LeakyReLU(3, -0.1), "LeakyReLU: negative_slope"),
    (lambda: LeakyReLU(0), "event_shape"),
    (lambda: LOFT(3, -1.0), "LOFT: threshold"),
    (lambda: LOFT(3, float("inf")), "LOFT: threshold"),
    (lambda: SoftBound(3, 2.0, 2.0), "SoftBound: .*threshold.*bound"),
    (lambda: SoftBound(3, -1.0, 2.0), "SoftBound: .*threshold.*bound"),
    (lambda: ToUnitInterval(3, 0.5), "ToUnitInterval: margin"),
    (lambda: ToUnitInterval(3, -0.1), "ToUnitInterval: margin"),
]


@pytest.mark.parametrize(("invalid", "message"), INVALID)
def test_an_invalid_argument_is_named(invalid, message):
    with pytest.raises(ValueError, match=message):
        invalid()
