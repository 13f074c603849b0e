"""Toy energies: formulas, forces, symmetries and the answers that are known exactly."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erfc
from scipy.stats import kstest

from pyro_coupling.boltzmann.energies import (
    DW4,
    DoubleWell,
    Energy,
    LatticePhi4,
    LennardJones,
    LennardJones13,
    LennardJones55,
    ManyWell,
    MullerBrown,
    RegularisedEnergy,
)

ENERGIES = [
    DoubleWell(),
    DoubleWell(3),
    ManyWell(6),
    MullerBrown(),
    DW4(),
    DW4(a=0.3, tau=2.0),
    LennardJones13(),
    LennardJones(5, epsilon=2.0, r_m=1.3, oscillator=0.0, dims=2),
    LatticePhi4((3, 4)),
    LatticePhi4((2, 5), mass_squared=1.0, coupling=0.0),
    RegularisedEnergy(LennardJones13(), cut=5.0, cap=1e3),
]
CLUSTERS = [DW4(), LennardJones13(), LennardJones(5, oscillator=0.0, dims=2)]


def name(energy):
    return repr(energy).replace("\n", "")


def configurations(energy, *batch, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return 1.2 * torch.randn(*batch, *energy.event_shape, dtype=dtype, generator=generator)


@pytest.mark.parametrize("energy", ENERGIES, ids=name)
class TestEveryEnergy:
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
    def test_returns_one_number_for_each_configuration(self, energy, batch):
        x = configurations(energy, *batch)
        value, force = energy.energy_and_force(x)
        assert energy(x).shape == value.shape == batch
        assert force.shape == x.shape
        assert not value.requires_grad and not force.requires_grad

    def test_batch_is_its_rows(self, energy):
        x = configurations(energy, 4)
        assert torch.allclose(energy(x), torch.stack([energy(row) for row in x]), rtol=1e-13)

    def test_force_is_minus_the_gradient(self, energy):
        x = configurations(energy, 3).requires_grad_()
        assert torch.autograd.gradcheck(energy, x)
        gradient = torch.autograd.grad(energy(x).sum(), x)[0]
        value, force = energy.energy_and_force(x)
        assert torch.allclose(value, energy(x).detach(), rtol=1e-14)
        assert torch.allclose(force, -gradient, rtol=1e-12, atol=1e-12 * gradient.abs().max().item())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype_follows_the_input(self, energy, dtype):
        x = configurations(energy, 5)
        value, force = energy.energy_and_force(x.to(dtype))
        assert value.dtype == force.dtype == dtype
        # sums of some hundred terms, the largest far above their sum, each rounded once or a few times
        assert torch.allclose(value.double(), energy(x.to(dtype).double()), rtol=1e3 * torch.finfo(dtype).eps)

    def test_device_follows_the_input(self, energy):
        x = configurations(energy, 5).to("meta")
        assert energy(x).device.type == "meta"

    def test_wrong_shape_is_refused_by_name(self, energy):
        wrong = torch.zeros(7, *[n + 1 for n in energy.event_shape])
        shapes = [re.escape(str(tuple(shape))) for shape in (energy.event_shape, wrong.shape)]
        with pytest.raises(ValueError, match=f"{type(energy).__name__}.*{shapes[0]}.*{shapes[1]}"):
            energy(wrong)
        with pytest.raises(ValueError, match=type(energy).__name__):
            energy.energy_and_force(torch.zeros(()))

    def test_integers_are_refused(self, energy):
        for method in (energy, energy.energy_and_force):
            with pytest.raises(TypeError, match="floating-point"):
                method(torch.zeros(energy.event_shape, dtype=torch.int64))


def test_a_users_energy_is_checked_like_ours():
    class Flat(Energy):
        def energy(self, x):
            return x.sum(-1)

    with pytest.raises(ValueError, match=r"Flat.*\(2,\).*\(5, 3\)"):
        Flat((2,))(torch.zeros(5, 3))


# Formulas


def test_wells_are_the_polynomial_and_a_parabola():
    x = configurations(ManyWell(4), 9)
    blocks = sum(x[:, i] ** 4 - 6 * x[:, i] ** 2 - x[:, i] / 2 + x[:, i + 1] ** 2 / 2 for i in (0, 2))
    assert torch.allclose(ManyWell(4)(x), blocks)
    assert torch.allclose(ManyWell(2)(x[:, :2]), DoubleWell()(x[:, :2]))


def test_muller_brown_has_the_minima_and_saddles_of_the_paper():
    energy = MullerBrown(scale=1.0)
    value, force = energy.energy_and_force(energy.minima)
    assert torch.allclose(value, torch.tensor([-146.700, -108.167, -80.768], dtype=value.dtype), atol=5e-4)
    assert force.abs().max() < 1e-6  # curvatures reach 4000, and the positions are given to 1e-10
    assert all(torch.linalg.eigvalsh(torch.func.hessian(energy)(x)).min() > 0 for x in energy.minima)
    saddles = torch.tensor([[-0.8220, 0.6243], [0.2125, 0.2930]], dtype=torch.float64)
    assert torch.allclose(energy(saddles), torch.tensor([-40.665, -72.249], dtype=torch.float64), atol=1e-3)


def test_dw4_is_half_the_sum_over_ordered_pairs():
    x = configurations(DW4())
    offset = torch.cdist(x, x)[~torch.eye(4, dtype=torch.bool)] - 4.0
    assert torch.allclose(DW4()(x), 0.5 * (-4 * offset**2 + 0.9 * offset**4).sum())
    linear = DW4(a=0.7, tau=3.0)(x) - DW4(tau=3.0)(x)
    assert torch.allclose(linear, 0.5 * 0.7 * offset.sum() / 3.0)


def test_lennard_jones_is_half_the_sum_over_ordered_pairs_and_the_springs():
    energy = LennardJones(6, epsilon=1.5, r_m=0.8, oscillator=0.4)
    x = configurations(energy)
    ratio = 0.8 / torch.cdist(x, x)[~torch.eye(6, dtype=torch.bool)]
    springs = 0.5 * 0.4 * (x - x.mean(0)).square().sum()
    assert torch.allclose(energy(x), 0.5 * 1.5 * (ratio**12 - 2 * ratio**6).sum() + springs)


def icosahedron():
    golden = (1 + math.sqrt(5)) / 2
    edge = [(0.0, s, t * golden) for s in (-1, 1) for t in (-1, 1)]
    points = [p[i:] + p[:i] for p in edge for i in range(3)]
    return torch.tensor([(0.0, 0.0, 0.0), *points], dtype=torch.float64) / math.hypot(1, golden)


def test_thirteen_particles_are_lowest_as_an_icosahedron():
    radius = torch.linspace(0.95, 0.98, 3001, dtype=torch.float64)
    energies = LennardJones13(oscillator=0.0)(radius.reshape(-1, 1, 1) * icosahedron())
    assert energies.min().item() == pytest.approx(-44.326801, abs=1e-5)


def test_sizes_of_the_clusters():
    assert LennardJones13().event_shape == (13, 3)
    assert LennardJones55().event_shape == (55, 3)
    assert DW4().event_shape == (4, 2)


@pytest.mark.parametrize("energy", CLUSTERS, ids=name)
def test_clusters_can_be_moved_turned_and_renumbered(energy):
    x = configurations(energy, 3)
    turn = torch.linalg.qr(torch.randn(x.size(-1), x.size(-1), dtype=x.dtype)).Q
    moved = (x @ turn + 3.0)[:, torch.randperm(x.size(1))]
    assert torch.allclose(energy(moved), energy(x), rtol=1e-9)


def test_dw4_has_a_finite_force_where_particles_coincide():
    assert DW4().energy_and_force(torch.zeros(4, 2))[1].isfinite().all()


def test_the_action_counts_each_link_of_the_torus_once():
    energy = LatticePhi4((3, 4), mass_squared=0.7, coupling=0.2)
    x = configurations(energy)
    links = sum(
        (x[i, j] - x[(i + 1) % 3, j]) ** 2 + (x[i, j] - x[i, (j + 1) % 4]) ** 2 for i in range(3) for j in range(4)
    )
    assert torch.allclose(energy(x), links + (0.7 * x**2 + 0.2 * x**4).sum())


# Known answers


def well_integral(thermal, low=-math.inf, high=math.inf):
    cuts = [low, *[cut for cut in (-2.5, -1.5, 0.0, 1.5, 2.5) if low < cut < high], high]
    pieces = itertools.pairwise(cuts)
    return sum(
        quad(
            lambda x: math.exp(-(x**4 - 6 * x**2 - x / 2) / thermal), max(a, -9.0), min(b, 9.0), epsabs=0, epsrel=1e-12
        )[0]
        for a, b in pieces
    )


@pytest.mark.parametrize("thermal", [0.3, 1.0, 7.0])
def test_log_z_of_wells_is_that_of_adaptive_quadrature(thermal):
    well, spring = math.log(well_integral(thermal)), 0.5 * math.log(2 * math.pi * thermal)
    assert DoubleWell(3).log_z(thermal) == pytest.approx(well + 2 * spring, abs=1e-10)
    assert ManyWell(32).log_z(thermal) == pytest.approx(16 * (well + spring), abs=1e-9)


def test_log_z_of_wells_at_low_temperature_is_laplaces():
    energy, thermal = DoubleWell(1), 1e-4
    bottom = torch.tensor([energy._bends[2]], dtype=torch.float64)
    curvature = (12 * bottom**2 - 12).item()
    laplace = -energy(bottom).item() / thermal + 0.5 * math.log(2 * math.pi * thermal / curvature)
    assert energy.log_z(thermal) == pytest.approx(
        laplace, abs=1e-5
    )  # the next term of the expansion is about thermal / 30


def gauss_legendre(low, high, nodes=600):
    x, weights = np.polynomial.legendre.leggauss(nodes)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (x + 1)), torch.from_numpy(half * weights)


@pytest.mark.parametrize("thermal", [0.3, 1.0, 10.0, 1e4])
def test_log_z_of_muller_brown_is_that_of_another_rule_on_a_larger_domain(thermal):
    (x, along_x), (y, along_y) = gauss_legendre(-7.0, 5.0), gauss_legendre(-5.0, 7.0)
    log_factor = -MullerBrown()(torch.cartesian_prod(x, y)) / thermal
    log_z = torch.logsumexp(log_factor + torch.outer(along_x, along_y).flatten().log(), 0)
    assert MullerBrown().log_z(thermal) == pytest.approx(log_z.item(), abs=1e-8)


def test_log_z_of_muller_brown_is_refused_where_the_grid_is_too_coarse():
    with pytest.raises(ValueError, match="too small"):
        MullerBrown().log_z(1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (3, 4), (8, 8)])
def test_log_z_of_the_free_field_is_the_gaussian_integral(shape):
    energy = LatticePhi4(shape, mass_squared=0.6, coupling=0.0)
    flat = torch.zeros(energy.event_shape.numel(), dtype=torch.float64)
    stiffness = torch.func.hessian(lambda x: energy(x.reshape(shape)))(flat)
    expected = 0.5 * (len(flat) * math.log(2 * math.pi * 0.7) - torch.linalg.slogdet(stiffness).logabsdet.item())
    assert energy.log_z(0.7) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("thermal", [0.5, 1.0])
def test_log_z_of_four_sites_is_the_sum_over_a_grid(thermal):
    energy = LatticePhi4((2, 2))
    grid = torch.linspace(-1.65, 1.65, 28, dtype=torch.float64)
    factor = -energy(torch.cartesian_prod(*[grid] * 4).reshape(-1, 2, 2)) / thermal
    expected = torch.logsumexp(factor, 0) + 4 * (grid[1] - grid[0]).log()
    assert energy.log_z(thermal) == pytest.approx(expected.item(), abs=1e-7)


def test_log_z_of_a_narrow_lattice_joins_that_of_the_free_field():
    free, weak = (LatticePhi4((5, 1), mass_squared=1.0, coupling=c) for c in (0.0, 1e-9))
    # first order: coupling * sites * <phi^4>, and <phi^2> is below 1 / (2 m^2)
    assert weak.log_z() == pytest.approx(free.log_z(), abs=1e-8)
    assert LatticePhi4((5, 1)).log_z() == LatticePhi4((1, 5)).log_z()


def test_log_z_is_refused_where_no_exact_way_is_known():
    with pytest.raises(ValueError, match=r"width 1 or 2.*\(6, 6\)"):
        LatticePhi4((6, 6)).log_z()


@pytest.mark.parametrize("energy", [DoubleWell(), ManyWell(4), MullerBrown(), LatticePhi4((2, 2))], ids=name)
@pytest.mark.parametrize("thermal", [0.0, -1.0, math.nan, math.inf])
def test_log_z_refuses_temperatures_that_are_none(energy, thermal):
    with pytest.raises(ValueError, match=f"{type(energy).__name__}: kT must be a positive finite number"):
        energy.log_z(thermal)


@pytest.mark.parametrize("thermal", [0.1, 1.0, 5.0])
def test_mode_weights_are_the_integrals_of_either_side(thermal):
    barrier = DoubleWell()._bends[1]
    right = well_integral(thermal, low=barrier) / well_integral(thermal)
    assert DoubleWell().mode_weights(thermal).tolist() == pytest.approx([1 - right, right], abs=1e-10)
    three = ManyWell(6).mode_weights(thermal)
    bits = [[(mode >> i) & 1 for i in range(3)] for mode in range(8)]
    assert three.tolist() == pytest.approx([math.prod([1 - right, right][b] for b in row) for row in bits], abs=1e-10)


def test_modes_are_numbered_by_the_sides_of_the_wells():
    x = torch.tensor(
        [[-1.7, 9.0, -1.7, 9.0, -1.7, 0.0], [1.7, 0.0, -1.7, 0.0, -1.7, 0.0], [-1.7, 0.0, 1.7, 0.0, 1.7, 0.0]]
    )
    assert ManyWell(6).modes(x).tolist() == [0, 1, 6]
    assert DoubleWell(6).modes(x).tolist() == [0, 1, 0]


def test_too_many_modes_for_a_table_are_refused():
    assert ManyWell(32).mode_weights().shape == (2**16,)
    with pytest.raises(ValueError, match="too many"):
        ManyWell(64).mode_weights()


@pytest.mark.parametrize("thermal", [0.3, 1.0])
def test_samples_have_the_distribution_of_the_wells(thermal):
    num = 20_000
    x = ManyWell(4).sample(num, thermal, torch.Generator().manual_seed(3)).double()
    edges, masses, _ = ManyWell(4)._cells(thermal)
    cdf = np.append(0.0, masses.cumsum()) / masses.sum()
    for i, distribution in (
        (0, lambda v: np.interp(v, edges, cdf)),
        (3, lambda v: 1 - erfc(v / (2 * thermal) ** 0.5) / 2),
    ):
        assert kstest(x[:, i].numpy(), distribution).pvalue > 1e-3
    counts = torch.bincount(ManyWell(4).modes(x), minlength=4)
    weights = ManyWell(4).mode_weights(thermal)
    error = (weights * (1 - weights) / num).sqrt()
    assert ((counts / num - weights).abs() < 4 * error).all()


def test_samples_follow_seed_and_default_dtype():
    draws = [ManyWell(4).sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].equal(draws[1]) and not draws[0].equal(draws[2])
    assert draws[0].dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    assert ManyWell(4).sample(5).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DoubleWell(0), "DoubleWell: dim"),
        (lambda: DoubleWell(b=1.0), "two minima"),
        (lambda: DoubleWell(a=30.0), "two minima"),
        (lambda: DoubleWell(c=-1.0), "two minima"),
        (lambda: ManyWell(5), "ManyWell: dim must be even"),
        (lambda: ManyWell(0), "ManyWell: dim must be even"),
        (lambda: MullerBrown(0.0), "scale"),
        (lambda: DW4(tau=0.0), "tau"),
        (lambda: LennardJones(1), "2 particles or more"),
        (lambda: LennardJones(4, epsilon=-1.0), "epsilon"),
        (lambda: LennardJones(4, oscillator=-1.0), "oscillator"),
        (lambda: LatticePhi4((3,)), "shape"),
        (lambda: LatticePhi4((3, 3), coupling=-1.0), "coupling"),
        (lambda: LatticePhi4((3, 3), coupling=0.0), "mass_squared must be positive"),
        (lambda: RegularisedEnergy(DW4(), cut=2.0, cap=1.0), "cut < cap"),
        (lambda: RegularisedEnergy(DW4(), cap=math.inf), "cut < cap"),
    ],
)
def test_arguments_without_a_density_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# Regularisation


class Given(Energy):
    """The energy is the number itself, so that what comes can be chosen; its gradient is infinite from 1e6."""

    def __init__(self):
        super().__init__((1,))

    def energy(self, x):
        return (x * torch.where(x > 1e6, math.inf, 1.0)).squeeze(-1)


def test_regularised_is_linear_then_logarithmic_then_constant():
    energy = RegularisedEnergy(Given(), cut=10.0, cap=1e4)
    value, force = energy.energy_and_force(torch.tensor([[-5.0], [10.0], [13.0], [1e4], [2e4]], dtype=torch.float64))
    top = 10 + math.log(9991)
    assert value.tolist() == pytest.approx([-5, 10, 10 + math.log(4), top, top], rel=1e-14)
    assert force.flatten().tolist() == pytest.approx([-1, -1, -1 / 4, -1 / 9991, 0], rel=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e7])
def test_what_is_not_finite_counts_as_the_cap_and_pulls_nothing(bad):
    energy = RegularisedEnergy(Given(), cut=10.0, cap=1e4)
    x = torch.tensor([[bad], [3.0]], requires_grad=True)
    value, force = energy.energy_and_force(x)
    assert value.tolist() == pytest.approx([10 + math.log(9991), 3.0])
    assert force.tolist() == [[0.0], [-1.0]]
    energy(x).sum().backward()
    assert x.grad.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regularised_is_finite_however_close_atoms_come(dtype):
    energy = RegularisedEnergy(LennardJones13())
    x = configurations(energy, 12, dtype=dtype)
    x[:, 1] = x[:, 0] + torch.logspace(-30, 0, 12, dtype=dtype).unsqueeze(-1) / 10
    x.requires_grad_()
    value, force = energy.energy_and_force(x)
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    assert value.isfinite().all() and value.max() <= 1e8 + math.log(1e20) + 1
    assert torch.allclose(gradient, -force, rtol=1e-4) and force.isfinite().all()
    assert gradient[-1].abs().max() > 0


def test_regularised_goes_through_functional_transforms():
    energy = RegularisedEnergy(LennardJones13(), cut=5.0, cap=1e3)
    x = configurations(energy, 3)
    gradients = torch.func.vmap(torch.func.grad(energy))(x)
    assert torch.allclose(gradients, -energy.energy_and_force(x)[1])
