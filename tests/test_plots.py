"""What `plot_fit` draws, and what it refuses."""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_coupling import FlowVI

pytest.importorskip("matplotlib")
from pyro_coupling.plots import plot_fit

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


def test_the_picture_has_1600_by_1000_pixels(vi, tmp_path):
    figure = plot_fit(vi)
    figure.savefig(tmp_path / "fit.png")
    header = (tmp_path / "fit.png").read_bytes()[16:24]
    assert tuple(np.frombuffer(header, ">u4")) == (1600, 1000)


def test_no_figure_stays_with_pyplot(vi):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot_fit(vi)
    assert pyplot.get_fignums() == before


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


def test_without_matplotlib_it_names_the_extra(vi, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pyro-coupling\[plots\]"):
        plot_fit(vi)
