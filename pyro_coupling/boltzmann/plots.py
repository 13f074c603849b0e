"""Pictures of molecules' distributions: Ramachandran plots, profiles, energies, marginals, conformations."""

from __future__ import annotations

__all__ = ["plot_conformations", "plot_energies", "plot_marginals", "plot_profiles", "plot_ramachandran"]

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..plots.style import Colour, colour, ink, new_figure, new_panels, tidy
from .observables import Profile
from .ramachandran import Ramachandran, total_variation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HIGHEST = 9.0  # kT above the lowest bin, where the scale of Ramachandran plots ends
_ELEMENTS = {"C": "#50555c", "N": "#3b6ea5", "O": "#c8372d", "H": "#b9bec5", "S": "#c9a227", "P": "#d1701f"}
_BAR = {"fraction": 0.045, "pad": 0.03}
_TURN = [-math.pi, -math.pi / 2, 0.0, math.pi / 2, math.pi]


def plot_ramachandran(
    flow: Ramachandran, reference: Ramachandran, reweighted: Ramachandran | None = None
) -> np.ndarray:
    """Free energy over phi and psi on one scale, panel by panel, and the difference to the reference.

    Args:
        flow: Of the flow's own samples.
        reference: Of the truth.
        reweighted: Of the flow's samples with their weights; the difference is of these if they are given.

    Returns:
        Axes, ``(3,)`` or ``(4,)``, of a figure that belongs to no window: ``axes[0].figure.savefig("plot.png")``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the histograms differ in bins.

    Example:
        >>> from pyro_coupling.boltzmann.ramachandran import ramachandran_histogram
        >>> histograms = [ramachandran_histogram(torch.randn(1000, 2), bins=32) for _ in range(2)]
        >>> plot_ramachandran(*histograms).shape
        (3,)
    """
    named = {"flow": flow, "reweighted": reweighted, "reference": reference}
    shown = {name: histogram for name, histogram in named.items() if histogram is not None}
    compared = "flow" if reweighted is None else "reweighted"
    divergences = {name: total_variation(shown[name], reference) for name in shown}
    axes = new_figure(3.9 * (len(shown) + 1) + 1.2, 3.9).subplots(1, len(shown) + 1, sharey=True)
    for panel, (name, histogram) in zip(axes, shown.items(), strict=False):
        image = _draw_free_energy(panel, histogram)
        title = f"{name}, {_count(histogram.num_samples)} samples"
        _title(panel, title if name == "reference" else f"{title}, TV {divergences[name].value:.3f}")
    figure = axes[0].figure
    figure.colorbar(image, ax=axes[len(shown) - 1], label="free energy (kT)", extend="max", **_BAR)
    difference = _draw_difference(axes[-1], shown[compared], reference)
    _title(axes[-1], f"{compared} less reference, {reference.bins} x {reference.bins} bins")
    figure.colorbar(difference, ax=axes[-1], label="probability per bin", extend="both", **_BAR)
    axes[0].set_ylabel("psi")
    return axes


def plot_profiles(
    profiles: Mapping[str, Profile], *, coordinate: str = "phi", circular: bool = True, axes: Axes | None = None
) -> Axes:
    """Free energies along a coordinate, each with its band.

    Args:
        profiles: What each is called, and the profile.
        coordinate: Name of the coordinate.
        circular: Whether it is an angle from -pi to pi.
        axes: Where to draw; a new figure if not given.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no profile.

    Example:
        >>> from pyro_coupling.boltzmann.observables import free_energy_profile
        >>> plot_profiles({"flow": free_energy_profile(torch.randn(1000))}).get_xlabel()
        'phi'
    """
    if not profiles:
        raise ValueError("profiles must hold one at least")
    axes = new_figure(7.0, 4.4).subplots() if axes is None else axes
    highest = 1.0
    for (name, profile), shade in zip(profiles.items(), itertools.cycle(_shades()), strict=False):
        x, y = _array(profile.centres), _array(profile.free_energy)
        low, high = _array(profile.low), _array(profile.high)
        shown = np.where(np.isfinite(y), y, np.nan)
        axes.plot(x, shown, color=shade, linewidth=1.8, marker=".", markersize=4, label=name)
        known = np.isfinite(high)
        axes.fill_between(x, low, high, where=known, color=shade, alpha=0.25, linewidth=0)
        # a bin that replicates found empty has no upper end: there the band goes on beyond the picture
        axes.fill_between(x, low, 1e6, where=np.isfinite(low) & ~known, color=shade, alpha=0.06, linewidth=0)
        highest = max(highest, *shown[known])
    axes.set_ylim(-0.06 * highest, 1.4 * highest)
    axes.set_xlabel(coordinate)
    axes.set_ylabel("free energy (kT), 95 % band")
    if circular:
        _label_turn(axes.xaxis)
        axes.set_xlim(-math.pi, math.pi)
    return _finish(axes)


def plot_energies(
    flow: Tensor,
    log_weights: Tensor | None = None,
    reference: Tensor | None = None,
    *,
    kT: float | None = None,
    unit: str = "kJ/mol",
    axes: Axes | None = None,
) -> Axes:
    """Distributions of the energy: of the flow's samples, of the same with their weights, of a reference.

    The picture ends where the reference, or else the weighted distribution, has no more, or not much later; what
    part of the flow's samples lies beyond is told in the legend.

    Args:
        flow: Energies of the flow's samples, ``(n,)``.
        log_weights: Their log weights, ``(n,)``.
        reference: Energies of reference samples, ``(m,)``.
        kT: Thermal energy; if given, energies are shown in its units.
        unit: Unit of the energies, for the label.
        axes: Where to draw; a new figure if not given.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If log_weights are not as many as energies, or no energy is finite.

    Example:
        >>> energies = torch.randn(1000)
        >>> plot_energies(energies, log_weights=0.1 * energies, kT=1.0).get_xlabel()
        'energy (kT)'
    """
    if log_weights is not None and log_weights.shape != flow.shape:
        raise ValueError(f"log_weights must be of shape {tuple(flow.shape)}, got {tuple(log_weights.shape)}")
    axes = new_figure(7.0, 4.4).subplots() if axes is None else axes
    scale = 1.0 if kT is None else 1 / kT
    values = scale * _array(flow)
    series: list[tuple[str, np.ndarray, np.ndarray | None]] = [("flow", values, None)]
    if log_weights is not None:
        series.append(("reweighted", values, _weights(log_weights)))
    if reference is not None:
        series.append(("reference", scale * _array(reference), None))
    low, high = _limits(*series[-1][1:])
    most = np.quantile(values[np.isfinite(values)], 0.98)
    high = max(high, min(most, high + (high - low)))
    beyond = np.mean(~(values <= high))
    for (name, x, weights), shade in zip(series, _shades(), strict=False):
        label = f"flow ({100 * beyond:.2g} % beyond)" if name == "flow" and beyond > 0 else name
        _draw_density(axes, x, weights, (low, high), shade, label, filled=name == "reference" or len(series) == 1)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(f"energy ({unit if kT is None else 'kT'})")
    axes.set_ylabel("density")
    axes.set_yticks([])
    return _finish(axes)


def plot_marginals(
    flow: Tensor,
    reference: Tensor | None = None,
    names: Sequence[str] | None = None,
    *,
    log_weights: Tensor | None = None,
    unit: str = "nm",
    columns: int = 6,
) -> np.ndarray:
    """Distributions of bonds, angles or whatever `measurements` gives, one panel each.

    Args:
        flow: Values of the flow's samples, ``(n, k)``, such as ``bond_lengths(positions, bonds)``.
        reference: Values of reference samples, ``(m, k)``.
        names: Titles of the panels, ``(k,)``.
        log_weights: Log weights of the flow's samples, ``(n,)``: their distribution is shown with them.
        unit: Unit of the values, for the label.
        columns: Panels in a row.

    Returns:
        Axes, ``(k,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If shapes do not fit.

    Example:
        >>> plot_marginals(torch.randn(500, 3), torch.randn(500, 3), ["C-C", "C-N", "C-O"]).shape
        (3,)
    """
    if flow.dim() != 2 or (reference is not None and reference.shape[1:] != flow.shape[1:]):
        other = None if reference is None else tuple(reference.shape)
        raise ValueError(f"flow and reference must be (n, k) and (m, k), got {tuple(flow.shape)} and {other}")
    num = flow.size(1)
    if names is not None and len(names) != num:
        raise ValueError(f"names must be {num}, one for each column, got {len(names)}")
    weights = None if log_weights is None else _weights(log_weights)
    panels = new_panels(num, columns, 2.5, 1.9)
    for i, axes in enumerate(panels):
        values = _array(flow[:, i])
        series = [("flow" if weights is None else "reweighted", values, weights)]
        if reference is not None:
            series.insert(0, ("reference", _array(reference[:, i]), None))
        limits = _limits(*series[0][1:])
        for name, x, w in series:
            shade, filled = (ink(0.7), True) if name == "reference" else (colour(int(w is not None)), False)
            _draw_density(axes, x, w, limits, shade, name, filled=filled or len(series) == 1)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=4)
        _title(axes, names[i] if names is not None else f"{i}")
        tidy(axes)
        axes.tick_params(labelsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    panels[0].figure.supxlabel(f"value ({unit})", fontsize=11)
    panels[0].figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=11)
    return panels


def plot_conformations(
    positions: Tensor,
    bonds: Sequence[Sequence[int]],
    elements: Sequence[str] | None = None,
    *,
    columns: int = 6,
) -> np.ndarray:
    """A sheet of molecules as sticks, all turned to lie on the first, which is seen along its shortest axis.

    Args:
        positions: ``(n, atoms, 3)``.
        bonds: Pairs of atoms.
        elements: Symbol of each atom, for colours; hydrogens are drawn thin.
        columns: Molecules in a row.

    Returns:
        Axes, ``(n,)``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If shapes do not fit or a position is not finite.

    Example:
        >>> plot_conformations(torch.randn(8, 4, 3), [(0, 1), (1, 2), (2, 3)]).shape
        (8,)
    """
    if positions.dim() != 3 or positions.size(-1) != 3 or not len(positions):
        raise ValueError(f"positions must be (n, atoms, 3), got shape {tuple(positions.shape)}")
    if not bool(positions.isfinite().all()):
        raise ValueError("positions must be finite")
    if elements is not None and len(elements) != positions.size(1):
        raise ValueError(f"elements must be one for each of {positions.size(1)} atoms, got {len(elements)}")
    symbols = ["C"] * positions.size(1) if elements is None else [symbol.strip().upper() for symbol in elements]
    pairs = np.asarray(bonds, dtype=int).reshape(-1, 2)
    placed = _aligned(_array(positions).astype(float))
    reach = 1.08 * np.abs(placed[..., :2]).max(axis=(0, 1))
    panels = new_panels(len(placed), columns, 2.2, 2.2 * reach[1] / reach[0])
    for axes, points in zip(panels, placed, strict=True):
        _draw_sticks(axes, points, pairs, symbols)
        axes.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]), aspect="equal")
        axes.axis("off")
    return panels


def _draw_free_energy(axes: Axes, histogram: Ramachandran) -> Any:
    probabilities = _array(histogram.probabilities)
    with np.errstate(divide="ignore"):
        free_energy = np.log(probabilities.max()) - np.log(probabilities)
    shown = np.where(np.isfinite(free_energy), free_energy, np.nan)
    return _draw_map(axes, shown, cmap="viridis", vmin=0.0, vmax=_HIGHEST)


def _draw_difference(axes: Axes, one: Ramachandran, other: Ramachandran) -> Any:
    difference = _array(one.probabilities) - _array(other.probabilities)
    # the largest few bins would leave all others pale
    most = max(float(np.quantile(np.abs(difference[difference != 0.0]), 0.99)) if difference.any() else 0.0, 1e-12)
    return _draw_map(axes, difference, cmap="RdBu_r", vmin=-most, vmax=most)


def _draw_map(axes: Axes, values: np.ndarray, **style: Any) -> Any:
    image = axes.imshow(
        values.T, origin="lower", extent=(-math.pi, math.pi, -math.pi, math.pi), interpolation="nearest", **style
    )
    axes.set_facecolor("white")
    axes.set_xlabel("phi")
    _label_turn(axes.xaxis)
    _label_turn(axes.yaxis)
    return image


def _draw_density(
    axes: Axes,
    values: np.ndarray,
    weights: np.ndarray | None,
    limits: tuple[float, float],
    shade: Colour,
    label: str,
    filled: bool,
) -> None:
    weights = np.full(len(values), 1 / len(values)) if weights is None else weights
    # the width of bins follows the number of samples (Rice's rule), so that few samples do not look ragged
    bins = int(np.clip(2 * (1 / np.square(weights).sum()) ** (1 / 3), 10, 80))
    heights, edges = np.histogram(values, bins, limits, weights=weights)
    heights = heights / np.diff(edges)  # of all samples, also of those beyond the limits
    style = {"alpha": 0.35, "linewidth": 0.0} if filled else {"linewidth": 1.8, "baseline": None}
    axes.stairs(heights, edges, fill=filled, color=shade, label=label, **style)


def _draw_sticks(axes: Axes, points: np.ndarray, bonds: np.ndarray, symbols: Sequence[str]) -> None:
    from matplotlib.collections import LineCollection

    halves, colours, widths, depths = [], [], [], []
    for i, j in bonds:
        middle = (points[i] + points[j]) / 2
        for atom in (i, j):
            halves.append([points[atom][:2], middle[:2]])
            colours.append(_ELEMENTS.get(symbols[atom], colour(2)))
            widths.append(1.6 if "H" in (symbols[i], symbols[j]) else 3.4)
            depths.append((points[atom][2] + middle[2]) / 2)
    order = np.argsort(depths)
    axes.add_collection(
        LineCollection(
            [halves[k] for k in order],
            colors=[colours[k] for k in order],
            linewidths=[widths[k] for k in order],
            capstyle="round",
        )
    )


def _aligned(positions: np.ndarray) -> np.ndarray:
    """Centred, and turned onto the first structure in its principal axes (Kabsch 1976)."""
    centred = positions - positions.mean(1, keepdims=True)
    axes = np.linalg.svd(centred[0], full_matrices=True)[2].T
    axes[:, 2] *= np.sign(np.linalg.det(axes))  # no mirror image
    first = centred[0] @ axes
    left, _, right = np.linalg.svd(np.swapaxes(centred, 1, 2) @ first)
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    return centred @ (left @ right)


def _limits(values: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Where all but a thousandth lies at either end, and some room."""
    weights = np.ones(len(values)) if weights is None else weights
    use = np.isfinite(values) & (weights > 0)
    if not use.any():
        raise ValueError("values: none is finite, there is nothing to draw")
    values, weights = values[use], weights[use]
    order = np.argsort(values)
    part = np.cumsum(weights[order]) / weights.sum()
    low, high = (float(values[order[np.argmax(part >= level)]]) for level in (0.001, 0.999))
    room = 0.08 * (high - low) or 0.5
    return low - room, high + room


def _weights(log_weights: Tensor) -> np.ndarray:
    return _array(torch.softmax(log_weights.detach().double(), 0))


def _shades() -> list[Colour]:
    """Two colours for the flow, the colour of text for the reference, one more."""
    return [colour(0), colour(1), ink(0.7), colour(2)]


def _count(number: int) -> str:
    mantissa, exponent = f"{number:.1e}".split("e")
    return str(number) if number < 10_000 else f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _label_turn(axis: Any) -> None:
    axis.set_ticks(_TURN, ["-π", "-π/2", "0", "π/2", "π"])


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11)


def _finish(axes: Axes) -> Axes:
    axes.legend(frameon=False, fontsize=11)
    tidy(axes)
    return axes


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
