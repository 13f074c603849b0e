"""Warm starts of many dimensions: the covariance is diagonal plus low rank, and no D x D matrix is ever made."""

from collections import deque

import pyro
import pyro.distributions as dist
import pytest
import torch
from densities import Density
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_coupling import AutoCouplingFlow
from pyro_coupling.training import LowRankStart, low_rank, warm_start
from pyro_coupling.training.gaussians import LARGEST_DENSE
from pyro_coupling.training.lockstep import Path
from pyro_coupling.training.low_rank import RANK, low_rank_along, low_rank_init, low_rank_laplace
from pyro_coupling.transforms import LowerTriangularAffine, LowRankAffine

DIM = LARGEST_DENSE + 100


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def hierarchy(dim=DIM, shared=3):
    """A Gaussian as a hierarchical model gives: units of many scales, independent given a few shared numbers."""
    scale, loc = normal(dim, seed=1).exp(), 10 * normal(dim, seed=2)
    loads = normal(dim, shared, seed=3)
    loads[:shared] = 0

    def log_prob(x):
        z = (x - loc) / scale
        return -0.5 * (z - z[:, :shared] @ loads.mT).square().sum(-1)

    constant = 0.5 * dim * torch.log(torch.tensor(2 * torch.pi)) + scale.log().sum()  # the shear has determinant one
    return Density(lambda x: log_prob(x) - constant, dim)


def root_of(start):
    """The matrix of the map from noise to draws."""
    identity = torch.eye(len(start.loc), dtype=start.loc.dtype)
    return (start._color(identity)).mT


def some_start(dim=7, rank=3):
    basis, triangle = torch.linalg.qr(normal(dim, rank))
    core = triangle.mT.tril(-1) + torch.diag(triangle.diagonal().abs() + 0.1)
    return LowRankStart(normal(dim, seed=1), normal(dim, seed=2).exp(), basis, core, 0.0, "pathfinder")


# The Gaussian


def test_a_low_rank_gaussian_is_the_dense_one():
    start = some_start()
    root = root_of(start)
    dense = torch.distributions.MultivariateNormal(start.loc, root @ root.mT)
    x, log_q = start.sample(50, generator())
    torch.testing.assert_close(log_q, dense.log_prob(x))
    torch.testing.assert_close(start.log_prob(x), log_q)
    torch.testing.assert_close(start.loc + start.whiten(x) @ root.mT, x)


def test_its_tensors_set_an_affine_map_to_it():
    start = some_start()
    outer = LowRankAffine(**low_rank_init(torch.zeros(7).double(), 1.0).tensors)
    with pytest.raises(ValueError, match=r"core must be \(7, 7\)"):
        outer.set(**start.tensors)
    outer = LowRankAffine(**start.tensors)
    x, log_q = start.sample(5, generator())
    z, log_det = outer.inverse_and_log_det(x)
    torch.testing.assert_close(z, start.whiten(x))
    torch.testing.assert_close(dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + log_det, log_q)


# Pathfinder's


def a_path(dim, steps):
    """Iterates of a quadratic, whose gradients are known."""
    factor = normal(dim, dim)
    hessian = factor @ factor.mT + torch.eye(dim)
    points = [point.numpy() for point in normal(steps, dim, seed=1)]
    return Path(points, [hessian.numpy() @ point for point in points])


def test_the_root_is_that_of_the_bfgs_matrix():
    """Nocedal and Wright 2006, equation 6.17, step by step from the diagonal."""
    dim, path = 12, a_path(12, 5)
    pairs = deque()
    for before, after, g_before, g_after in zip(
        path.points, path.points[1:], path.gradients, path.gradients[1:], strict=False
    ):
        pairs.append((torch.as_tensor(after - before), torch.as_tensor(g_after - g_before)))
    diagonal = normal(dim, seed=5).exp()
    expected = torch.diag(diagonal)
    for s, y in pairs:
        left = torch.eye(dim) - torch.outer(s, y) / (s @ y)
        expected = left @ expected @ left.mT + torch.outer(s, s) / (s @ y)
    units = deque((s / (s @ y).sqrt(), y / (s @ y).sqrt()) for s, y in pairs)
    start = LowRankStart(torch.zeros(dim).double(), *low_rank._inverse_hessian_root(diagonal, units), 0.0, "")
    root = root_of(start)
    torch.testing.assert_close(root @ root.mT, expected)


def test_the_diagonal_is_updated_as_in_the_paper():
    """Zhang et al. 2022, algorithm 3: with D the old diagonal, entry by entry."""
    d, s, y = normal(6, seed=1).exp(), normal(6, seed=2), normal(6, seed=3)
    y = y * torch.sign(s @ y) / (s @ y).abs()  # curvature one
    a, b, c = (d * y * y).sum(), (s * y).sum(), (s * s / d).sum()
    expected = 1 / (a / (b * d) + y**2 / b - a * s**2 / (b * c * d**2))
    torch.testing.assert_close(low_rank._updated(d, s, y), expected)
    assert (expected > 0).all()


def test_each_wanted_step_gives_its_point_and_a_quasi_newton_step():
    path = a_path(8, 6)
    at, onward, *_ = low_rank_along(path, {3}, torch.zeros(8).double())
    torch.testing.assert_close(at.loc, torch.as_tensor(path.points[3]))
    root = root_of(at)
    newton = at.loc - root @ root.mT @ torch.as_tensor(path.gradients[3])
    torch.testing.assert_close(onward.loc, newton)
    assert not list(low_rank_along(Path(), {1}, torch.zeros(8)))


# Laplace's


def test_a_precision_of_diagonal_and_low_rank_is_read_from_a_few_products():
    loads = normal(DIM, 5, seed=2)
    matrix = torch.diag(normal(DIM, seed=1).exp()) + loads @ loads.mT
    probes = normal(120, DIM, seed=3).sign()
    scale, basis, excess = low_rank._diagonal_and_low_rank(probes, probes @ matrix, RANK)
    found = (torch.eye(DIM) + (basis * excess) @ basis.mT) / torch.outer(scale, scale)
    assert (found - matrix).norm() < 1e-3 * matrix.norm()


@pytest.mark.parametrize("sign", [-1.0, 0.0, torch.nan])
def test_what_is_no_precision_gives_no_gaussian(sign):
    target = Density(lambda x: -0.5 * sign * x.square().sum(-1), DIM)
    assert low_rank_laplace(target, target.origin, torch.ones(DIM).double(), generator()) is None


def test_a_model_without_second_derivatives_gives_no_gaussian():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return -0.5 * x.square().sum(-1)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return -ctx.saved_tensors[0] * gradient.unsqueeze(-1)

    target = Density(Once.apply, DIM)
    assert low_rank_laplace(target, target.origin, torch.ones(DIM).double(), generator()) is None
    assert warm_start(target, target.origin + 1, generator=generator(), num_starts=1)[0].source == "pathfinder"


# The warm start


@pytest.mark.parametrize("method", ["pathfinder", "laplace"])
def test_a_hierarchy_of_many_scales_is_found(method):
    target = hierarchy()
    (start,) = warm_start(target, target.origin, method, generator=generator(), num_starts=2)
    assert isinstance(start, LowRankStart)
    # normalised: 0 is exact, and an exact Gaussian leaves no noise
    assert start.elbo == pytest.approx(0.0, abs=0.05)


def test_in_float32_too():
    target = Density(lambda x: -0.5 * (x - 1).square().sum(-1), DIM, torch.float32)
    best = warm_start(target, target.origin, generator=generator(), num_starts=2)[0]
    assert {tensor.dtype for tensor in best.tensors.values()} == {torch.float32}
    torch.testing.assert_close(best.loc, torch.ones(DIM), atol=1e-3, rtol=0.0)


class LargestTensor(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return result


def test_no_tensor_grows_as_the_square_of_the_dimension():
    def largest(dim):
        target = Density(lambda x: -0.5 * x.square().sum(-1) - 0.1 * x[:, 0] * x.sum(-1) / dim, dim)
        with LargestTensor() as seen:
            warm_start(target, target.origin, generator=generator(), num_starts=2)
        return seen.size

    assert largest(4 * DIM) <= 4.1 * largest(DIM) < 8 * DIM**2 * 4


def test_an_initial_start_is_of_low_rank_too():
    target = hierarchy()
    (start,) = warm_start(target, target.origin, "init")
    assert start.source == "init" and start.basis.shape == (DIM, RANK)
    torch.testing.assert_close(root_of(start), 0.1 * torch.eye(DIM).double())


# The guide


def many(x):
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("units", len(x)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(theta, 1.0), obs=x)


@pytest.mark.parametrize(("latents", "outer"), [(LARGEST_DENSE, LowerTriangularAffine), (DIM, LowRankAffine)])
def test_a_guide_ends_in_a_map_of_the_form_of_its_start(latents, outer):
    x = normal(latents - 1)
    guide = AutoCouplingFlow(many, warm_start="laplace", num_starts=1)
    guide(x)
    assert isinstance(guide.transform[-1], outer)
    # conjugate: the mean of mu is that of the data, shrunk by its variance of 2 over their number
    assert guide.median()["mu"].item() == pytest.approx(x.sum().item() / (len(x) + 2), abs=0.01)
    again = AutoCouplingFlow(many)
    again.load_state_dict(guide.state_dict())
    assert torch.equal(again.transform[-1].loc, guide.transform[-1].loc)


def test_parameters_of_the_default_guide_grow_in_proportion_to_the_latents():
    def size(latents):
        guide = AutoCouplingFlow(many, warm_start="init")
        guide(normal(latents - 1))
        return sum(p.numel() for p in guide.parameters())

    assert size(4 * DIM) < 4 * size(DIM)
