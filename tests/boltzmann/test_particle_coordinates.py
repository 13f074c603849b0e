"""Coordinates of clusters: bijections with the whole measure of labelled particles, each shape written seldom."""

import copy
import math

import pytest
import torch

from pyro_coupling import load, save
from pyro_coupling.boltzmann import BoltzmannGenerator
from pyro_coupling.boltzmann.coordinates import CenterFree, PlanarCluster, SpatialCluster
from pyro_coupling.boltzmann.energies import DW4, LennardJones, PairEnergy

CASES = {
    "planar-three": lambda: PlanarCluster(3, 2.0),
    "planar-four": lambda: PlanarCluster(4, 4.0),
    "planar-seven": lambda: PlanarCluster(7),
    "spatial-three": lambda: SpatialCluster(3),
    "spatial-four": lambda: SpatialCluster(4, 3.0),
    "spatial-thirteen": lambda: SpatialCluster(13, 2.0),
}
every = pytest.mark.parametrize("name", CASES)


class Springs(PairEnergy):
    """All pairs by springs: the integral over positions is known."""

    def pair_energy(self, squared_distance):
        return 0.5 * squared_distance

    def log_z(self, kT):
        """Per volume: the centre of N particles moves freely, all else is a Gaussian of stiffness N, and N^(d/2)."""
        particles, dims = self.event_shape
        gaussian = 0.5 * (particles - 1) * math.log(2 * math.pi * kT / particles)
        return dims * (gaussian + 0.5 * math.log(particles))


def inputs(coordinates, *batch, dtype=torch.float64):
    # beyond three standard deviations numbers crowd at one, where a ratio of distances keeps few digits
    noise = torch.randn(*batch, *coordinates.event_shape, dtype=torch.float64)
    return noise.clamp(-3, 3).to(dtype)


def log_normal(u):
    return (-0.5 * u.square() - 0.5 * math.log(2 * math.pi)).sum(-1)


def moved(positions):
    """Turned and shifted."""
    dims = positions.size(-1)
    turn = torch.linalg.qr(torch.randn(dims, dims, dtype=positions.dtype))[0]
    turn[:, 0] *= torch.linalg.det(turn).sign()
    return positions @ turn.mT + 3.0


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_round_trip(name, dtype, tolerance):
    coordinates = CASES[name]()
    u = inputs(coordinates, 200, dtype=dtype)
    x, log_det = coordinates.forward_and_log_det(u)
    again, opposite = coordinates.inverse_and_log_det(x)
    # the twelfth of thirteen distances is known by the 36th power of its ratio to the last
    slack = 10.0 if name == "spatial-thirteen" else 1.0
    assert (again - u).abs().max() < slack * tolerance
    assert ((opposite + log_det) / (1 + log_det.abs())).abs().max() < slack * tolerance
    assert x.dtype == log_det.dtype == again.dtype == dtype and x.mean(-2).abs().max() < 10 * tolerance


@every
def test_log_det_counts_places_turns_and_labels(name):
    coordinates = CASES[name]()
    particles, dims = coordinates.output_shape
    u = inputs(coordinates)

    def from_the_first(u):
        x = coordinates.forward_and_log_det(u)[0]
        return (x[1:] - x[0]).flatten()

    around = from_the_first(u).unflatten(0, (-1, dims))
    if dims == 2:
        turns, rotations = [around.flip(-1) * torch.tensor([-1.0, 1.0])], 2 * math.pi
    else:
        turns = [torch.linalg.cross(axis.expand_as(around), around) for axis in torch.eye(3).double()]
        rotations = 8 * math.pi**2
    columns = [torch.autograd.functional.jacobian(from_the_first, u), *(t.flatten().unsqueeze(-1) for t in turns)]
    expected = torch.linalg.slogdet(torch.cat(columns, -1)).logabsdet + math.log(rotations)
    if dims == 2:
        expected += math.lgamma(particles + 1) + share(coordinates, coordinates(u))  # labels, and this beginning
    else:
        expected += math.lgamma(particles) + (math.log(2) if particles > 3 else 0.0)  # labels but the first, and mirror
    assert (coordinates.forward_and_log_det(u)[1] - expected).abs() < 1e-10 * (1 + expected.abs())


def share(coordinates, x):
    """Logarithm of the part that the first two particles have as the beginning, from the definition."""
    gaps = {}
    for first in range(len(x)):
        others = [i for i in range(len(x)) if i != first]
        seen = sorted((math.atan2(*(x[i] - x[first]).flip(-1).tolist()), i) for i in others)
        for (before, _), (after, start) in zip([seen[-1], *seen[:-1]], seen, strict=True):
            gaps[first, start] = (after - before) % (2 * math.pi)
    weights = torch.tensor(list(gaps.values()), dtype=torch.float64)
    return 10.0 * gaps[0, 1] - (10.0 * weights).logsumexp(0)


@pytest.mark.parametrize(
    "coordinates", [PlanarCluster(3), PlanarCluster(4), SpatialCluster(3, 1.5), SpatialCluster(4, 1.5)], ids=repr
)
def test_the_integral_over_shapes_is_that_over_positions(coordinates, num=200_000):
    energy = Springs(*coordinates.output_shape)
    scale = torch.full(coordinates.event_shape, 1.2, dtype=torch.float64)
    if energy.event_shape[1] == 3:
        scale[energy.event_shape[0] - 2] = 3.0  # the size, 20 % by itself
    noise = torch.randn(num, len(scale), generator=torch.Generator().manual_seed(0)).double()
    u, log_q = scale * noise, log_normal(noise) - scale.log().sum()
    x, volume = coordinates.forward_and_log_det(u)
    weights = (volume - energy(x) - log_q - energy.log_z(1.0)).exp()
    error = weights.std() / math.sqrt(num)
    assert error < 0.03 and (weights.mean() - 1).abs() < 4 * error


@every
def test_a_cluster_may_lie_anywhere_and_its_labels_are_put_in_order(name):
    coordinates = CASES[name]()
    u = inputs(coordinates, 20)
    x = coordinates(u)
    kept = 2 if coordinates.output_shape[1] == 2 else 1
    order = torch.cat([torch.arange(kept), kept + torch.randperm(len(x[0]) - kept)])
    found, log_det = coordinates.inverse_and_log_det(moved(x)[:, order])
    assert (found - u).abs().max() < 1e-9 and torch.allclose(log_det, -coordinates.forward_and_log_det(u)[1])
    mirrored = coordinates.inverse_and_log_det(-moved(x) if x.size(-1) == 3 else x * torch.tensor([1.0, -1.0]))[0]
    assert ((mirrored - u).abs().max() < 1e-9) == (x.size(-1) == 3)


@pytest.mark.parametrize("name", ["planar-four", "spatial-four"])
def test_data_get_orders_by_their_shares(name):
    coordinates = CASES[name]()
    x = coordinates(inputs(coordinates))
    shares = coordinates.log_shares(x).exp()
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-12)
    for order, expected in zip(coordinates.orders, shares, strict=True):  # that of an order that has become the first
        assert coordinates.log_shares(x[order])[0].exp() == pytest.approx(expected.item(), rel=1e-9)
    num = 20_000
    drawn = coordinates.relabelled(x.expand(num, -1, -1), torch.Generator().manual_seed(0))
    found = torch.stack([(drawn == x[order]).all(-1).all(-1).double().mean() for order in coordinates.orders])
    # five standard errors of a share
    assert ((found - shares).abs() <= 5 * (shares * (1 - shares) / num).sqrt() + 1e-12).all()


@every
def test_scores_copies_and_files(name, tmp_path):
    coordinates = CASES[name]()
    u = inputs(coordinates, 5)
    x, _, score = coordinates.forward_and_score(u, -u)
    leaf = x.detach().requires_grad_()
    z, inverse_log_det = coordinates.inverse_and_log_det(leaf)
    (expected,) = torch.autograd.grad((inverse_log_det - 0.5 * z.square().sum(-1)).sum(), leaf)
    assert torch.allclose(score, expected, rtol=1e-6, atol=1e-6)
    save(coordinates, tmp_path / "coordinates.safetensors")
    for other in (copy.deepcopy(coordinates), load(tmp_path / "coordinates.safetensors")):
        assert repr(other) == repr(coordinates)
        assert all(map(torch.equal, other.forward_and_log_det(u), coordinates.forward_and_log_det(u)))


@every
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_and_batches_agree(name):
    coordinates = CASES[name]()
    u = inputs(coordinates, 2, 3)
    x, log_det = coordinates.forward_and_log_det(u)
    assert x.shape == (2, 3, *coordinates.output_shape) and log_det.shape == (2, 3)
    for method, given in ((coordinates.forward_and_log_det, u), (coordinates.inverse_and_log_det, x)):
        rows = torch.func.vmap(torch.func.vmap(method))(given)
        assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(rows, method(given), strict=True))


def test_a_length_is_found_from_the_energy():
    # a pair of DW4 is 2.5 or 5.5 apart; four Lennard-Jones particles on soft springs are a gas at kT = 1
    assert 2.5 < PlanarCluster.suited_to(DW4(), 1.0).length < 5.5
    assert 1.0 < SpatialCluster.suited_to(LennardJones(4), 1.0).length < 5.0
    assert SpatialCluster.suited_to(Springs(4, 3), 100.0).length == pytest.approx(
        10 * SpatialCluster.suited_to(Springs(4, 3), 1.0).length, rel=0.06  # the step of the search
    )  # fmt: skip


@pytest.mark.parametrize(
    ("particles", "dims", "kind"),
    [(4, 2, PlanarCluster), (2, 2, CenterFree), (5, 3, SpatialCluster), (2, 3, CenterFree), (4, 1, CenterFree)],
)
def test_a_generator_takes_coordinates_that_suit_the_particles(particles, dims, kind):
    generator = BoltzmannGenerator(Springs(particles, dims), kT=1.0, progress=False, seed=0)
    assert type(generator.target.coordinates) is kind
    assert generator.sample(3).positions.shape == (3, particles, dims)


def test_a_line_has_no_finite_coordinates_and_data_of_it_are_refused():
    line = torch.stack([torch.arange(4.0), torch.zeros(4)], -1).unsqueeze(0)
    generator = BoltzmannGenerator(Springs(4, 2), kT=1.0, progress=False, seed=0)
    assert not generator.target.coordinates.inv(line).isfinite().all()
    with pytest.raises(ValueError, match="data: 1 of 1 configurations are not finite, or have no coordinates"):
        generator.train(max_steps=1, data=line)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PlanarCluster(2), "three particles or more, got 2"),
        (lambda: SpatialCluster(2), "three particles or more, got 2"),
        (lambda: SpatialCluster(3.5), "particles must be a positive integer, got 3.5"),
        (lambda: PlanarCluster(4, -1.0), "length must be a positive finite number"),
        (lambda: PlanarCluster(4)(torch.zeros(3)), r"must end in the event shape \(5,\)"),
        (lambda: PlanarCluster(4).inv(torch.zeros(4, 3)), r"must end in the event shape \(4, 2\)"),
    ],
)
def test_what_can_not_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
