"""Coordinates of molecules and particles: bijections with the right measure, and bases that start near the minimum."""

import copy
import io
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyro_coupling import flows, load, save
from pyro_coupling.boltzmann.coordinates import CenterFree, InformedBase, InternalCoordinates, Whitening
from pyro_coupling.transforms import Chain

FIXTURES = Path(__file__).parent / "fixtures"


def read_pdb(name):
    """Positions in nm, bonds by distance, elements."""
    lines = [line for line in (FIXTURES / name).read_text().splitlines() if line[:6] in ("ATOM  ", "HETATM")]
    elements = [line[76:78].strip() for line in lines]
    positions = torch.tensor([[float(line[k : k + 8]) / 10 for k in (30, 38, 46)] for line in lines]).double()
    apart = torch.cdist(positions, positions)
    longest = [[0.13 if "H" in (a, b) else 0.17 for b in elements] for a in elements]
    bonds = (apart < torch.tensor(longest)).triu(1).nonzero().tolist()
    return positions, bonds, elements


DIPEPTIDE = read_pdb("alanine_dipeptide.pdb")
TETRAPEPTIDE = read_pdb("ace_ala3_nme.pdb")
WATER = torch.tensor([[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.03, 0.09, 0.0]]).double(), [(0, 1), (0, 2)], "OHH"
PEROXIDE = (
    torch.tensor([[0.0, 0.096, 0.0], [0.0, 0.0, 0.0], [0.146, 0.0, 0.0], [0.15, -0.05, 0.08]]).double(),
    [(0, 1), (1, 2), (2, 3)],
    "HOOH",
)
# a puckered ring with a hydrogen on each atom
RING = (
    torch.tensor(
        [
            [r * math.cos(k * math.pi / 2), r * math.sin(k * math.pi / 2), z * (-1) ** k]
            for r, z in ((0.11, 0.01), (0.2, 0.05))
            for k in range(4)
        ]
    ).double(),
    [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 5), (2, 6), (3, 7)],
    "NNNNHHHH",
)
# dipeptide bonds that a simulation would hold: those of hydrogens, the first of them at a length of its own
HELD = [
    (0, 1, 0.11),
    *((i, j) for i, j in DIPEPTIDE[1] if "H" in (DIPEPTIDE[2][i], DIPEPTIDE[2][j]) and (i, j) != (0, 1)),
]
# rows as one may write them, some about axes whose frames only positions give
BY_HAND = [
    (4, -1, -1, -1), (1, 4, -1, -1), (6, 4, 1, -1), (5, 4, 6, 1), (0, 1, 4, 5), (2, 1, 4, 0), (3, 1, 0, 2),
    (8, 6, 4, 1), (7, 6, 8, 4), (14, 8, 6, 4), (10, 8, 14, 6), (9, 8, 6, 10), (16, 14, 8, 6), (15, 14, 16, 8),
    (11, 10, 8, 9), (12, 10, 8, 11), (13, 10, 8, 12), (18, 16, 14, 8), (17, 16, 18, 14), (19, 18, 16, 14),
    (20, 18, 19, 17), (21, 18, 16, 20),
]  # fmt: skip


def dipeptide(**settings):
    return InternalCoordinates(*DIPEPTIDE, **settings)


INTERNAL = {
    "dipeptide": dipeptide,
    "tetrapeptide": lambda: InternalCoordinates(*TETRAPEPTIDE),
    "both-hands": lambda: dipeptide(restrict_chirality=False),
    "by-hand": lambda: dipeptide(z_matrix=BY_HAND),
    "without-elements": lambda: InternalCoordinates(*DIPEPTIDE[:2]),
    "two-atoms": lambda: InternalCoordinates(WATER[0][:2], [(0, 1)]),
    "three-atoms": lambda: InternalCoordinates(*WATER),
    "three-atoms-in-a-chain": lambda: InternalCoordinates(
        *WATER, z_matrix=[(1, -1, -1, -1), (0, 1, -1, -1), (2, 0, 1, -1)]
    ),
    "four-atoms": lambda: InternalCoordinates(*PEROXIDE),
    "ring": lambda: InternalCoordinates(*RING, angle_width=0.7),
}
FIXED = {
    "fixed-bonds": lambda: dipeptide(fixed_bonds=HELD),
    "fixed-bonds-by-hand": lambda: dipeptide(z_matrix=BY_HAND, fixed_bonds=[(4, 6)]),
}


def whitening(samples=50, shape=(2, 3), dropped=2):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return Whitening.from_samples(3.0 + data * (1.0 + torch.arange(shape[-1])), dropped)


LINEAR = {
    "center-free": lambda: CenterFree(4, 2),
    "center-free-pair": lambda: CenterFree(2, 1),
    "whitening": lambda: whitening(dropped=0),
    "whitening-dropped": whitening,
}
BASES = {
    "base": lambda: InformedBase(
        torch.tensor([0.0, 1.0, -3.0, 2.0, 0.0, 3.1]).double(),
        torch.tensor([math.inf, 0.1, 0.3, 1.0, 3.0, 0.05]).double(),
    ),
}
CASES = {**INTERNAL, **FIXED, **LINEAR, **BASES}
every = pytest.mark.parametrize("name", CASES)


def inputs(bijection, batch=(), dtype=torch.float64, part=0.99):
    """Points of the box, or of a normal where there is none."""
    if isinstance(bijection, InternalCoordinates):
        return (part * math.pi * (2 * torch.rand(*batch, *bijection.event_shape, dtype=torch.float64) - 1)).to(dtype)
    return torch.randn(*batch, *bijection.event_shape, dtype=torch.float64).to(dtype)


def back(bijection, y):
    """The inverse, computed anew even if y has just come out of the bijection."""
    return bijection.inverse_and_log_det(y)[0]


def volume_by_autograd(bijection, x):
    """The logarithm of the volume that the map gives to a unit of volume about x, within its image."""
    jacobian = torch.autograd.functional.jacobian(
        lambda z: bijection.forward_and_log_det(z)[0].flatten(), x, vectorize=True
    )
    return 0.5 * torch.linalg.slogdet(jacobian.mT @ jacobian).logabsdet


def log_det_with_motions(coordinates, x):
    """Log-determinant of the map from coordinates, a rotation vector and a translation to all positions."""
    jacobian = torch.autograd.functional.jacobian(
        lambda z: coordinates.forward_and_log_det(z)[0].flatten(), x, vectorize=True
    )
    positions = coordinates.forward_and_log_det(x)[0]
    axes = torch.eye(3, dtype=x.dtype)
    turns = torch.stack([torch.linalg.cross(axis.expand_as(positions), positions).flatten() for axis in axes], -1)
    shifts = axes.repeat(len(positions), 1)
    return torch.linalg.slogdet(torch.cat([jacobian, turns, shifts], -1)).logabsdet


# What every one of them is: a bijection


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_round_trip(name, dtype, tolerance):
    bijection = CASES[name]()
    x = inputs(bijection, (200,), dtype)
    y, log_det = bijection.forward_and_log_det(x)
    again, opposite = bijection.inverse_and_log_det(y)
    # a base that crowds numbers at an end of its box keeps fewer digits of them
    slack = 1e3 if name in BASES else 1.0
    assert (again - x).abs().max() <= slack * tolerance * math.pi
    assert ((opposite + log_det) / (1 + log_det.abs())).abs().max() <= slack * tolerance
    assert (bijection.forward_and_log_det(again)[0] - y).abs().max() <= tolerance
    assert y.dtype == log_det.dtype == again.dtype == opposite.dtype == dtype


@every
@pytest.mark.parametrize("batch", [(), (0,), (7,), (2, 3)])
def test_batch_shapes(name, batch):
    bijection = CASES[name]()
    x = inputs(bijection, batch)
    y, log_det = bijection.forward_and_log_det(x)
    again, opposite = bijection.inverse_and_log_det(y)
    assert y.shape == batch + bijection.output_shape and again.shape == x.shape
    assert log_det.shape == opposite.shape == batch
    rows = bijection.forward_and_log_det(x.reshape(-1, *bijection.event_shape))[0]
    assert torch.allclose(rows.reshape(y.shape), y, rtol=0, atol=1e-12)


# two atoms turn about two axes only: see test_two_atoms_have_a_sphere_of_orientations
@pytest.mark.parametrize("name", [name for name in INTERNAL if name != "two-atoms"])
def test_log_det_is_that_of_shape_place_and_orientation(name):
    coordinates = INTERNAL[name]()
    for x in inputs(coordinates, (3,)):
        found = coordinates.forward_and_log_det(x)[1]
        assert (found - log_det_with_motions(coordinates, x)).abs() < 1e-10 * (1 + found.abs())


@pytest.mark.parametrize("name", ["dipeptide", "tetrapeptide", "by-hand", "four-atoms"])
def test_log_det_exceeds_that_of_the_frame_by_the_orientations_of_three_atoms(name):
    coordinates = INTERNAL[name]()
    first, second, third = coordinates.z_matrix[:3, 0].tolist()
    others = [atom for atom in range(len(coordinates.z_matrix)) if atom not in (first, second, third)]

    def body_frame(x):
        y = coordinates.forward_and_log_det(x)[0]
        return torch.cat([y[second, :1], y[third, :2], y[others].flatten()])

    x = inputs(coordinates)
    y, log_det = coordinates.forward_and_log_det(x)
    frame = torch.linalg.slogdet(torch.autograd.functional.jacobian(body_frame, x, vectorize=True)).logabsdet
    # r_2 squared, and the distance of the third atom from the axis
    assert (log_det - frame - 2 * y[second, 0].log() - y[third, 1].log()).abs() < 1e-10 * (1 + log_det.abs())


@pytest.mark.parametrize("name", LINEAR)
def test_log_det_of_a_linear_map_is_the_volume_of_its_image(name):
    bijection = LINEAR[name]()
    x = inputs(bijection)
    assert (bijection.forward_and_log_det(x)[1] - volume_by_autograd(bijection, x)).abs() < 1e-10


@pytest.mark.parametrize("name", BASES)
def test_log_det_of_a_base_is_that_of_the_jacobian(name):
    base = BASES[name]()
    x = inputs(base)
    y, found = base.forward_and_log_det(x)
    assert (found - volume_by_autograd(base, x)).abs() < 1e-10
    assert (base.inverse_and_log_det(y)[1] + volume_by_autograd(base, x)).abs() < 1e-10


@every
def test_gradients(name):
    bijection = CASES[name]()
    x = inputs(bijection, (2,)).requires_grad_()
    y = bijection.forward_and_log_det(x)[0].detach().requires_grad_()
    # lengths are small numbers: a step of 1e-6 nm changes an angle by 1e-5
    assert torch.autograd.gradcheck(bijection.forward_and_log_det, x, fast_mode=True, eps=1e-7, atol=1e-4, rtol=1e-4)
    assert torch.autograd.gradcheck(bijection.inverse_and_log_det, y, fast_mode=True, eps=1e-8, atol=1e-4, rtol=1e-4)


@every
def test_score_is_the_gradient_of_the_log_density(name):
    bijection = CASES[name]()
    x = inputs(bijection, (5,))
    y, _, score = bijection.forward_and_score(x, -x)
    leaf = y.detach().requires_grad_()
    z, inverse_log_det = bijection.inverse_and_log_det(leaf)
    (expected,) = torch.autograd.grad((inverse_log_det - 0.5 * z.square().sum(-1)).sum(), leaf)
    assert ((score - expected).abs() <= 1e-7 * (1 + expected.abs().max())).all()
    assert torch.equal(y, bijection.forward_and_log_det(x)[0]) and not score.requires_grad


@every
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["copy", "pickle"])
def test_a_copy_gives_the_same(name, duplicate):
    bijection = CASES[name]()
    x = inputs(bijection, (3,))
    bijection(x)
    same_both_ways(duplicate(bijection), bijection, x)


@every
def test_state_dict_carries_what_is_measured(name):
    bijection = CASES[name]()
    file = io.BytesIO()
    torch.save(bijection.state_dict(), file)
    file.seek(0)
    fresh = CASES[name]()
    for value in fresh.state_dict().values():
        value.zero_()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    same_both_ways(fresh, bijection, inputs(bijection, (3,)))


@every
def test_a_file_brings_it_back(name, tmp_path):
    bijection = CASES[name]()
    save(bijection, tmp_path / "bijection.safetensors")
    loaded = load(tmp_path / "bijection.safetensors")
    assert repr(loaded) == repr(bijection)
    same_both_ways(loaded, bijection, inputs(bijection, (3,)))


def same_both_ways(one, other, x):
    y = other.forward_and_log_det(x)[0]
    assert all(map(torch.equal, one.forward_and_log_det(x), other.forward_and_log_det(x)))
    assert all(map(torch.equal, one.inverse_and_log_det(y), other.inverse_and_log_det(y)))


@every
def test_vmap_equals_the_batch(name):
    bijection = CASES[name]()
    x = inputs(bijection, (5,))
    y = bijection.forward_and_log_det(x)[0]
    for method, given_ in ((bijection.forward_and_log_det, x), (bijection.inverse_and_log_det, y)):
        for found, expected in zip(torch.func.vmap(method)(given_), method(given_), strict=True):
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ring", "center-free", "whitening", "base"])
def test_compiles_without_graph_breaks(name):
    bijection = CASES[name]()
    x = inputs(bijection, (5,))
    y = bijection.forward_and_log_det(x)[0]
    torch._dynamo.reset()
    for method, given_ in ((bijection.forward_and_log_det, x), (bijection.inverse_and_log_det, y)):
        compiled = torch.compile(method, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(given_)[0], method(given_)[0], rtol=1e-12, atol=1e-12)


@every
def test_a_wrong_shape_is_named_beside_the_right_one(name):
    bijection = CASES[name]()
    for method, shape in (
        (bijection.forward_and_log_det, bijection.event_shape),
        (bijection.inverse_and_log_det, bijection.output_shape),
    ):
        wrong = torch.zeros(5, *shape[:-1], shape[-1] + 1)
        with pytest.raises(ValueError, match=re.escape(str(tuple(shape)))):
            method(wrong)


def test_single_precision_keeps_bond_lengths_to_a_millionth():
    coordinates = dipeptide()
    x = inputs(coordinates, (100,))
    exact, single = coordinates.forward_and_log_det(x)[0], coordinates.forward_and_log_det(x.float())[0]
    assert (single - exact).abs().max() < 2e-6
    converted = copy.deepcopy(coordinates).float()
    assert (converted.forward_and_log_det(x.float())[0] - exact).abs().max() < 2e-6


def test_a_flow_ends_in_a_molecule():
    torch.manual_seed(0)
    coordinates = InternalCoordinates(*PEROXIDE)
    base = InformedBase(torch.zeros(6), torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, math.inf]))
    flow = Chain(
        [base, flows.circular_spline(6, 2, (8,), circular=coordinates.circular, linear_bound=math.pi)[0], coordinates]
    )
    generator = dist.TransformedDistribution(dist.Normal(torch.zeros(6), 1.0).to_event(1), [flow])
    positions = generator.rsample((100,))
    fresh = positions.detach().clone()
    assert positions.shape == (100, 4, 3)
    assert torch.allclose(generator.log_prob(positions), generator.log_prob(fresh), rtol=1e-3, atol=1e-3)


# The measure


def quadrature(low, high, points=40):
    nodes, weights = np.polynomial.legendre.leggauss(points)
    half = (high - low) / 2
    return torch.as_tensor(low + half * (nodes + 1)), torch.as_tensor(half * weights)


def test_two_atoms_have_a_sphere_of_orientations():
    coordinates = InternalCoordinates(WATER[0][:2], [(0, 1)])
    u, weights = quadrature(-math.pi, math.pi)
    positions, log_det = coordinates.forward_and_log_det(u.unsqueeze(-1))
    r = positions[:, 1, 0]
    low, high = coordinates.ranges[0]
    assert torch.allclose((weights * log_det.exp()).sum(), (high**3 - low**3) / 3)
    # a stiff spring: the density of its length is r^2 exp(-k (r - r0)^2 / 2 kT), whose mean lies beyond r0
    reduced = 500.0 * (r - 0.1).square() / 2
    found = (weights * r * (log_det - reduced).exp()).sum() / (weights * (log_det - reduced).exp()).sum()
    length, dr = quadrature(low.item(), high.item())
    density = length.square() * (-500.0 * (length - 0.1).square() / 2).exp() * dr
    assert torch.allclose(found, (length * density).sum() / density.sum(), rtol=1e-10)


def test_shapes_are_as_probable_as_in_cartesian_sampling():
    """Three atoms on soft springs: partition function and means against uniform draws of all positions."""
    widths = {"bond_width": 0.08, "angle_width": 0.9}
    coordinates = InternalCoordinates(torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]), [(0, 1), (0, 2)], **widths)

    def observed(x):
        a, b = x[..., 1, :] - x[..., 0, :], x[..., 2, :] - x[..., 0, :]
        lengths = torch.stack([a.norm(dim=-1), b.norm(dim=-1), (a - b).norm(dim=-1)], -1)
        reduced = 300.0 * (lengths - torch.tensor([0.1, 0.12, 0.2])).square().sum(-1) / 2
        return lengths, (-reduced).exp()

    u, w = quadrature(-math.pi, math.pi, 24)
    weights = torch.einsum("i,j,k->ijk", w, w, w)
    positions, log_det = coordinates.forward_and_log_det(torch.stack(torch.meshgrid(u, u, u, indexing="ij"), -1))
    lengths, density = observed(positions)
    weights = weights * density * log_det.exp()
    z = weights.sum()
    means = (weights.unsqueeze(-1) * lengths).sum((0, 1, 2)) / z

    side = 2 * coordinates.ranges[:2, 1].max()
    draws = side * (torch.rand(400_000, 3, 3, dtype=torch.float64) - 0.5)
    draws[:, 0] = 0.0
    lengths, density = observed(draws)
    density = density * (back(coordinates, draws).abs() <= math.pi).all(-1)
    # within four standard errors, of which there are four: wrong by chance once in 4000 seeds
    found, error = side**6 * density.mean(), side**6 * density.std() / len(density) ** 0.5
    assert (found - 8 * math.pi**2 * z).abs() < 4 * error
    assert error < 0.01 * found
    share = density / density.mean()
    found = (share.unsqueeze(-1) * lengths).mean(0)
    error = (share.unsqueeze(-1) * (lengths - found)).std(0) / len(density) ** 0.5
    assert ((found - means).abs() < 4 * error).all()
    assert (error < 0.002 * means).all()


@pytest.mark.parametrize("z_matrix", [None, BY_HAND])
def test_fixed_bonds_leave_the_measure_of_the_others(z_matrix):
    held = [(4, 6), (1, 4, 0.14)]
    free, fixed = dipeptide(z_matrix=z_matrix), dipeptide(z_matrix=z_matrix, fixed_bonds=held)
    assert fixed.event_shape == (58,) and fixed.circular.shape == (58,)
    x = inputs(fixed, (5,))
    positions, log_det = fixed.forward_and_log_det(x)
    apart = (positions[:, 4:5] - positions[:, [6, 1]]).norm(dim=-1)
    assert torch.allclose(apart, torch.tensor([(DIPEPTIDE[0][4] - DIPEPTIDE[0][6]).norm(), 0.14]).double())
    width = torch.tensor(0.035 / math.pi)
    assert torch.allclose(log_det, -free.inverse_and_log_det(positions)[1] - 2 * width.log())
    stretched = free.inverse_and_log_det(positions)[0] + 0.5 * (torch.arange(60) < 21)
    again, opposite = fixed.inverse_and_log_det(free(stretched))
    keeps = [k for k in range(21) if set(free.z_matrix[1 + k, :2].tolist()) not in ({4, 6}, {1, 4})]
    assert torch.allclose(again[:, :19], stretched[:, keeps]) and torch.allclose(again[:, 19:], x[:, 19:])
    assert torch.allclose(opposite, -fixed.forward_and_log_det(again)[1])


# Z-matrices


def test_one_torsion_turns_freely_about_each_rotatable_bond():
    for molecule, rotatable, levels in ((DIPEPTIDE, 7, 4), (TETRAPEPTIDE, 15, 7)):
        coordinates = InternalCoordinates(*molecule)
        rows = coordinates.z_matrix
        assert sorted(rows[:, 0].tolist()) == list(range(len(rows)))
        assert coordinates.placement.num_levels == levels
        turning = rows[3:][coordinates.circular[-len(rows) + 3 :]]
        axes = {frozenset(row[1:3].tolist()) for row in turning}
        assert len(axes) == len(turning) == rotatable
        ends = [sum(atom in bond for bond in molecule[1]) for atom in range(len(rows))]
        assert axes == {frozenset(bond) for bond in molecule[1] if min(ends[atom] for atom in bond) > 1}


def test_the_backbone_turns_by_its_own_torsions():
    rows = dipeptide().z_matrix.tolist()
    assert [4, 6, 8, 14] in rows and [16, 14, 8, 6] in rows  # phi and psi
    hydrogens = {atom for atom, element in enumerate(DIPEPTIDE[2]) if element == "H"}
    assert not hydrogens & {row[k] for row in rows for k in (1, 2)}


def test_a_z_matrix_does_not_depend_on_how_bonds_are_written():
    generator = torch.Generator().manual_seed(0)
    bonds = [DIPEPTIDE[1][k][::-1] for k in torch.randperm(21, generator=generator)]
    assert torch.equal(InternalCoordinates(DIPEPTIDE[0], bonds, DIPEPTIDE[2]).z_matrix, dipeptide().z_matrix)


@pytest.mark.parametrize("name", ["dipeptide", "by-hand"])
def test_the_z_matrix_it_shows_makes_the_same_coordinates(name):
    coordinates = INTERNAL[name]()
    positions = coordinates(inputs(coordinates, (3,)))
    assert torch.equal(back(dipeptide(z_matrix=coordinates.z_matrix), positions), back(coordinates, positions))


@given(st.integers(2, 9), st.data())
@settings(max_examples=40)
def test_any_z_matrix_gives_a_bijection_and_its_log_det(num_atoms, data):
    order = data.draw(st.permutations(range(num_atoms)))
    rows = []
    for k, atom in enumerate(order):
        references = data.draw(st.permutations(order[:k]))[:3]
        rows.append((atom, *references, *[-1] * (3 - len(references))))
    reference = torch.randn(num_atoms, 3, generator=torch.Generator().manual_seed(num_atoms), dtype=torch.float64)
    bonds = [(k, k + 1) for k in range(num_atoms - 1)]
    coordinates = InternalCoordinates(reference, bonds, z_matrix=rows, bond_width=1e-3, angle_width=1e-3)
    x = inputs(coordinates, (2,))
    positions, log_det = coordinates.forward_and_log_det(x)
    again, opposite = coordinates.inverse_and_log_det(positions)
    assert (again - x).abs().max() < 1e-9 and (log_det + opposite).abs().max() < 1e-9
    there = coordinates(back(coordinates, reference))
    assert torch.allclose(torch.cdist(there, there), torch.cdist(reference, reference))
    if num_atoms > 2:
        assert (log_det[0] - log_det_with_motions(coordinates, x[0])).abs() < 1e-8


# The box


def test_the_box_holds_what_it_says():
    coordinates = dipeptide(bond_width=0.03, angle_width=0.8)
    middle = coordinates.ranges.mean(-1)
    assert torch.allclose((coordinates.ranges[:, 1] - middle)[:41], torch.tensor([0.03] * 21 + [0.8] * 20).double())
    assert coordinates.bound == math.pi
    u = back(coordinates, DIPEPTIDE[0])
    assert u[:41].abs().max() < 1e-12 and u[coordinates.circular].abs().max() < 1e-12
    assert (u.abs() < 0.7 * math.pi).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_free_torsion_lies_on_the_circle(dtype):
    coordinates = dipeptide()
    x = inputs(coordinates, (500,), dtype)
    around = x + 2 * math.pi * coordinates.circular
    y, log_det = coordinates.forward_and_log_det(around)
    assert torch.allclose(y, coordinates(x), atol=1e-5) and torch.allclose(
        log_det, coordinates.forward_and_log_det(x)[1]
    )
    turns = back(coordinates, y)[:, coordinates.circular]
    assert (turns >= -math.pi).all() and (turns < torch.tensor(math.pi, dtype=dtype)).all()


def test_a_structure_outside_the_box_is_mapped_there():
    coordinates = dipeptide()
    x = inputs(coordinates, (100,))
    x[:, 3] = 1.5 * math.pi
    assert torch.allclose(back(coordinates, coordinates(x)), x)


def test_a_structure_may_lie_anywhere_and_be_turned():
    coordinates = dipeptide()
    x = inputs(coordinates, (20,))
    positions, log_det = coordinates.forward_and_log_det(x)
    rotation = torch.linalg.qr(torch.randn(20, 3, 3, dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    again, opposite = coordinates.inverse_and_log_det(positions @ rotation.mT + torch.randn(20, 1, 3))
    assert torch.allclose(again, x, atol=1e-9) and torch.allclose(opposite, -log_det)


def test_coinciding_atoms_give_numbers():
    y = torch.zeros(22, 3, requires_grad=True)
    x, log_det = dipeptide().inverse_and_log_det(y)
    assert not x.isnan().any() and not log_det.isnan()


# Handedness and labels


@pytest.mark.parametrize(("molecule", "centres"), [(DIPEPTIDE, (8,)), (TETRAPEPTIDE, (8, 18, 28))])
def test_the_box_holds_one_hand(molecule, centres):
    coordinates = InternalCoordinates(*molecule)
    assert coordinates.stereocentres == centres
    positions = coordinates(back(coordinates, molecule[0]) + inputs(coordinates, (1000,), part=0.3))
    mirrored = positions * torch.tensor([1.0, 1.0, -1.0])
    assert (coordinates.chirality_of(positions) == 1).all()
    assert (coordinates.chirality_of(mirrored) == -1).all()
    assert (back(coordinates, mirrored).abs() > math.pi).any(-1).all()


def test_both_hands_are_reached_if_chirality_is_not_restricted():
    coordinates = dipeptide(restrict_chirality=False)
    assert coordinates.circular.sum() == 7 + 2
    positions = coordinates(inputs(coordinates, (1000,)))
    assert set(coordinates.chirality_of(positions).flatten().tolist()) == {1.0, -1.0}
    mirrored = DIPEPTIDE[0] * torch.tensor([1.0, 1.0, -1.0])
    at_centre = coordinates.z_matrix[3:, 1] == 8
    assert (back(coordinates, mirrored)[41:][at_centre].abs() <= math.pi).all()


def relabelled(positions, groups, generator):
    positions = positions.clone()
    for group in groups:
        shuffled = torch.tensor(group)[torch.randperm(len(group), generator=generator)]
        positions[..., group, :] = positions[..., shuffled, :]
    return positions


def test_hydrogens_have_one_set_of_labels():
    coordinates, generator = dipeptide(), torch.Generator().manual_seed(0)
    groups = [[0, 2, 3], [11, 12, 13], [19, 20, 21]]
    positions = coordinates(inputs(coordinates, (200,), part=0.4))
    canonical = coordinates.canonical(positions)
    assert torch.equal(coordinates.canonical(DIPEPTIDE[0]), DIPEPTIDE[0])
    assert torch.equal(coordinates.canonical(canonical), canonical)
    for _ in range(10):
        assert torch.equal(coordinates.canonical(relabelled(positions, groups, generator)), canonical)
    others = [atom for atom in range(22) if not any(atom in group for group in groups)]
    assert torch.equal(canonical[:, others], positions[:, others])
    # the free torsion of a methyl lies in the third of the circle about the reference, for evenly spread hydrogens
    even = back(coordinates, DIPEPTIDE[0]).expand(200, 60) + coordinates.circular * inputs(coordinates, (200,))
    turned = back(coordinates, coordinates.canonical(coordinates(even)))
    assert (turned.abs() <= math.pi).all()
    methyl = [41 + k for k, row in enumerate(coordinates.z_matrix[3:].tolist()) if row[0] in (0, 11, 19)]
    assert (turned[:, methyl].abs() < 1.1).all() and (even[:, methyl].abs() > 1.1).any()


def chloroethylamine():
    """Cl-CH2-CH2-NH2: two methylene groups and an amine."""
    rows = [(0, -1, -1, -1), (1, 0, -1, -1), (2, 1, 0, -1), (3, 2, 1, 0), (4, 1, 2, 0), (5, 1, 2, 0)]
    rows += [(6, 2, 1, 3), (7, 2, 1, 3), (8, 3, 2, 1), (9, 3, 2, 8)]
    torsions = [3.1, 2.09, -2.09, 2.09, -2.09, 1.0, 2.2]
    bonds = [row[:2] for row in rows[1:]]
    lengths = [0.178, 0.153, 0.147, 0.109, 0.109, 0.109, 0.109, 0.101, 0.101]
    positions = place(rows, lengths, [1.91] * 8, torsions)
    return InternalCoordinates(positions, bonds, ["Cl", "C", "C", "N", *"HHHHHH"])


def place(rows, lengths, angles, torsions):
    """Positions one after another, the plainest way."""
    positions = torch.zeros(len(rows), 3, dtype=torch.float64)
    for k, (atom, bond, angle, torsion) in enumerate(rows[1:], 1):
        b, a = positions[bond], positions[angle] if k > 1 else torch.tensor([1.0, 0.0, 0.0]).double()
        t = positions[torsion] if k > 2 else torch.tensor([0.3, 1.0, 0.0]).double()
        e = torch.nn.functional.normalize(b - a, dim=0)
        n = torch.nn.functional.normalize(torch.linalg.cross(a - t, e), dim=0)
        m = torch.linalg.cross(n, e)
        theta, phi = torch.tensor(angles[k - 2] if k > 1 else math.pi), torch.tensor(torsions[k - 3] if k > 2 else 0.0)
        across = phi.cos() * m + phi.sin() * n
        positions[atom] = b + lengths[k - 1] * (theta.sin() * across - theta.cos() * e)
    return positions


def test_methylene_and_amine_hydrogens_are_sorted_by_the_reference():
    coordinates, generator = chloroethylamine(), torch.Generator().manual_seed(0)
    assert coordinates.stereocentres == ()
    positions = coordinates(inputs(coordinates, (100,), part=0.3))
    canonical = coordinates.canonical(positions)
    assert torch.equal(canonical[:, 4:8], positions[:, 4:8])
    for _ in range(5):
        swapped = relabelled(positions, [[4, 5], [6, 7], [8, 9]], generator)
        assert torch.equal(coordinates.canonical(swapped), canonical)


def test_a_methyl_of_the_frame_keeps_its_sense():
    rows = [(0, -1, -1, -1), (1, 0, -1, -1), (2, 0, 1, -1), (3, 0, 1, 2), (4, 0, 1, 2), (5, 1, 0, 2), (6, 1, 0, 5)]
    rows.append((7, 1, 0, 5))
    torsions = [2.09, -2.09, 3.1, 2.09, -2.09]
    positions = place(rows, [0.153, *[0.109] * 6], [1.91] * 6, torsions)
    coordinates = InternalCoordinates(positions, [row[:2] for row in rows[1:]], "CCHHHHHH")
    assert torch.equal(coordinates.canonical(positions), positions)
    assert torch.equal(coordinates.canonical(positions[[0, 1, 4, 2, 3, 5, 6, 7]]), positions)
    assert torch.equal(coordinates.canonical(positions[[0, 1, 2, 3, 4, 5, 7, 6]]), positions)


def test_water_keeps_its_labels():
    coordinates = InternalCoordinates(*WATER)
    positions = coordinates(inputs(coordinates, (5,)))
    assert torch.equal(coordinates.canonical(positions), positions)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": DIPEPTIDE[0][:21]}, "bonds must join atoms from 0 to 20"),
        ({"reference": DIPEPTIDE[0].index_fill(0, torch.tensor(5), math.nan)}, "atom 5 is not finite"),
        ({"reference": DIPEPTIDE[0][:, :2]}, r"\(atoms, 3\), got shape \(22, 2\)"),
        ({"reference": DIPEPTIDE[0] * torch.tensor([1.0, 0.0, 0.0])}, "lie in a line"),
        ({"reference": DIPEPTIDE[0] * torch.tensor([1.0, 1.0, 0.0])}, "atom 8 .* flat"),
        ({"bonds": DIPEPTIDE[1][:-1]}, "none lead from atom 0 to 21"),
        ({"bonds": [*DIPEPTIDE[1], (1, 0)]}, "0-1 twice"),
        ({"bonds": [*DIPEPTIDE[1], (3, 3)]}, "atom 3 to itself"),
        ({"bonds": [*DIPEPTIDE[1], (3, 22)]}, "bond 3-22"),
        ({"bonds": [(0, 1, 2)]}, "pairs"),
        ({"elements": "HCC"}, "22 atoms, got 3"),
        ({"angle_width": 1.3}, "stay within"),
        ({"bond_width": 0.12}, "half-width"),
        ({"bond_width": 0.0}, "bond_width must be"),
        ({"angle_width": math.nan}, "angle_width must be"),
        ({"z_matrix": BY_HAND[:-1]}, "atom 21 has no row"),
        ({"z_matrix": [*BY_HAND, (3, 1, 0, 2)]}, "first time"),
        ({"z_matrix": [*BY_HAND[:5], (2, 1, 4, 9), *BY_HAND[6:]]}, "placed before"),
        ({"z_matrix": [*BY_HAND[:5], (2, 1, 1, 0), *BY_HAND[6:]]}, "placed before"),
        ({"z_matrix": [(4, 1, 0, 2), *BY_HAND[1:]]}, "end in 3 times -1"),
        ({"z_matrix": [row[:3] for row in BY_HAND]}, "atom, bond, angle, torsion"),
        ({"fixed_bonds": [(0, 2)]}, "0-2"),
        ({"fixed_bonds": [(0, 1), (1, 0)]}, "each once"),
        ({"fixed_bonds": [(0, 1, -0.1)]}, "length of 0-1"),
        ({"fixed_bonds": [(0,)]}, r"\(i, j\)"),
    ],
)
def test_a_molecule_that_can_not_be_is_refused(arguments, message):
    settings = dict(zip(("reference", "bonds", "elements"), DIPEPTIDE, strict=True))
    with pytest.raises(ValueError, match=message):
        InternalCoordinates(**{**settings, **arguments})


def test_what_can_not_be_asked_is_refused():
    coordinates = dipeptide()
    with pytest.raises(ValueError, match=r"positions must end in the shape \(22, 3\).*\(21, 3\)"):
        coordinates.canonical(torch.zeros(21, 3))
    with pytest.raises(ValueError, match=r"positions must end in the shape \(22, 3\).*\(21, 3\)"):
        coordinates.chirality_of(torch.zeros(21, 3))
    with pytest.raises(ValueError, match="construct it with elements"):
        InternalCoordinates(*DIPEPTIDE[:2]).canonical(DIPEPTIDE[0])
    with pytest.raises(ValueError, match="two atoms"):
        InternalCoordinates(torch.zeros(1, 3), [])
    with pytest.raises(ValueError, match="nothing left"):
        InternalCoordinates(WATER[0][:2], [(0, 1)], fixed_bonds=[(0, 1)])


# Linear coordinates


def test_the_centre_is_in_the_origin_and_lengths_are_kept():
    bijection = CenterFree(5, 3)
    x = torch.randn(20, 12, dtype=torch.float64)
    y = bijection(x)
    assert y.mean(-2).abs().max() < 1e-14
    assert torch.allclose(y.square().sum((-1, -2)), x.square().sum(-1))
    assert torch.allclose(back(bijection, y + torch.randn(20, 1, 3)), x)


def test_whitened_samples_have_the_identity_as_covariance():
    samples = torch.randn(500, 4, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 2.0
    white = back(Whitening.from_samples(samples), samples)
    assert torch.allclose(white.T.cov(), torch.eye(12).double()) and white.mean(0).abs().max() < 1e-12


def test_modes_that_do_not_vary_are_dropped_or_refused():
    centred = CenterFree(4, 3)(torch.randn(100, 9, dtype=torch.float64))
    with pytest.raises(ValueError, match="drop 3 modes"):
        Whitening.from_samples(centred)
    whitening = Whitening.from_samples(centred, dropped=3)
    assert torch.allclose(whitening(back(whitening, centred)), centred)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CenterFree(1, 3), "two particles"),
        (lambda: CenterFree(3, 0), "one direction"),
        (lambda: Whitening(torch.zeros(3), torch.eye(3)[:, :2], torch.ones(3)), r"scale \(dim,\)"),
        (lambda: Whitening(torch.zeros(3), 2 * torch.eye(3), torch.ones(3)), "orthonormal"),
        (lambda: Whitening(torch.zeros(3), torch.eye(3), -torch.ones(3)), "positive"),
        (lambda: Whitening.from_samples(torch.zeros(1, 3)), "two or more"),
        (lambda: Whitening.from_samples(torch.randn(9, 3), dropped=3), "from 0 to 2"),
        (lambda: InformedBase(torch.zeros(2), torch.ones(3)), "shape"),
        (lambda: InformedBase(torch.zeros(2), torch.tensor([1.0, 0.0])), "scale must be positive"),
        (lambda: InformedBase(torch.tensor([4.0]), torch.ones(1)), "loc must lie within"),
        (lambda: InformedBase(torch.zeros(1), torch.ones(1), bound=0.0), "bound"),
    ],
)
def test_settings_that_can_not_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Bases


def test_a_base_is_the_quantile_function_of_what_it_says():
    base = BASES["base"]()
    z = torch.linspace(-5, 5, 101).double().unsqueeze(-1).expand(-1, 6)
    found = base(z)
    for k, (loc, scale) in enumerate(zip(base.loc.tolist(), base.scale.tolist(), strict=True)):
        if math.isinf(scale):
            expected = stats.uniform(-math.pi, 2 * math.pi).ppf(stats.norm.cdf(z[:, k]))
        else:
            ends = (-math.pi - loc) / scale, (math.pi - loc) / scale
            expected = stats.truncnorm(*ends, loc, scale).ppf(stats.norm.cdf(z[:, k]))
        assert torch.allclose(found[:, k], torch.as_tensor(expected), atol=1e-9)


def test_a_base_comes_back_from_five_standard_deviations():
    base = InformedBase(torch.tensor([0.0, 1.0, -2.0, 2.0, 0.0]), torch.tensor([math.inf, 0.1, 0.3, 1.0, 3.0]))
    z = torch.linspace(-5, 5, 1001).double().unsqueeze(-1).expand(-1, 5)
    assert (back(base, base(z)) - z).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tails_of_a_base_stay_within_its_box(dtype):
    base = BASES["base"]()
    z = torch.tensor([-100.0, -12.0, -8.0, 0.0, 8.0, 12.0, 100.0], dtype=dtype).unsqueeze(-1).expand(-1, 6)
    z = z.clone().requires_grad_()
    u, log_det = base.forward_and_log_det(z)
    assert (u.abs() < math.pi).all() and log_det.isfinite().all()
    (gradient,) = torch.autograd.grad(u.sum() + log_det.sum(), z)
    assert gradient.isfinite().all()
    z, opposite = base.inverse_and_log_det(u)
    assert z.isfinite().all() and opposite.isfinite().all()
    assert base.forward_and_score(z, -z)[2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_edge_of_the_box_is_finite_and_beyond_it_the_density_is_zero(dtype):
    base = BASES["base"]()
    edge = torch.full((2, 6), torch.tensor(math.pi, dtype=dtype).item(), dtype=dtype) * torch.tensor([[1.0], [-1.0]])
    z, log_det = base.inverse_and_log_det((edge * (1 - torch.finfo(dtype).eps)).requires_grad_())
    assert z.isfinite().all() and log_det.isfinite().all()
    z, log_det = base.inverse_and_log_det(edge)
    assert z.isfinite().all() and log_det.isfinite().all()
    z, log_det = base.inverse_and_log_det(1.01 * edge)
    assert z.isfinite().all() and (log_det == -math.inf).all()


def test_a_base_takes_its_scales_from_the_energy():
    coordinates = InternalCoordinates(*PEROXIDE)
    stiffness = torch.tensor([2e5, 3e5, 4e5, 300.0, 400.0, 20.0]).double()  # kJ/mol/nm^2 and kJ/mol/rad^2
    kT = 2.5

    def energy(positions):
        away = back(coordinates, positions) * coordinates.scale
        return 0.5 * (stiffness * away.square()).sum(-1)

    base = coordinates.informed_base(energy, kT)
    # the volume, 2 ln r + ln sin(angle), curves by 1 % of what the springs do
    expected = (kT / stiffness).sqrt() / coordinates.scale
    assert torch.allclose(base.scale[:5], expected[:5], rtol=0.01)
    assert base.scale[5] == math.inf and base.loc.abs().max() < 1e-12
    nothing = torch.zeros(6, dtype=torch.bool)
    assert torch.allclose(coordinates.informed_base(energy, kT, uniform=nothing).scale[5], expected[5], rtol=0.01)
    shifted = coordinates(0.3 * torch.ones(6).double())
    assert torch.allclose(coordinates.informed_base(energy, kT, minimum=shifted).loc, 0.3 * torch.ones(6).double())
    with pytest.raises(ValueError, match="kT must be"):
        coordinates.informed_base(energy, 0.0)
    with pytest.raises(ValueError, match="finite at the minimum"):
        coordinates.informed_base(lambda positions: energy(positions) * math.nan, kT)
    with pytest.raises(ValueError, match="within the ranges"):
        coordinates.informed_base(energy, kT, minimum=2 * PEROXIDE[0])
