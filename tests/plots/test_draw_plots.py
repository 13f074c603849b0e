"""Pictures of draws: marginals, pairs, weights, calibration show the numbers they are given."""

import math

import matplotlib
import numpy as np
import pytest
import torch
import xarray
from matplotlib.colors import to_rgba
from scipy.stats import binom

from pyro_coupling.diagnostics import pareto_smooth, relative_ess
from pyro_coupling.plots import plot_calibration, plot_marginals, plot_pairs, plot_weights


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DRAWS = {"effect": normal(400, 2), "mu": normal(400, seed=1)}


def titles(axes):
    return [panel.get_title(loc="left") for panel in axes]


def rendered(axes):
    """Draws the whole figure, which finds mistakes that only show then."""
    figure = np.ravel(axes)[0].figure
    figure.savefig("/dev/null", format="png", dpi=20)
    return axes


def area(patch):
    heights, edges, _ = patch.get_data()
    return (heights * np.diff(edges)).sum()


# Marginals


def test_marginals_are_densities_with_mean_and_sd_in_the_legend():
    axes = rendered(plot_marginals(DRAWS, {"mu": np.array([1.0, 3.0])}))
    assert titles(axes) == ["mu", "effect[0]", "effect[1]"]
    # all but a thousandth of the draws at either end are within the limits
    assert all(area(patch) == pytest.approx(1.0) for panel in axes for patch in panel.patches)
    assert [len(panel.patches) for panel in axes] == [2, 1, 1]
    assert axes[0].get_legend().get_texts()[1].get_text() == "reference: 2.0 ± 1.0"


@pytest.mark.parametrize("kind", ["InferenceData", "DataTree", "Dataset", "one dimension"])
def test_arviz_objects_show_what_a_dict_of_the_same_draws_shows(kind):
    effect = DRAWS["effect"].reshape(4, 100, 2)
    dataset = xarray.Dataset(
        {"effect": (("school", "chain", "draw"), effect.permute(2, 0, 1)), "mu": (("chain", "draw"), np.ones((4, 100)))}
    )
    samples = {
        "InferenceData": lambda: _inference_data(dataset),
        "DataTree": lambda: xarray.DataTree.from_dict({"posterior": dataset, "prior": dataset}),
        "Dataset": lambda: dataset,
        "one dimension": lambda: dataset.stack(sample=("chain", "draw")),
    }[kind]()
    shown, expected = (plot_marginals(given, names=["effect[1]"])[0] for given in (samples, DRAWS))
    np.testing.assert_array_equal(shown.patches[0].get_data().values, expected.patches[0].get_data().values)


def _inference_data(dataset):
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "InferenceData"):
        pytest.skip("ArviZ 1 has no InferenceData")
    return arviz.InferenceData(posterior=dataset)


def test_draws_that_are_not_finite_are_left_out():
    values = torch.tensor([math.nan, math.inf, *[1.0, 3.0] * 10])
    assert "2.0 ± 1.0" in plot_marginals({"mu": values})[0].get_legend().get_texts()[0].get_text()


# Pairs


def test_pairs_show_every_draw_below_the_diagonal():
    axes = rendered(plot_pairs(DRAWS, names=["mu", "effect[1]"]))
    assert axes.shape == (2, 2)
    np.testing.assert_array_equal(axes[1, 0].lines[0].get_xdata(), DRAWS["mu"])
    np.testing.assert_array_equal(axes[1, 0].lines[0].get_ydata(), DRAWS["effect"][:, 1])
    assert (axes[1, 0].get_xlabel(), axes[1, 0].get_ylabel()) == ("mu", "effect[1]")
    assert not axes[0, 1].axison


def test_many_draws_are_thinned_evenly():
    points = plot_pairs({"x": torch.arange(10_000.0), "y": normal(10_000)})[1, 0].lines[0].get_xdata()
    assert len(points) == 2000 and set(np.diff(points)) == {5.0}


def test_lines_of_a_normal_reference_hold_half_and_nine_tenths():
    reference = {"x": normal(100_000), "y": normal(100_000, seed=1)}
    axes = plot_pairs({"x": normal(100), "y": normal(100)}, reference)
    (contours,) = axes[1, 0].collections
    # a circle of radius r holds 1 - exp(-r^2 / 2); the blur of two cells of 0.11 adds 0.05 to the variance: 2.5 % of r
    for path, mass in zip(contours.get_paths(), (0.9, 0.5), strict=True):
        radius = np.linalg.norm(path.vertices, axis=1)
        assert np.median(radius) == pytest.approx(math.sqrt(-2 * math.log(1 - mass)), rel=0.06)


# Weights


def test_weights_tell_ess_and_khat_and_show_every_weight():
    log_weights = normal(2000)
    axes = rendered(plot_weights(log_weights))
    khat = pareto_smooth(log_weights)[1]
    assert titles(axes) == [f"Relative ESS {relative_ess(log_weights):.2f}", f"k-hat {khat:.2f}"]
    # a thousandth of the weights, the smallest, is left out
    body, every = (patch.get_data().values for patch in axes[0].patches)
    assert every.sum() == 1998 and (every - body).sum() == math.ceil(3 * math.sqrt(2000))


def test_tail_shows_the_largest_weights_and_the_fit_in_their_place():
    log_weights = normal(2000)
    points, line = plot_weights(log_weights)[1].lines[:2]
    relative = (log_weights.exp() / log_weights.exp().mean()).sort(descending=True).values
    size = math.ceil(3 * math.sqrt(2000))
    np.testing.assert_allclose(points.get_ydata(), relative[: 3 * size])
    assert list(line.get_xdata()) == list(range(1, size + 1))
    # the tail of a log-normal is close to a Pareto's but for the few largest weights
    np.testing.assert_allclose(line.get_ydata()[20:], relative[20:size], rtol=0.1)


@pytest.mark.parametrize(
    ("log_weights", "title"),
    [
        (torch.full((100,), -math.inf), "too few weights for k-hat"),
        (torch.zeros(3), "too few weights for k-hat"),
        (torch.zeros(100), "too few weights for k-hat"),
        (torch.cat([normal(100), torch.full((900,), -math.inf)]), "k-hat"),
        (np.zeros(3), "too few weights for k-hat"),
    ],
)
def test_odd_weights_are_drawn(log_weights, title):
    assert rendered(plot_weights(log_weights))[1].get_title(loc="left").startswith(title)


# Calibration


def test_calibration_counts_ranks_and_has_the_band_of_the_binomial():
    ranks = torch.arange(400) % 100
    axes = rendered(plot_calibration(ranks, 99, bins=10, level=0.9))
    band, expected, counts = axes.patches
    assert list(counts.get_data().values) == list(expected.get_data().values) == [40] * 10
    assert list(counts.get_data().edges) == [10 * i - 0.5 for i in range(11)]
    assert band.get_data().values[0] == binom.ppf(0.95, 400, 0.1)
    assert band.get_data().baseline[0] == binom.ppf(0.05, 400, 0.1)


@pytest.mark.parametrize(("num_draws", "num_bins"), [(99, 25), (31, 16), (100, 30), (1, 2)])
def test_bins_hold_equally_many_ranks_where_they_can(num_draws, num_bins):
    counts = plot_calibration(np.arange(1000) % (num_draws + 1), num_draws).patches[2].get_data()
    assert len(counts.values) == num_bins


def test_bins_of_unequal_width_have_bands_of_their_own():
    expected = plot_calibration(np.arange(10).repeat(8), 9, bins=4).patches[1].get_data().values
    assert list(expected) == [16, 24, 24, 16]  # np.round takes 2.5 to 2 and 7.5 to 8


def test_exact_posteriors_lie_in_the_band_and_narrow_ones_do_not():
    uniform = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    for values, most_outside in ((uniform, 2), ((uniform - 0.5).clip(-0.4, 0.4) / 0.8 + 0.5, None)):
        band, _, counts = (patch.get_data() for patch in plot_calibration(values).patches)
        outside = ((counts.values > band.values) | (counts.values < band.baseline)).sum()
        assert outside <= most_outside if most_outside is not None else outside >= 2


# Style, and what is refused


def test_colours_are_those_of_the_style_when_the_picture_is_made():
    with matplotlib.rc_context({"axes.prop_cycle": matplotlib.cycler(color=["#123456", "#654321"])}):
        marginal = plot_marginals({"mu": DRAWS["mu"]}, {"mu": DRAWS["mu"]})[0]
        pair = plot_pairs(DRAWS, names=["effect"])[1, 0]
    assert marginal.patches[0].get_facecolor()[:3] == to_rgba("#123456")[:3]
    assert marginal.patches[1].get_edgecolor() == to_rgba("#654321")
    assert pair.lines[0].get_color() == to_rgba("#123456")


def test_a_dark_style_has_a_dark_figure_and_light_labels():
    with matplotlib.style.context("dark_background"):
        axes = plot_calibration(torch.rand(100))
    assert to_rgba(axes.figure.get_facecolor()) == to_rgba("black")
    assert to_rgba(axes.xaxis.label.get_color()) == to_rgba("white")


def test_axes_that_are_given_are_drawn_on():
    from matplotlib.figure import Figure

    one, two, pair = Figure().subplots(), Figure().subplots(1, 2), Figure().subplots(1, 2)
    assert all(plot_weights(normal(100), axes=pair) == pair)
    assert all(plot_marginals(DRAWS, names=["effect"], axes=list(two)) == two)
    assert plot_calibration(torch.rand(50), axes=one) is one
    grid = Figure().subplots(2, 2)
    assert (plot_pairs(DRAWS, names=["effect"], axes=grid) == grid).all()


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plot_marginals(torch.zeros(5)), TypeError, "samples must be a dict"),
        (lambda: plot_marginals({}), ValueError, "samples holds no draws"),
        (lambda: plot_marginals({"a": torch.zeros(())}), ValueError, "'a' of shape"),
        (lambda: plot_marginals({"a": torch.full((5,), math.nan)}), ValueError, "a: no draw is finite"),
        (lambda: plot_marginals(xarray.Dataset({"a": ("x", [1.0])})), ValueError, "expected chain and draw"),
        (lambda: plot_marginals(DRAWS, {"mu": torch.zeros(5, 2)}), ValueError, "reference has 'mu' of shape"),
        (lambda: plot_marginals(DRAWS, names=["nu"]), ValueError, "names has 'nu'"),
        (lambda: plot_marginals(DRAWS, axes=[None]), ValueError, "axes must be"),
        (lambda: plot_pairs(DRAWS, names=["mu"]), ValueError, "names must give two"),
        (lambda: plot_pairs(DRAWS, {"mu": DRAWS["mu"]}), ValueError, r"it lacks \['effect'\]"),
        (lambda: plot_weights(torch.zeros(5, 2)), ValueError, "log_weights"),
        (lambda: plot_weights(torch.tensor([math.nan])), ValueError, "log_weights"),
        (lambda: plot_calibration(torch.zeros(3, 3)), ValueError, "values must be a vector"),
        (lambda: plot_calibration(torch.arange(3)), ValueError, "values .* num_draws"),
        (lambda: plot_calibration(torch.tensor([1.5])), ValueError, "values must lie"),
        (lambda: plot_calibration(torch.tensor([math.nan])), ValueError, "values must lie"),
        (lambda: plot_calibration(torch.tensor([5]), 4), ValueError, "values must be whole"),
        (lambda: plot_calibration(torch.tensor([0.5]), 4), ValueError, "values must be whole"),
        (lambda: plot_calibration(torch.zeros(5), level=1.0), ValueError, "level"),
        (lambda: plot_calibration(torch.zeros(5), bins=0), ValueError, "bins"),
        (lambda: plot_calibration(torch.zeros(5), 0), ValueError, "num_draws"),
    ],
)
def test_wrong_input_is_refused(draw, error, message):
    with pytest.raises(error, match=message):
        draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_marginals(DRAWS),
        lambda: plot_pairs(DRAWS),
        lambda: plot_weights(torch.zeros(5)),
        lambda: plot_calibration(torch.zeros(5)),
    ],
)
def test_without_matplotlib_the_error_names_the_extra(draw, no_matplotlib):
    with pytest.raises(ImportError, match=r"pyro-coupling\[plots\]"):
        draw()
