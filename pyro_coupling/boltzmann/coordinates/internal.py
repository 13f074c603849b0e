"""The bijection between normalised internal coordinates of a molecule and the positions of its atoms."""

from __future__ import annotations

__all__ = ["InternalCoordinates"]

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ...registry import register
from ...transforms import Bijection
from ..checks import check_positive
from .base_map import InformedBase
from .geometry import angle_between, norm, torsion, wrap
from .graph import MolecularGraph
from .placement import Placement
from .ranges import angle_ranges, bond_ranges, check_not_in_line, torsion_ranges
from .symmetry import Handedness, HydrogenOrder
from .z_matrix import Row, build_z_matrix, check_z_matrix

_STEP = 0.01  # of second differences, in units of a half-width
_NARROWEST, _WIDEST = 0.002, 0.5  # scales of a base, in units of a half-width


@register
class InternalCoordinates(Bijection):
    """Bond lengths, angles and torsions of a molecule, scaled to one box, as a bijection to positions.

    Inputs ``u`` are ``(*batch, dim)``: first bonds, then angles, then torsions, each in the order of the rows of
    `z_matrix`. All lie in ``[-pi, pi]``, so that splines of one ``bound`` fit them. For bonds, angles and stiff
    torsions the ends of this interval are those of a range about the reference structure; a torsion that turns
    freely is an angle on the circle, zero in the reference. Outputs are positions ``(*batch, atoms, 3)`` in nm,
    the first atom of the Z-matrix in the origin, the second on the x axis, the third in the xy plane.

    The inverse takes a molecule wherever it is and however it is turned. A structure outside the box, such as
    one with a stretched bond or of the wrong handedness, gets a u outside ``[-pi, pi]``, where a flow on the box
    has no density. Outside the box of inputs the formulas go on, but lengths may turn negative there.

    **Measure.** If u has the density ``exp(log_det - energy / kT)`` then shapes are Boltzmann distributed. With R a
    rotation and t a translation, the volume of all positions is ``dR dt prod(r^2) prod(sin(angle)) d(internal)``,
    the first product over all bonds of the Z-matrix, the second over all its angles. The log-determinant is the
    logarithm of both products and of the half-widths of the ranges over pi: that of the map from u, R and t to
    positions. The integral over u is the partition function of a molecule that neither moves nor turns; that of
    one in a volume V is ``8 pi^2 V`` times larger (``4 pi V`` for two atoms). The map to the 3N - 6 numbers that
    the frame leaves free would have a determinant smaller by ``r_2^2 r_3 sin(angle_3)``, the weight with which
    orientations of the first three atoms count; energies weighed with it would shift these three coordinates.

    **Fixed bonds.** The length of a bond that is held is no coordinate, and its factor ``r^2`` a constant that
    stays: shapes are those of the free molecule given these lengths, the limit of stiff springs. A simulation with
    rigid constraints samples ``sqrt(det G)`` times that density, where ``G_ab = sum_i grad_i a . grad_i b / m_i`` for
    constraints a and b and atoms i (Fixman 1974); it varies with the angles between constraints that share an
    atom. The inverse does not look at the lengths of held bonds.

    Args:
        reference: Positions in nm, ``(atoms, 3)``, best those of a minimum of the energy.
        bonds: Pairs of atoms, each bond once; one molecule of two atoms or more.
        elements: Symbol of each atom. They matter where the Z-matrix has equal choices, and for `canonical`.
        z_matrix: Rows ``(atom, bond, angle, torsion)``, each atom once and after those it refers to, ``-1`` where
            the first three need none. Built from the bonds if not given.
        fixed_bonds: Bonds ``(i, j)`` or ``(i, j, length in nm)`` of the Z-matrix that are held, at their length in
            the reference if none is given.
        bond_width: Half-width of the range of a bond about the reference, in nm.
        angle_width: Half-width of the range of an angle about the reference, in rad.
        restrict_chirality: Whether stereocentres keep the handedness of the reference. If not, the torsions that
            decide it turn freely, and both hands are reached.

    Attributes:
        z_matrix: The rows in the order in which atoms are placed.
        circular: Which entries of u are angles on a circle, boolean, ``(dim,)``.
        ranges: The least and the largest value of each coordinate, in nm and rad, ``(dim, 2)``.
        bound: Half-width of the box, pi.
        reference: The reference structure, ``(atoms, 3)``.
        stereocentres: Atoms with four different neighbours.

    Raises:
        ValueError: If shapes do not fit, the reference has a NaN or three atoms in a line where an angle is
            needed, the molecule is in several pieces, bonds or rows are not as they should be, or a range reaches
            a bond length of zero or an angle of 0 or pi.

    Reference:
        Noé, Olsson, Köhler, Wu. Boltzmann generators: sampling equilibrium states of many-body systems with deep
        learning. Science 2019.
        Herschbach, Johnston, Rapp. Molecular partition functions in terms of local properties. J. Chem. Phys. 1959
        (the determinant).
        Fixman. Classical statistical mechanics of constraints: a theorem and application to polymers. PNAS 1974.

    Example:
        >>> import torch
        >>> peroxide = torch.tensor([[0.0, 0.096, 0.0], [0.0, 0.0, 0.0], [0.146, 0.0, 0.0], [0.15, -0.05, 0.08]])
        >>> coordinates = InternalCoordinates(peroxide, bonds=[(0, 1), (1, 2), (2, 3)], elements="HOOH")
        >>> coordinates.circular
        tensor([False, False, False, False, False,  True])
        >>> positions, log_det = coordinates.forward_and_log_det(torch.rand(1000, 6) - 0.5)
        >>> positions.shape, bool((coordinates.inv(positions).abs() < 0.51).all())
        (torch.Size([1000, 4, 3]), True)
    """

    z_matrix: Tensor
    reference: Tensor
    circular: Tensor
    centre: Tensor
    scale: Tensor
    fixed_lengths: Tensor
    free_bonds: Tensor
    bond_order: Tensor

    bound = math.pi

    def __init__(
        self,
        reference: Tensor,
        bonds: Iterable[Sequence[int]],
        elements: Sequence[str] | None = None,
        *,
        z_matrix: Iterable[Sequence[int]] | None = None,
        fixed_bonds: Iterable[Sequence[float]] = (),
        bond_width: float = 0.035,
        angle_width: float = 0.9,
        restrict_chirality: bool = True,
    ) -> None:
        check_positive("InternalCoordinates", "bond_width", bond_width)
        check_positive("InternalCoordinates", "angle_width", angle_width)
        reference = _checked_reference(reference)
        num_atoms = len(reference)
        graph = MolecularGraph(num_atoms, bonds, elements)
        placement = Placement(build_z_matrix(graph) if z_matrix is None else check_z_matrix(z_matrix, num_atoms))
        rows = placement.rows
        check_not_in_line(reference, rows)
        fixed = _find_fixed(fixed_bonds, rows)
        dim = max(3 * num_atoms - 6, 1) - len(fixed)
        if not dim:
            raise ValueError("fixed_bonds: with all bonds held there is nothing left that could move")
        super().__init__((dim,), output_shape=(num_atoms, 3))
        self.placement = placement
        self.handedness = Handedness(graph, reference)
        self.hydrogen_order = HydrogenOrder(graph, rows, reference)
        self._knows_elements = elements is not None
        self.register_buffer("reference", reference)
        self.register_buffer("z_matrix", torch.tensor(rows), persistent=False)
        free = [k for k in range(num_atoms - 1) if k not in fixed]
        self.register_buffer("free_bonds", torch.tensor(free, dtype=torch.long), persistent=False)
        self.register_buffer("bond_order", torch.tensor([*free, *fixed]).argsort(), persistent=False)
        self.to(reference.device)
        bonds, angles, torsions = (part.flatten().tolist() for part in self._measure(reference.unsqueeze(-1)))
        held = [bonds[k] if length is None else length for k, length in fixed.items()]
        ranges = [
            *bond_ranges([rows[1 + k] for k in free], [bonds[k] for k in free], bond_width),
            *angle_ranges(rows[2:], angles, angle_width),
            *torsion_ranges(rows[3:], torsions, graph, restrict_chirality),
        ]
        centre, half_width = (reference.new_tensor(part) for part in zip(*ranges, strict=True))
        self.register_buffer("fixed_lengths", reference.new_tensor(held))
        self.register_buffer("centre", centre)
        self.register_buffer("scale", half_width / math.pi)
        self.register_buffer("circular", half_width == math.pi)

    @property
    def ranges(self) -> Tensor:
        """The least and the largest value of each coordinate, in nm and rad, ``(dim, 2)``."""
        return torch.stack([self.centre - math.pi * self.scale, self.centre + math.pi * self.scale], -1)

    @property
    def stereocentres(self) -> tuple[int, ...]:
        """Atoms with four different neighbours."""
        return self.handedness.centres

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch, num_atoms = x.shape[:-1], len(self.z_matrix)
        values = torch.addcmul(self.centre.to(x.dtype), x.reshape(-1, x.size(-1)), self.scale.to(x.dtype))
        sizes = [len(self.free_bonds), max(num_atoms - 2, 0), max(num_atoms - 3, 0)]
        bonds, angles, torsions = values.t().contiguous().split(sizes)
        bonds, sines = self._with_fixed(bonds), angles.sin()
        positions = self.placement(bonds, angles.cos(), sines, torsions)
        positions = positions.reshape(3 * num_atoms, -1).t().contiguous()
        return positions.reshape(batch + self.output_shape), self._log_det(bonds, sines).reshape(batch)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = y.shape[:-2]
        bonds, angles, torsions = self._measure(y.reshape(-1, y.size(-2) * 3).t().reshape(y.size(-2), 3, -1))
        bonds = bonds.index_select(0, self.free_bonds)
        centres = self.centre.to(y.dtype).unsqueeze(-1).split([len(bonds), len(angles), len(torsions)])
        away = torch.cat([bonds - centres[0], angles - centres[1], wrap(torsions - centres[2])])
        x = away.t() / self.scale.to(y.dtype)
        log_det = self._log_det(self._with_fixed(bonds), angles.sin())
        return x.reshape(batch + self.event_shape), -log_det.reshape(batch)

    def _measure(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All bonds, angles and torsions of positions ``(atoms, 3, batch)``, each ``(rows, batch)``."""
        atoms, bonds, angles, torsions = self.z_matrix.unbind(-1)
        p0, p1 = positions.index_select(0, atoms[1:]), positions.index_select(0, bonds[1:])
        p2, p3 = positions.index_select(0, angles[2:]), positions.index_select(0, torsions[3:])
        arms, axes = p0 - p1, p2 - p1[1:]
        return norm(arms), angle_between(arms[1:], axes), torsion(p0[2:], p1[2:], p2[1:], p3)

    def _with_fixed(self, bonds: Tensor) -> Tensor:
        """All bonds from those that are free."""
        if not len(self.fixed_lengths):
            return bonds
        fixed = self.fixed_lengths.to(bonds.dtype).unsqueeze(-1).expand(-1, bonds.size(-1))
        return torch.cat([bonds, fixed]).index_select(0, self.bond_order)

    def _log_det(self, bonds: Tensor, sines: Tensor) -> Tensor:
        widths = self.scale.log().sum().to(bonds.dtype)
        first, others = bonds[0].abs().log(), (bonds[1:].square() * sines).abs().log()
        return 2 * first + others.sum(0) + widths

    def canonical(self, positions: Tensor) -> Tensor:
        """The same structures with interchangeable hydrogens labelled as in the reference.

        The hydrogens of a methyl, ammonium, methylene or amine group can be exchanged without a change of the
        energy. What this returns is the same for all of their labels, so that data and samples can be compared and
        data lie in the box. Two or three hydrogens of an atom are sorted by where they stand about the bond on which
        it hangs. Those among the first three atoms of the Z-matrix have no such bond, or nothing to count the turn
        from: in molecules as small as water and methane labels stay, and in ethane one methyl keeps its sense only.

        Args:
            positions: ``(*batch, atoms, 3)``.

        Raises:
            ValueError: If the molecule was described without elements, or for another number of atoms.
        """
        if not self._knows_elements:
            raise ValueError("InternalCoordinates: canonical needs to know the hydrogens, construct it with elements")
        return self.hydrogen_order(self._checked(positions))

    def chirality_of(self, positions: Tensor) -> Tensor:
        """The handedness of each stereocentre: 1 as in the reference, -1 its mirror image.

        ``positions[(chirality_of(positions) > 0).all(-1)]`` are those of the right hand.

        Args:
            positions: ``(*batch, atoms, 3)``.

        Returns:
            ``(*batch, stereocentres)``.

        Raises:
            ValueError: If there is another number of atoms.
        """
        return self.handedness(self._checked(positions))

    @torch.no_grad()
    def informed_base(
        self,
        energy: Callable[[Tensor], Tensor],
        kT: float,
        *,
        minimum: Tensor | None = None,
        uniform: Tensor | None = None,
    ) -> InformedBase:
        """The map from a standard normal to a first guess at the distribution of u.

        Uniform for torsions that turn freely. Bonds, angles and stiff torsions get truncated normals about the
        minimum, their scales ``sqrt(kT / k)`` with k the curvature of the energy along each: by second
        differences, so that an energy without gradients serves too. Each sees the others fixed, which makes
        scales rather too small than too large.

        Args:
            energy: Takes positions ``(batch, atoms, 3)`` in nm, returns energies ``(batch,)``.
            kT: Thermal energy in the unit of the energy.
            minimum: Positions of a minimum, ``(atoms, 3)``; the reference if not given.
            uniform: Which coordinates are uniform, boolean, ``(dim,)``; those that are `circular` if not given.

        Raises:
            ValueError: If ``kT`` is not positive, or the minimum outside the box or its energy not finite.
        """
        check_positive("InternalCoordinates", "kT", kT)
        minimum = self.reference if minimum is None else self._checked(minimum)
        loc, _ = self.inverse_and_log_det(minimum.to(self.reference).double())
        if not bool((loc.abs() < self.bound).all()):
            raise ValueError("minimum: its coordinates must lie within the ranges about the reference")
        step = _STEP * self.bound
        shifts = step * torch.eye(len(loc), dtype=loc.dtype, device=loc.device)
        positions, log_det = self.forward_and_log_det(torch.cat([loc.unsqueeze(0), loc + shifts, loc - shifts]))
        reduced = energy(positions) / kT - log_det
        if not bool(reduced.isfinite().all()):
            raise ValueError("energy: must be finite at the minimum and about it")
        here, up, down = reduced.split([1, len(loc), len(loc)])
        curvature = (up - 2 * here + down) / step**2
        narrowest, widest = _NARROWEST * self.bound, _WIDEST * self.bound
        scale = curvature.clamp(widest**-2, narrowest**-2).rsqrt()
        return InformedBase(loc, scale.masked_fill(self.circular if uniform is None else uniform, math.inf), self.bound)

    def _checked(self, positions: Tensor) -> Tensor:
        if positions.shape[-2:] != self.output_shape:
            raise ValueError(
                f"InternalCoordinates: positions must end in the shape {tuple(self.output_shape)}, but have shape "
                f"{tuple(positions.shape)}"
            )
        return positions

    def extra_repr(self) -> str:
        atoms, fixed, circular = len(self.z_matrix), len(self.fixed_lengths), int(self.circular.sum())
        return f"atoms={atoms}, dim={len(self.centre)}, circular={circular}, fixed_bonds={fixed}"


def _checked_reference(reference: Tensor) -> Tensor:
    reference = torch.as_tensor(reference, dtype=torch.float64).detach().clone()
    if reference.dim() != 2 or reference.size(1) != 3 or len(reference) < 2:
        raise ValueError(
            f"reference must be positions of two atoms or more, (atoms, 3), got shape {tuple(reference.shape)}"
        )
    wrong = (~reference.isfinite()).any(-1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"reference: the position of atom {wrong[0]} is not finite: {reference[wrong[0]].tolist()}")
    return reference


def _find_fixed(fixed_bonds: Iterable[Sequence[float]], rows: Sequence[Row]) -> dict[int, float | None]:
    """The numbers of the held bonds, and their lengths where they are given."""
    number = {frozenset(row[:2]): k for k, row in enumerate(rows[1:])}
    fixed: dict[int, float | None] = {}
    for bond in fixed_bonds:
        if len(bond) not in (2, 3):
            raise ValueError(f"fixed_bonds must hold (i, j) or (i, j, length), got {bond}")
        first, second, length = int(bond[0]), int(bond[1]), float(bond[2]) if len(bond) == 3 else None
        found = number.get(frozenset((first, second)))
        if found is None or found in fixed:
            raise ValueError(f"fixed_bonds must name bonds of the Z-matrix, each once, got {first}-{second}")
        if length is not None:
            check_positive("fixed_bonds", f"the length of {first}-{second} (nm)", length)
        fixed[found] = length
    return fixed
