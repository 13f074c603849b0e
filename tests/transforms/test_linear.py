"""Linear layers against explicit matrices and torch's own convolutions; learned permutations."""

import pyro.distributions as dist
import pytest
import torch
from cases_linear import LINEAR_CASES
from harness import directions, randomise, relative_error
from torch.nn import functional as F

from pyro_coupling.transforms import HouseholderLinear, LearnedPermutation, LULinear, PlainLinear, conv1x1

KINDS = [LULinear, HouseholderLinear, PlainLinear]
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind, event_shape, noise=0.3, **kwargs):
    return randomise(kind(event_shape, **kwargs).double(), noise)


# One matrix, at every position


@kinds
@pytest.mark.parametrize(("shape", "dim"), [(4, -1), ((3, 5), -2), ((3, 2, 4), -3), ((3, 2, 4), -2), ((3, 2, 4), -1)])
def test_the_same_matrix_acts_at_every_position(kind, shape, dim):
    layer = build(kind, shape, dim=dim)
    x = torch.randn(6, *layer.event_shape, dtype=torch.float64)
    y, log_det = layer.forward_and_log_det(x)
    columns = x.movedim(dim, 1).flatten(2) if x.dim() > 2 else x[..., None]
    expected = torch.einsum("ij,bjp->bip", layer.weight, columns)
    assert relative_error((y.movedim(dim, 1).flatten(2) if x.dim() > 2 else y[..., None]), expected) < 1e-12
    assert relative_error(log_det, columns.size(-1) * torch.linalg.slogdet(layer.weight).logabsdet) < 1e-12


@pytest.mark.parametrize("lu", [True, False])
@pytest.mark.parametrize(
    ("shape", "convolution"), [((3, 5), F.conv1d), ((3, 4, 5), F.conv2d), ((2, 3, 4, 5), F.conv3d)]
)
def test_conv1x1_is_torchs_convolution(lu, shape, convolution):
    layer = randomise(conv1x1(shape, lu=lu).double(), 0.3)
    x = torch.randn(6, *shape, dtype=torch.float64)
    kernel = layer.weight.reshape(shape[0], shape[0], *[1] * (len(shape) - 1))
    assert relative_error(layer(x), convolution(x, kernel)) < 1e-12


@kinds
@pytest.mark.parametrize("size", [1, 2, 7])
def test_without_a_seed_a_layer_starts_as_the_identity(kind, size):
    x = torch.randn(5, size)
    assert torch.allclose(kind(size)(x), x, atol=1e-6)


@kinds
@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_seed_gives_an_orthogonal_start_of_its_own(kind, size):
    first, again, other = (kind(size, seed=seed).weight for seed in (1, 1, 2))
    assert torch.allclose(first @ first.mT, torch.eye(size), atol=1e-6)
    assert torch.equal(first, again)
    assert size == 1 or not torch.allclose(first, other, atol=0.1)


@pytest.mark.parametrize("kind", [LULinear, PlainLinear])
def test_a_random_start_is_a_rotation(kind):
    determinants = [torch.linalg.det(kind(3, seed=seed).weight) for seed in range(8)]
    assert torch.allclose(torch.stack(determinants), torch.ones(8), atol=1e-5)


# LU


def test_lu_is_the_product_of_its_factors():
    layer = build(LULinear, 4, seed=3)
    entries, log_scale = 2 * torch.tanh(layer.raw / 2), layer.raw.diagonal().asinh()
    lower, upper = entries.tril(-1) + torch.eye(4), entries.triu(1) + torch.eye(4)
    rotation = LULinear(4, seed=3).double().weight
    expected = rotation @ lower @ upper @ torch.diag(log_scale.exp())
    assert relative_error(layer.weight, expected) < 1e-12
    assert relative_error(torch.linalg.slogdet(layer.weight).logabsdet, log_scale.sum()) < 1e-12


def test_a_rotation_made_in_single_precision_is_one_in_double():
    weight = LULinear(20, seed=0).double().weight
    assert relative_error(weight @ weight.mT, torch.eye(20, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("size", [2, 16, 32])
@pytest.mark.parametrize("noise", [20.0, 1e4])
def test_raw_numbers_of_any_size_leave_it_finite(size, noise):
    # entries at their bounds, signs at random: the condition number grows as a power of the size
    layer = randomise(LULinear(size, seed=0), noise)
    x = (1e6 * torch.randn(5, size)).requires_grad_()
    for method in directions(layer):
        y, log_det = method(x)
        gradients = torch.autograd.grad(y.sum() + log_det.sum(), [x, layer.raw])
        assert all(part.isfinite().all() for part in (y, log_det, *gradients))


@pytest.mark.parametrize("kind", [LULinear, PlainLinear])
def test_a_linear_layer_learns_a_covariance(kind):
    covariance = torch.tensor([[2.0, 1.2, -0.4], [1.2, 1.0, 0.1], [-0.4, 0.1, 0.5]], dtype=torch.float64)
    target = dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
    layer = kind(3, seed=0).double()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300, max_eval=600, line_search_fn="strong_wolfe")

    def loss():
        # the Kullback-Leibler divergence of two centred normals
        optimizer.zero_grad()
        weight = layer.weight
        trace = torch.trace(torch.linalg.solve(weight @ weight.mT, covariance))
        log_det = layer.forward_and_log_det(torch.zeros(3, dtype=torch.float64))[1]
        value = 0.5 * (trace - 3 + 2 * log_det - torch.logdet(covariance))
        value.backward()
        return value

    assert loss() > 0.1
    optimizer.step(loss)
    assert loss() < 1e-8
    x = target.sample((4,))
    learned = dist.TransformedDistribution(dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0), [layer])
    assert relative_error(learned.log_prob(x), target.log_prob(x)) < 1e-3


# Householder


def test_householder_is_the_product_of_its_reflections():
    layer = build(HouseholderLinear, 5, num_reflections=4)
    expected = torch.eye(5, dtype=torch.float64)
    for v in layer.vectors:
        expected = expected @ (torch.eye(5, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v))
    assert relative_error(layer.weight, expected) < 1e-12


@pytest.mark.parametrize(("size", "count"), [(64, 64), (64, 200), (2, 101), (1, 2)])
@pytest.mark.parametrize("alike", [False, True])
def test_many_reflections_stay_orthogonal_in_single_precision(size, count, alike):
    layer = randomise(HouseholderLinear(size, count), 1.0)
    if alike:  # the worst case for a product that is taken at once
        layer.vectors.data = layer.vectors.data[:1] + 1e-3 * layer.vectors.data
    weight = layer.weight.double()
    assert relative_error(weight @ weight.mT, torch.eye(size, dtype=torch.float64)) < 2e-6


@pytest.mark.parametrize("length", [1e-37, 1e-20, 1e-3, 1e4, 1e30])
def test_the_length_of_a_reflections_vector_does_not_matter(length):
    layer = HouseholderLinear(4, 3, seed=1)
    expected = layer.weight
    layer.vectors.data *= length
    assert torch.allclose(layer.weight, expected, atol=1e-5)


def test_a_vector_of_zero_reflects_nothing():
    layer = HouseholderLinear(4, 3, seed=1)
    with torch.no_grad():
        layer.vectors[1] = 0.0
    first, _, last = layer.vectors.detach()
    twin = HouseholderLinear(4, 2)
    twin.vectors.data = torch.stack([first, last])
    assert torch.allclose(layer.weight, twin.weight, atol=1e-6)
    layer(torch.ones(4)).square().sum().backward()
    assert layer.vectors.grad.isfinite().all()


def test_an_odd_number_of_equal_pairs_starts_as_one_reflection():
    weight = HouseholderLinear(4, 5).weight
    eigenvalues = torch.linalg.eigvalsh(0.5 * (weight + weight.mT))
    assert torch.allclose(eigenvalues, torch.tensor([-1.0, 1.0, 1.0, 1.0]), atol=1e-5)


def test_pairs_that_start_equal_can_be_learned():
    layer = HouseholderLinear(3)
    layer(torch.randn(5, 3)).pow(3).sum().backward()
    assert (layer.vectors.grad.abs().amax(-1) > 1e-3).all()


# Plain


def test_a_singular_weight_is_an_error_and_not_a_number():
    layer = PlainLinear(2)
    layer.weight.data.zero_()
    with pytest.raises(RuntimeError, match="singular"):
        layer.inverse_and_log_det(torch.ones(2))


# Learned permutations


def test_scores_sort_the_entries():
    layer = randomise(LearnedPermutation(6), 1.0)
    x = torch.arange(6.0)
    assert torch.equal(layer(x), layer.scores.argsort().to(x.dtype))
    assert torch.equal(layer.inv(layer(x).clone()), x)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_learned_permutation_starts_as_the_identity_or_in_an_order_of_its_seed(seed):
    order, again = (LearnedPermutation((2, 4), seed=seed)(torch.arange(8.0).reshape(2, 4)) for _ in range(2))
    assert torch.equal(order, again)
    assert torch.equal(order.flatten(), torch.arange(8.0)) == (seed is None)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_are_exact_in_the_input_and_those_of_softsort_in_the_scores(inverse):
    layer = build(LearnedPermutation, 5, noise=1.0, temperature=0.7)
    x, weights = torch.randn(2, 5, dtype=torch.float64)
    x.requires_grad_()
    found = torch.autograd.grad((layer.inv if inverse else layer)(x) @ weights, [x, layer.scores])
    scores = layer.scores.detach().requires_grad_()
    soft = torch.softmax(-(scores.sort().values[:, None] - scores[None, :]).abs() / 0.7, -1)
    hard = torch.eye(5, dtype=torch.float64)[scores.argsort()]
    soft, hard = (soft.mT, hard.mT) if inverse else (soft, hard)
    (expected,) = torch.autograd.grad(soft @ x.detach() @ weights, scores)
    assert relative_error(found[0], hard.mT @ weights) < 1e-12
    assert relative_error(found[1], expected) < 1e-12 and expected.abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_learning_finds_the_order_that_lowers_a_loss(seed):
    hidden = LearnedPermutation(6, seed=100 + seed)
    layer = LearnedPermutation(6)
    x = torch.randn(64, 6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (layer(x) - hidden(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
    assert not torch.equal(hidden(x), x)
    assert torch.equal(layer(x), hidden(x))


# Function transforms and compilation


@pytest.mark.parametrize("name", [name for name in LINEAR_CASES if not name.startswith("inverse")])
def test_compiles_without_graph_breaks(name):
    torch.manual_seed(0)
    layer = randomise(LINEAR_CASES[name]().double(), 0.3)
    x = torch.randn(5, *layer.event_shape, dtype=torch.float64)
    for method in directions(layer):
        torch._dynamo.reset()
        found = torch.compile(method, fullgraph=True, backend="eager")(x)
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(found, method(x), strict=True))


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_a_matrix_whose_determinant_is_stated(kind, dtype):
    layer = randomise(kind((3, 4), dim=-2), 0.3)
    x = torch.randn(50, 3, 4)
    methods = [*directions(layer), lambda z: layer.forward_and_score(z, -z)]
    for method in methods:
        expected = method(x)
        with torch.autocast("cpu", dtype=dtype):
            assert all(map(torch.equal, method(x), expected))
            assert method(x.to(dtype))[0].dtype == torch.float32


@kinds
def test_jacrev_and_functional_call(kind):
    layer = build(kind, 3)
    x = torch.randn(3, dtype=torch.float64)
    assert relative_error(torch.func.jacrev(lambda z: layer.forward_and_log_det(z)[0])(x), layer.weight) < 1e-12
    twice = {name: 2 * p for name, p in layer.named_parameters()}
    changed = torch.func.functional_call(layer, twice, (x,))
    layer.load_state_dict(twice, strict=False)
    assert torch.equal(changed, layer(x))


# Arguments


INVALID = [
    (lambda: LULinear((3, 4), dim=-3), ValueError, r"LULinear: dim.*-2 to -1.*\(3, 4\).*-3"),
    (lambda: PlainLinear(3, dim=0), ValueError, "PlainLinear: dim"),
    (lambda: HouseholderLinear(3, dim=1), ValueError, "HouseholderLinear: dim"),
    (lambda: LULinear(0), ValueError, "event_shape"),
    (lambda: LULinear("3"), TypeError, "event_shape"),
    (lambda: LULinear(3, bound=0.0), ValueError, "LULinear: bound"),
    (lambda: HouseholderLinear(3, 0), ValueError, "num_reflections"),
    (lambda: conv1x1((3,)), ValueError, r"conv1x1: event_shape.*\(3,\)"),
    (lambda: conv1x1(3), ValueError, "conv1x1: event_shape"),
    (lambda: LearnedPermutation(3, temperature=0.0), ValueError, "LearnedPermutation: temperature"),
    (lambda: LearnedPermutation(()), ValueError, "event_shape"),
]


@pytest.mark.parametrize(("invalid", "error", "message"), INVALID)
def test_an_invalid_argument_is_named(invalid, error, message):
    with pytest.raises(error, match=message):
        invalid()
