"""The recipes: where they start, what they share, how they split, what they refuse, that they learn."""

import inspect
import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_coupling import flows
from pyro_coupling.nn import MLP, Constant
from pyro_coupling.transforms import Bijection, ClampScale, Coupling, DiagonalAffine, LULinear, Permutation

RECIPES = [getattr(flows, name) for name in ("nice", "real_nvp", "neural_spline")]
MASKS = ["random", "halves", "alternating"]

recipes = pytest.mark.parametrize("recipe", RECIPES)
masks = pytest.mark.parametrize("mask", MASKS)
SMALL = {"num_layers": 4, "hidden_dims": (8,)}


def couplings(flow):
    """The couplings with a network; those that move the other part as well depend on nothing."""
    alone = [isinstance(part, Coupling) and isinstance(part.conditioner, Constant) for part in flow]
    return [part for part, skip in zip(flow, alone, strict=True) if isinstance(part, Coupling) and not skip]


def permutations(flow):
    return [part.permutation.tolist() for part in flow if isinstance(part, Permutation)]


def moved(flow):
    """For each coupling the set of entries of the base noise that it moves."""
    order, sets = torch.arange(flow.event_shape.numel()), []
    for part in flow:
        if isinstance(part, Permutation):
            order = order[part.permutation]
        if isinstance(part, Coupling) and (part.partition.num_staying == 0 or part in couplings(flow)):
            sets.append(set(order[part.partition.order[part.partition.num_staying :]].tolist()))
    return sets


@recipes
@masks
@pytest.mark.parametrize("num_layers", [1, 4, 5])
@pytest.mark.parametrize("event", [1, 2, 5, (2, 3)], ids=str)
def test_starts_as_the_identity(recipe, mask, num_layers, event):
    flow = recipe(event, num_layers, (8,), mask=mask).double()
    x = torch.randn(7, *flow.event_shape, dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    assert torch.allclose(y, x, atol=1e-12) and torch.allclose(log_det, torch.zeros(7).double(), atol=1e-12)


@recipes
@pytest.mark.parametrize("event", [1, 4, (2, 3)], ids=str)
@pytest.mark.parametrize("batch", [(), (7,), (0,), (2, 3)])
def test_shapes(recipe, event, batch):
    for context_dim in (0, 2):
        flow = recipe(event, context_dim=context_dim, **SMALL).condition(torch.ones(2))
        x = torch.randn(*batch, *flow.event_shape)
        assert flow(x).shape == flow.inv(x).shape == x.shape
        assert flow.forward_and_log_det(x)[1].shape == batch


def test_recipes_share_their_first_arguments():
    shared = {"input_dim": inspect.Parameter.empty, "num_layers": 8, "hidden_dims": (64, 64), "context_dim": 0}
    for recipe in RECIPES:
        parameters = list(inspect.signature(recipe).parameters.values())
        assert {p.name: p.default for p in parameters[:4]} == shared
        assert all(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters[4:])


@recipes
def test_recipes_share_their_keywords(recipe):
    settings = {"mask": "halves", "seed": 3, "separate": True, "both": False, "linear": False, "outer_affine": False}
    flow = recipe(3, activation=nn.Tanh, **settings, **SMALL)
    assert len(couplings(flow)) == len(flow) == 4
    assert sum(isinstance(part, nn.Tanh) for part in flow.modules()) == 4 * couplings(flow)[0].elementwise.num_params
    with pytest.raises(TypeError, match="num_blocks"):
        recipe(3, num_blocks=2)


def test_own_keywords_reach_the_elementwise_map():
    assert couplings(flows.real_nvp(3, scale=ClampScale(-1, 1)))[0].elementwise.scale == ClampScale(-1, 1)
    spline = couplings(flows.neural_spline(3, num_bins=5, bound=2.0))[0].elementwise
    assert (spline.num_bins, spline.bound) == (5, 2.0)


@recipes
def test_ends_in_a_learned_location_and_scale(recipe):
    assert isinstance(recipe(3, **SMALL)[-1], DiagonalAffine)
    assert not any(isinstance(part, DiagonalAffine) for part in recipe(3, outer_affine=False, **SMALL))


@recipes
@masks
@pytest.mark.parametrize("event", [2, 5, (2, 3)], ids=str)
def test_every_second_mask_is_the_complement_of_the_one_before(recipe, mask, event):
    flow = recipe(event, mask=mask, **SMALL)
    everything = set(range(flow.event_shape.numel()))
    first, second, third, fourth = moved(flow)
    assert everything - first == second and everything - third == fourth
    assert all(moved(flow))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("event", [2, 3, 4])
def test_no_random_layer_moves_what_the_one_before_has_moved(event, seed):
    sets = moved(flows.real_nvp(event, 12, (8,), seed=seed))
    assert all(first != second for first, second in itertools.pairwise(sets))


def test_a_layer_of_a_neural_spline_moves_both_parts():
    flow = flows.neural_spline(4, 1, (8,), outer_affine=False).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.linspace(-1, 1, 4).double()
    assert (flow(x) != x).all()


def test_hidden_layers_of_a_neural_spline_keep_the_size_of_a_signal():
    torch.manual_seed(0)
    flow = flows.neural_spline(100, 2, (256, 256), both=False)
    for network in (part for part in flow.modules() if isinstance(part, MLP)):
        hidden = torch.randn(500, 50)
        for layer in list(network)[:-1]:
            hidden = layer(hidden)
        assert 0.5 < hidden.square().mean().sqrt() < 2


def test_kinks_of_a_neural_spline_start_where_the_base_has_its_mass():
    torch.manual_seed(0)
    first = next(part for part in flows.neural_spline(2, 1, (400,)).modules() if isinstance(part, MLP))[0]
    kinks = -first.bias / first.weight.squeeze(-1)
    # standard normal: standard errors of mean and variance of 400 draws are 0.05 and 0.07, bounds are five of them
    assert kinks.mean().abs() < 0.25
    assert (kinks.var() - 1).abs() < 0.35


def test_splines_stand_between_linear_maps_where_there_are_few_dimensions():
    def number(input_dim, **settings):
        flow = flows.neural_spline(input_dim, 2, (4,), **settings)
        return sum(isinstance(part, LULinear) for part in flow)

    assert number(3) == number(64) == number(65, linear=True) == 2
    assert number(65) == number(1) == number((2, 3)) == number(3, linear=False) == 0
    with pytest.raises(ValueError, match=r"linear.*\(2, 3\)"):
        number((2, 3), linear=True)


def test_one_dimension_is_moved_by_every_layer():
    assert moved(flows.real_nvp(1, **SMALL)) == [{0}] * 4


def test_random_masks_differ_between_pairs_and_seeds():
    first, again, other = (flows.nice(12, seed=seed, **SMALL) for seed in (0, 0, 1))
    assert moved(first) == moved(again) != moved(other)
    assert moved(first)[0] != moved(first)[2]
    assert permutations(first) != permutations(other)


def test_random_masks_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    Permutation.random(12)
    assert torch.equal(torch.get_rng_state(), state)


@masks
def test_depth_mixes_every_pair_of_dimensions(mask):
    flow = flows.real_nvp(6, 8, (8,), mask=mask).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    assert (torch.autograd.functional.jacobian(flow, torch.randn(6).double()) != 0).all()


INVALID = [
    ({"input_dim": 0}, "input_dim"),
    ({"input_dim": ()}, "input_dim"),
    ({"input_dim": (2, 0)}, "input_dim"),
    ({"num_layers": 0}, "num_layers"),
    ({"hidden_dims": (8, 0)}, "hidden_dims"),
    ({"context_dim": -1}, "context_dim"),
    ({"mask": "checkerboard"}, "mask.*checkerboard"),
]


@recipes
@pytest.mark.parametrize(("invalid", "message"), INVALID)
def test_an_invalid_argument_is_named(recipe, invalid, message):
    with pytest.raises(ValueError, match=message):
        recipe(**{"input_dim": 3, **invalid})


@pytest.mark.parametrize(("invalid", "message"), [({"num_bins": 1}, "num_bins"), ({"bound": -1.0}, "bound")])
def test_an_invalid_setting_of_the_spline_is_named(invalid, message):
    with pytest.raises(ValueError, match=message):
        flows.neural_spline(3, **invalid)


# Circular flows

CIRCULAR = [True, False, True]


def circular(**kwargs):
    torch.manual_seed(0)
    flow = flows.circular_spline(3, 4, (8,), circular=CIRCULAR, num_bins=4, **kwargs).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return flow


def test_angles_stay_on_their_circle_and_numbers_leave_it():
    y = circular()(10 * torch.randn(500, 3, dtype=torch.float64))
    assert (y[:, [0, 2]].abs() <= math.pi).all() and y[:, 1].abs().max() > 10


@pytest.mark.parametrize("angle", [0, 2])
def test_a_turn_of_an_angle_changes_nothing(angle):
    flow, x = circular(), torch.randn(50, 3, dtype=torch.float64)
    turned = x.clone()
    turned[:, angle] += 2 * math.pi
    for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
        (y, log_det), (other, same) = method(x), method(turned)
        apart = (y - other).abs()
        apart[:, [0, 2]] = torch.minimum(apart, 2 * math.pi - apart)[:, [0, 2]]
        assert apart.max() < 1e-9 and torch.allclose(log_det, same, atol=1e-9)


def test_the_density_of_angles_has_no_seam():
    flow = circular()
    density = dist.TransformedDistribution(flows.base_distribution(flow, circular=CIRCULAR), [flow])
    x = torch.randn(50, 3, dtype=torch.float64)
    left, right = x.clone(), x.clone()
    left[:, 0], right[:, 0] = -math.pi + 1e-9, math.pi - 1e-9
    assert torch.allclose(density.log_prob(left), density.log_prob(right), atol=1e-6)


def test_the_density_of_two_angles_has_mass_one():
    torch.manual_seed(0)
    flow = flows.circular_spline(2, 4, (8,), num_bins=4).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    density = dist.TransformedDistribution(flows.base_distribution(flow, circular=[True, True]), [flow])
    side = (torch.arange(400, dtype=torch.float64) + 0.5) / 400 * 2 * math.pi - math.pi
    mass = density.log_prob(torch.cartesian_prod(side, side)).exp().mean() * (2 * math.pi) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)  # the midpoint rule across the kinks of splines


def test_a_circular_flow_starts_as_the_identity_on_its_circle():
    flow = flows.circular_spline(3, 4, (8,), circular=CIRCULAR).double()
    x = torch.tensor([3.0, 5.0, -3.0], dtype=torch.float64)
    assert torch.allclose(flow(x), x) and torch.allclose(flow.forward_and_log_det(x)[1], torch.zeros(()).double())


def test_a_circular_flow_takes_context():
    flow = circular(context_dim=2)
    x = torch.randn(5, 3, dtype=torch.float64)
    first, second = (flow.condition(c * torch.ones(2, dtype=torch.float64))(x) for c in (0.0, 6 * math.pi))
    assert not torch.allclose(first, second)  # a context is no angle


def test_circular_must_have_an_entry_for_each_dimension():
    with pytest.raises(ValueError, match=r"circular.*3 dimensions, got 2"):
        flows.circular_spline(3, circular=[True, False])


@recipes
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_memory_modes_are_a_keyword_of_every_recipe(recipe, mode):
    assert getattr(recipe(3, **{mode: True}), mode)


def negative_log_likelihood(flow: Bijection, x):
    z, log_det = flow.inverse_and_log_det(x)
    return (0.5 * z.square().sum(-1) + math.log(2 * math.pi) - log_det).mean()


@recipes
def test_a_fit_by_maximum_likelihood_beats_the_best_gaussian(recipe):
    def draw(n):
        a = torch.randn(n)
        return torch.stack([a, a.square() + 0.5 * torch.randn(n)], -1)

    flow = recipe(2, 4, (16,))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        negative_log_likelihood(flow, draw(256)).backward()
        optimizer.step()
    test = draw(5000)
    gaussian = math.log(2 * math.pi) + 1 + 0.5 * torch.logdet(test.T.cov()).item()
    # the truth is 1.1 nats better; the standard error of either number is 0.02
    assert negative_log_likelihood(flow, test).item() < gaussian - 0.5
