"""What `plot_fit` and `plot_training` draw, and what they refuse."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_coupling import FlowVI

pytest.importorskip("matplotlib")
from pyro_coupling.plots import plot_fit, plot_training

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("constant", torch.ones(()))
    with pyro.plate("group", 3):
        effect = pyro.sample("effect", dist.Normal(mu, 1.0))
        pyro.deterministic("pair", torch.stack([effect, -effect], -1))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


@pytest.fixture(scope="module")
def vi():
    return FlowVI(model, max_steps=200, seed=0, progress=False).run(torch.tensor([0.5, 1.0, 1.5]))


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_scalars_come_first_then_entries(vi):
    assert titles(plot_fit(vi))[:6] == ["mu", "constant", "effect[0]", "effect[1]", "effect[2]", "pair[0,0]"]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["mu"], ["mu"]),
        (["effect[2]", "pair[1, 0]"], ["effect[2]", "pair[1,0]"]),
        (["effect", "mu"], ["effect[0]", "effect[1]", "effect[2]", "mu"]),
        (["pair", "mu"], ["pair[0,0]", "pair[0,1]", "pair[1,0]", "pair[1,1]", "pair[2,0]", "pair[2,1]"]),
    ],
)
def test_names_choose_scalars(vi, names, shown):
    found = titles(plot_fit(vi, names=names))
    assert found[: len(shown)] == shown
    assert found[len(shown)] == "Training" and found[len(shown) + 1].startswith("Importance weights: k-hat")


def pixels(png):
    return tuple(np.frombuffer(png[16:24], ">u4"))


def test_the_picture_has_1600_by_1000_pixels(vi, tmp_path):
    plot_fit(vi).savefig(tmp_path / "fit.png")
    assert pixels((tmp_path / "fit.png").read_bytes()) == (1600, 1000)


def test_a_notebook_is_given_the_picture_whatever_its_backend(vi):
    assert pixels(plot_fit(vi)._repr_png_()) == (1600, 1000)


def test_compared_draws_are_in_the_legend_where_there_are_any(vi):
    figure = plot_fit(vi, {"mu": torch.randn(50)}, ["mu", "effect[0]"], compare_label="NUTS")
    texts = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[:2]]
    assert [text.split(":")[0] for text in texts[0]] == ["FlowVI", "NUTS"]
    assert [text.split(":")[0] for text in texts[1]] == ["FlowVI"]


def test_legend_tells_mean_and_sd(vi):
    figure = plot_fit(vi, {"mu": np.array([1.0, 3.0])}, ["mu"])
    assert figure.axes[0].get_legend().get_texts()[1].get_text() == "comparison: 2.0 ± 1.0"


def test_axes_are_labelled_and_two_hold_the_training(vi):
    figure = plot_fit(vi, names=["mu"])
    labels = {axes.get_ylabel() for axes in figure.axes}
    assert {"ELBO (nats)", "relative ESS", "draws", "density"} <= labels
    training = next(axes for axes in figure.axes if axes.get_ylabel() == "ELBO (nats)")
    assert list(training.lines[0].get_xdata()) == vi.record.steps
    assert list(training.lines[0].get_ydata()) == vi.record.elbo


def test_a_loaded_fit_has_no_curve(vi, tmp_path):
    vi.save(tmp_path / "fit.safetensors")
    figure = plot_fit(FlowVI.load(tmp_path / "fit.safetensors", model), names=["mu"])
    assert "no curve" in figure.axes[1].texts[0].get_text()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nu"], "nu"),
        (["effect[3]"], "shape"),
        (["effect[0,0]"], "shape"),
        (["mu[0]"], "shape"),
        ("mu", "sequence"),
        ([], "at least"),
    ],
)
def test_names_that_are_no_scalars_are_refused(vi, names, message):
    with pytest.raises(ValueError, match=message):
        plot_fit(vi, names=names)


def test_draws_of_another_shape_are_refused(vi):
    with pytest.raises(ValueError, match="shape"):
        plot_fit(vi, {"mu": torch.zeros(10, 2)})


def test_a_fit_that_was_not_run_is_refused():
    with pytest.raises(RuntimeError, match="run"):
        plot_fit(FlowVI(model))


def test_training_shows_what_the_run_has_kept_and_the_khat_it_is_given(vi):
    elbo, ess, khat = axes = plot_training(vi, {200: 0.6, 100: 0.9})
    elbo.figure.savefig("/dev/null", format="png", dpi=20)
    assert [panel.get_ylabel() for panel in axes] == ["ELBO (nats)", "relative ESS", "k-hat"]
    assert list(elbo.lines[0].get_xdata()) == list(ess.lines[0].get_xdata()) == vi.record.steps
    assert list(elbo.lines[0].get_ydata()) == vi.record.elbo
    assert list(ess.lines[0].get_ydata()) == vi.record.ess
    assert elbo.lines[1].get_ydata()[0] == vi.diagnostics()["log_evidence"]
    assert khat.lines[0].get_xydata().tolist() == [[100, 0.9], [200, 0.6]]
    assert [line.get_ydata()[0] for line in khat.lines[1:]] == [0.5, 0.7]


def test_training_ends_in_the_khat_of_the_fit(vi):
    (point,) = plot_training(vi)[2].lines[0].get_xydata().tolist()
    assert point == [vi.record.num_steps, vi.diagnostics()["khat"]]


def test_training_is_drawn_on_axes_that_are_given(vi):
    from matplotlib.figure import Figure

    axes = Figure().subplots(3, 1)
    assert all(plot_training(vi, axes=axes) == axes)


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda vi: plot_training(FlowVI(model)), RuntimeError, "run"),
        (lambda vi: plot_training(vi, [0.5]), TypeError, "khat must map"),
        (lambda vi: plot_training(vi, axes=[None]), ValueError, "axes must be"),
    ],
)
def test_training_refuses(vi, draw, error, message):
    with pytest.raises(error, match=message):
        draw(vi)


def test_without_matplotlib_it_names_the_extra(vi, no_matplotlib):
    with pytest.raises(ImportError, match=r"pyro-coupling\[plots\]"):
        plot_fit(vi)
