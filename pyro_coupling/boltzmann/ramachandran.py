"""Ramachandran plots in numbers: backbone torsions, their histogram, and how far two histograms are apart."""

from __future__ import annotations

__all__ = [
    "Backbone",
    "Divergence",
    "Ramachandran",
    "backbone",
    "backbone_from_bonds",
    "kl_divergence",
    "positive_phi",
    "ramachandran_histogram",
    "total_variation",
]

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics import relative_ess
from .coordinates.graph import MolecularGraph
from .observables import Estimate, reweighted


class Backbone(NamedTuple):
    """The atoms of the two torsions of each residue that has both, in the order of the chain.

    Attributes:
        phi: C of the residue before, N, CA, C: ``(residues, 4)``.
        psi: N, CA, C, N of the residue after: ``(residues, 4)``.
    """

    phi: Tensor
    psi: Tensor


class Ramachandran(NamedTuple):
    """A histogram of phi and psi.

    Attributes:
        probabilities: Rows are phi and columns psi, both from -pi to pi, ``(bins, bins)``; they sum to one.
        bins: Number of bins along each angle.
        num_samples: Number of samples.
        ess: Relative effective sample size of their weights.
    """

    probabilities: Tensor
    bins: int
    num_samples: int
    ess: float


class Divergence(NamedTuple):
    """How far two histograms are apart, with what the figure depends on.

    Attributes:
        value: The figure. Even for samples of one distribution it is not zero, and falls with their number.
        bins: Number of bins along each angle.
        num_samples: Numbers of samples of both.
        epsilon: What was added to each bin; zero for `total_variation`.
    """

    value: float
    bins: int
    num_samples: tuple[int, int]
    epsilon: float = 0.0


def backbone(names: Sequence[str], residues: Sequence[int]) -> Backbone:
    """The backbone torsions of a chain, from what a PDB file calls its atoms.

    Args:
        names: Name of each atom, such as ``"CA"``.
        residues: Number of the residue of each atom; that after number i is i + 1.

    Raises:
        ValueError: If there is not one residue for each name, or a residue has an atom twice.

    Example:
        >>> names = ["CH3", "C", "O", "N", "H", "CA", "CB", "C", "O", "N", "H", "C"]
        >>> backbone(names, [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2])
        Backbone(phi=tensor([[1, 3, 5, 7]]), psi=tensor([[3, 5, 7, 9]]))
    """
    if len(names) != len(residues):
        raise ValueError(f"residues must be one for each of {len(names)} names, got {len(residues)}")
    atoms: dict[tuple[int, str], int] = {}
    for atom, (name, residue) in enumerate(zip(names, residues, strict=True)):
        key = int(residue), name.strip().upper()
        if key in atoms and key[1] in ("N", "CA", "C"):
            raise ValueError(f"names: residue {key[0]} has {key[1]} twice; give chains one after another")
        atoms[key] = atom
    chains = []
    for residue in sorted({residue for residue, name in atoms if name == "CA"}):
        keys = [(residue - 1, "C"), (residue, "N"), (residue, "CA"), (residue, "C"), (residue + 1, "N")]
        if all(key in atoms for key in keys):
            chains.append([atoms[key] for key in keys])
    return _backbone(chains)


def backbone_from_bonds(elements: Sequence[str], bonds: Iterable[Sequence[int]]) -> Backbone:
    """The backbone torsions of a molecule of which only elements and bonds are known.

    A residue is a carbon bonded to a carbonyl carbon and to a nitrogen, with a carbonyl carbon beyond the nitrogen
    and a nitrogen beyond the carbonyl.

    Args:
        elements: Symbol of each atom.
        bonds: Pairs of atoms, each bond once.

    Raises:
        ValueError: If the bonds are not those of one molecule.

    Example:
        >>> elements = ["C", "C", "O", "N", "H", "C", "C", "C", "O", "N", "H", "C"]  # hydrogens of carbon left out
        >>> bonds = [(0, 1), (1, 2), (1, 3), (3, 4), (3, 5), (5, 6), (5, 7), (7, 8), (7, 9), (9, 10), (9, 11)]
        >>> backbone_from_bonds(elements, bonds)
        Backbone(phi=tensor([[1, 3, 5, 7]]), psi=tensor([[3, 5, 7, 9]]))
    """
    graph = MolecularGraph(len(elements), bonds, elements)
    symbols = graph.elements or ()

    def bonded(atom: int, symbol: str) -> list[int]:
        return [other for other in graph.neighbours[atom] if symbols[other] == symbol]

    carbonyls = {
        atom
        for atom, symbol in enumerate(symbols)
        if symbol == "C" and len(graph.neighbours[atom]) == 3 and any(map(graph.is_terminal, bonded(atom, "O")))
    }
    paths = [
        [before, nitrogen, alpha, carbonyl, after]
        for nitrogen, symbol in enumerate(symbols)
        if symbol == "N"
        for before in bonded(nitrogen, "C")
        if before in carbonyls
        for alpha in bonded(nitrogen, "C")
        if alpha not in carbonyls
        for carbonyl in bonded(alpha, "C")
        if carbonyl in carbonyls
        for after in bonded(carbonyl, "N")
    ]
    return _backbone(_in_order(paths))


def ramachandran_histogram(phi_psi: Tensor, bins: int = 64, log_weights: Tensor | None = None) -> Ramachandran:
    """Probabilities of bins of phi and psi.

    Args:
        phi_psi: Both angles of each sample in radians, ``(n, 2)``, from -pi to pi.
        bins: Number of bins along each angle.
        log_weights: Log weights up to a constant, ``(n,)``; all equal if not given. What has no weight may be NaN.

    Raises:
        ValueError: If shapes differ, weights hold NaN or are all zero, or an angle with weight is not finite.

    Example:
        >>> angles = torch.tensor([[-1.0, 1.0], [-1.0, 1.1], [1.0, -2.0]])
        >>> ramachandran_histogram(angles, bins=2).probabilities
        tensor([[0.0000, 0.6667],
                [0.3333, 0.0000]], dtype=torch.float64)
    """
    if phi_psi.dim() != 2 or phi_psi.size(1) != 2 or not len(phi_psi):
        raise ValueError(f"phi_psi must be (n, 2) with a sample or more, got shape {tuple(phi_psi.shape)}")
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    log_weights = phi_psi.new_zeros(len(phi_psi)) if log_weights is None else log_weights
    if log_weights.shape != phi_psi.shape[:1]:
        raise ValueError(f"log_weights must be of shape ({len(phi_psi)},), got {tuple(log_weights.shape)}")
    log_weights = log_weights.detach().double()
    ess = relative_ess(log_weights)
    if not ess:
        raise ValueError("log_weights: all are -inf, there is nothing to count")
    has_weight = log_weights.isfinite()
    bad = int((~phi_psi.isfinite()).any(1)[has_weight].sum())
    if bad:
        raise ValueError(f"phi_psi: {bad} of {len(phi_psi)} are not finite and have weight")
    parts = (phi_psi.detach()[has_weight].double() + math.pi) / (2 * math.pi)
    phi, psi = ((parts * bins).floor().long() % bins).unbind(1)
    counts = log_weights.new_zeros(bins * bins)
    counts.index_add_(0, phi * bins + psi, torch.softmax(log_weights[has_weight], 0))
    return Ramachandran(counts.reshape(bins, bins), bins, len(phi_psi), ess)


def positive_phi(
    phi: Tensor,
    log_weights: Tensor | None = None,
    *,
    upper: float = math.pi,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Population of ``0 < phi < upper``, the basin of left-handed helices that a flow most easily loses.

    Args:
        phi: Angles in radians, ``(n,)``.
        log_weights: Log weights up to a constant, ``(n,)``; all equal if not given.
        upper: Where the basin ends; with pi it includes the few extended structures beyond.
        generator: Of the bootstrap.

    Raises:
        ValueError: As by `observables.reweighted`.

    Example:
        >>> positive_phi(torch.tensor([-1.0, -2.0, 1.0, 3.0]), upper=2.2).value
        tensor(0.2500, dtype=torch.float64)
    """
    inside = ((phi > 0) & (phi < upper)).double()
    return reweighted(torch.where(phi.isnan(), torch.nan, inside), log_weights, generator=generator)


def total_variation(p: Ramachandran, q: Ramachandran) -> Divergence:
    """Half the sum of absolute differences: 0 for equal histograms, 1 for those with no bin in common.

    Args:
        p: A histogram.
        q: Another, with as many bins.

    Raises:
        ValueError: If the numbers of bins differ.

    Example:
        >>> p = ramachandran_histogram(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), bins=2)
        >>> total_variation(p, ramachandran_histogram(torch.tensor([[1.0, 1.0]]), bins=2))
        Divergence(value=0.5, bins=2, num_samples=(2, 1), epsilon=0.0)
    """
    first, second = _alike(p, q)
    return Divergence(0.5 * (first - second).abs().sum().item(), p.bins, (p.num_samples, q.num_samples))


def kl_divergence(p: Ramachandran, q: Ramachandran, epsilon: float = 1e-10) -> Divergence:
    """``sum p log((p + epsilon) / (q + epsilon))``, in nats: what is lost if q stands for p.

    Where q is empty the result depends on epsilon: with 1e-10, a bin of probability 1e-4 costs 1.4e-3 nats.

    Args:
        p: The histogram of the truth, such as that of a reference.
        q: Another, with as many bins.
        epsilon: Added to the probability of each bin.

    Raises:
        ValueError: If the numbers of bins differ, or epsilon is not positive.

    Example:
        >>> p = ramachandran_histogram(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), bins=2)
        >>> q = ramachandran_histogram(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]), bins=2)
        >>> round(kl_divergence(p, q).value, 4)
        0.1438
    """
    first, second = _alike(p, q)
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    value = (first * ((first + epsilon) / (second + epsilon)).log()).sum().item()
    return Divergence(value, p.bins, (p.num_samples, q.num_samples), epsilon)


def _alike(p: Ramachandran, q: Ramachandran) -> tuple[Tensor, Tensor]:
    if p.bins != q.bins:
        raise ValueError(f"p and q must have the same bins, got {p.bins} and {q.bins}")
    return p.probabilities, q.probabilities.to(p.probabilities.device)


def _backbone(chains: list[list[int]]) -> Backbone:
    atoms = torch.tensor(chains, dtype=torch.long).reshape(-1, 5)
    return Backbone(atoms[:, :4], atoms[:, 1:])


def _in_order(paths: list[list[int]]) -> list[list[int]]:
    """Sorts ``(C, N, CA, C', N')`` so that each is followed by that which begins where it ends."""
    by_start = {path[1]: path for path in paths}
    ends = {path[4] for path in paths}
    ordered: list[list[int]] = []
    for path in sorted(paths, key=lambda path: path[1] in ends):  # first those that none leads to
        nitrogen: int | None = path[1]
        while nitrogen in by_start:
            ordered.append(by_start.pop(nitrogen))
            nitrogen = ordered[-1][4]
    return ordered
