"""Pictures of flows show where points go, and leave the flow as it was."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_coupling import flows
from pyro_coupling.plots import plot_grid, plot_images, plot_jacobian, plot_layers
from pyro_coupling.transforms import ActNorm, Chain, Permutation, affine_coupling, conditional_affine_coupling


def trained(flow):
    """A flow whose parameters are anything but those of the identity."""
    torch.manual_seed(0)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow


def rendered(axes):
    """Draws the whole figure, which finds mistakes that only show then."""
    np.ravel(axes)[0].figure.savefig("/dev/null", format="png", dpi=20)
    return axes


# Grid


def test_grid_lines_are_where_the_flow_takes_them():
    flow = trained(flows.real_nvp(2, 2, (8,)))
    axes = rendered(plot_grid(flow, window=2.0, lines=5))
    assert len(axes.lines) == 10
    along = torch.linspace(-2, 2, 400)
    second_upright = torch.stack([torch.full((400,), -1.0), along], -1)
    np.testing.assert_allclose(axes.lines[1].get_xydata(), flow(second_upright).detach(), rtol=1e-5, atol=1e-5)


def test_rings_of_the_polar_grid_hold_their_mass():
    lines = rendered(plot_grid(flows.real_nvp(2), polar=True, lines=8)).lines
    assert len(lines) == 8 + 10
    radius = [np.linalg.norm(line.get_xydata(), axis=1).mean() for line in lines[8:]]
    assert 1 - np.exp(-np.square(radius) / 2) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])


def test_context_changes_the_grid():
    flow = trained(conditional_affine_coupling(2, 1))
    one, other = (plot_grid(flow, context=torch.tensor([c])).lines[3].get_xydata() for c in (0.0, 2.0))
    assert np.abs(one - other).max() > 0.01


def test_flows_in_double_precision_are_drawn():
    rendered(plot_grid(trained(flows.real_nvp(2, 2, (8,))).double()))


# Layers


@pytest.mark.parametrize("turned", [False, True])
def test_layers_of_nested_chains_are_shown_in_the_order_they_act(turned):
    flow = trained(Chain([Chain([affine_coupling(2, permute=False), Permutation([1, 0])]), affine_coupling(2)]))
    flow = flow.inv if turned else flow
    axes = rendered(plot_layers(flow, 50, seed=3))
    clouds = [panel.collections[0].get_offsets() for panel in axes]
    base = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(clouds[0], base)
    np.testing.assert_allclose(clouds[-1], flow(base).detach(), rtol=1e-4, atol=1e-5)
    if not turned:
        np.testing.assert_allclose(clouds[1], flow.parts[0].parts[0](base).detach(), rtol=1e-5)
    # each point keeps its colour: the direction in which it started
    for panel in axes:
        np.testing.assert_allclose(panel.collections[0].get_array(), np.arctan2(*base.numpy().T[::-1]), rtol=1e-5)


def test_titles_name_the_layers():
    flow = Chain([affine_coupling(2, permute=False), Permutation([1, 0])])
    assert [panel.get_title(loc="left") for panel in plot_layers(flow)] == ["base", "1 Coupling", "2 Permutation"]
    turned = [panel.get_title(loc="left") for panel in plot_layers(flow.inv)]
    assert turned == ["base", "1 Permutation, inverse", "2 Coupling, inverse"]


def test_two_entries_of_a_larger_flow_are_drawn():
    flow = trained(flows.real_nvp(5, 2, (8,)))
    axes = plot_layers(flow, 20, dims=(3, 1))
    base = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(axes[-1].collections[0].get_offsets(), flow(base)[:, [3, 1]].detach(), rtol=1e-4)


# Jacobian


def test_jacobian_of_a_coupling_has_its_zeros_and_its_derivatives():
    layer = trained(affine_coupling(4, permute=False))
    x = torch.randn(4)
    shown = rendered(plot_jacobian(layer, x)).images[0].get_array()
    exact = torch.autograd.functional.jacobian(lambda v: layer.forward_and_log_det(v)[0], x).abs().numpy()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), exact == 0.0)
    np.testing.assert_allclose(shown.filled(0.0), exact, rtol=1e-5)
    # the half that stays depends on itself alone, the other half each on itself and on the first
    assert shown.count() == 2 + 2 + 4


def test_jacobian_of_many_points_is_the_mean_size():
    layer, x = trained(affine_coupling(3)), torch.randn(6, 3)
    mean = plot_jacobian(layer, x).images[0].get_array().filled(0.0)
    each = [plot_jacobian(layer, row).images[0].get_array().filled(0.0) for row in x]
    np.testing.assert_allclose(mean, np.mean(each, 0), rtol=1e-5)


def test_images_are_flattened_and_a_map_of_equal_slopes_has_a_scale():
    axes = rendered(plot_jacobian(Permutation([1, 0, 2, 3], (4,)), torch.zeros(4)))
    assert axes.get_title(loc="left") == "75% zeros"
    layer = trained(flows.glow((1, 2, 2), 1, 1, 4).eval())
    assert rendered(plot_jacobian(layer, torch.randn(1, 2, 2))).images[0].get_array().shape == (4, 4)


def test_gradients_may_be_off():
    with torch.no_grad():
        assert (
            plot_jacobian(trained(affine_coupling(4, permute=False)), torch.zeros(4)).images[0].get_array().count() == 8
        )


# Images


def test_images_are_shown_in_rows_on_one_scale():
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 4, 3)
    axes = rendered(plot_images(images, labels="abcdef", columns=4))
    assert [image.get_array()[0, 0] for image in axes.images] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    left, top = (np.array([image.get_extent()[i] for image in axes.images]) for i in (0, 3))
    assert (np.diff(left)[[0, 1, 2, 4]] > 3).all() and left[4] == left[0]
    assert (top[:4] == 0).all() and (top[4:] > 4).all()
    assert [text.get_text() for text in axes.texts] == list("abcdef")
    assert {image.get_clim() for image in axes.images} == {(0.0, 1.0)}


def test_colours_stay_and_values_out_of_range_are_clipped():
    images = torch.tensor([[2.0, 1.0, -1.0]]).reshape(1, 3, 1, 1)
    shown = plot_images(images, value_range=(0.0, 2.0)).images[0].get_array()
    np.testing.assert_array_equal(shown, [[[1.0, 0.5, 0.0]]])


def test_images_of_one_value_are_drawn():
    rendered(plot_images(np.zeros((2, 1, 3, 3), dtype=np.uint8)))


# What is left alone, and what is refused


@pytest.mark.parametrize("draw", [plot_grid, plot_layers, lambda flow: plot_jacobian(flow, torch.zeros(2))])
def test_a_flow_is_left_as_it_was(draw):
    flow = Chain([ActNorm(2), affine_coupling(2, permute=False)]).train()
    flow[1].eval()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    state = torch.random.get_rng_state()
    draw(flow)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert flow[0].training and not flow[1].training
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_axes_that_are_given_are_drawn_on():
    one, three = Figure().subplots(), Figure().subplots(1, 3)
    flow = Chain([affine_coupling(2, permute=False), Permutation([1, 0])])
    assert plot_grid(flow, axes=one) is one
    assert plot_jacobian(flow, torch.zeros(2), axes=one) is one
    assert plot_images(torch.rand(2, 1, 3, 3), axes=one) is one
    assert all(plot_layers(flow, axes=three) == three)


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plot_grid(torch.nn.Linear(2, 2)), TypeError, "flow must be a Bijection"),
        (lambda: plot_grid(flows.real_nvp(3)), ValueError, r"flow must map events of shape \(2,\)"),
        (lambda: plot_grid(flows.real_nvp(2), window=0.0), ValueError, "window"),
        (lambda: plot_grid(flows.real_nvp(2), lines=1), ValueError, "lines"),
        (lambda: plot_grid(flows.real_nvp(2), context=torch.zeros(1)), ValueError, "context"),
        (lambda: plot_grid(conditional_affine_coupling(2, 1)), ValueError, "context"),
        (lambda: plot_layers(flows.glow((1, 4, 4), 1, 1, 4)), ValueError, "flow must map vectors"),
        (lambda: plot_layers(flows.real_nvp(2), dims=(0, 2)), ValueError, "dims"),
        (lambda: plot_layers(flows.real_nvp(2), dims=(1, 1)), ValueError, "dims"),
        (lambda: plot_layers(flows.real_nvp(2), 0), ValueError, "num_samples"),
        (lambda: plot_layers(affine_coupling(2), axes=Figure().subplots()), ValueError, "axes"),
        (lambda: plot_jacobian(torch.nn.Linear(2, 2), torch.zeros(2)), TypeError, "transform must be"),
        (lambda: plot_jacobian(affine_coupling(3), torch.zeros(2)), ValueError, "x must be"),
        (lambda: plot_jacobian(affine_coupling(3), torch.zeros(2, 2, 3)), ValueError, "x must be"),
        (lambda: plot_jacobian(affine_coupling(3), torch.full((3,), math.nan)), ValueError, "x: a derivative"),
        (lambda: plot_images(torch.zeros(3, 4, 4)), ValueError, "images must be"),
        (lambda: plot_images(torch.zeros(3, 2, 4, 4)), ValueError, "images must be"),
        (lambda: plot_images(torch.full((3, 1, 4, 4), math.inf)), ValueError, "images must be finite"),
        (lambda: plot_images(torch.zeros(3, 1, 4, 4), labels=["a"]), ValueError, "labels"),
        (lambda: plot_images(torch.zeros(3, 1, 4, 4), columns=0), ValueError, "columns"),
        (lambda: plot_images(torch.zeros(3, 1, 4, 4), value_range=(1.0, 0.0)), ValueError, "value_range"),
    ],
)
def test_wrong_input_is_refused(draw, error, message):
    with pytest.raises(error, match=message):
        draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_grid(flows.real_nvp(2)),
        lambda: plot_layers(flows.real_nvp(2)),
        lambda: plot_jacobian(affine_coupling(2), torch.zeros(2)),
        lambda: plot_images(torch.zeros(1, 1, 2, 2)),
    ],
)
def test_without_matplotlib_the_error_names_the_extra(draw, no_matplotlib):
    with pytest.raises(ImportError, match=r"pyro-coupling\[plots\]"):
        draw()
