"""What `FlowVI.to_arviz` hands to ArviZ."""

import importlib
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import xarray
from torch.distributions import constraints

from pyro_coupling import FlowVI
from pyro_coupling.arviz import to_arviz, to_datatree
from pyro_coupling.targets import PyroTarget
from pyro_coupling.targets.prior import sample_prior

az = pytest.importorskip("arviz")

J, N, DRAWS = 4, 6, 300
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CLASSIC = int(az.__version__.split(".")[0]) < 1
classic_only = pytest.mark.skipif(not CLASSIC, reason="needs ArviZ before 1.0")
modern_only = pytest.mark.skipif(CLASSIC, reason="needs ArviZ 1.0 or later")


def fit(model, *args, max_steps=60, **kwargs):
    return FlowVI(model, max_steps=max_steps, seed=0, progress=False).run(*args, **kwargs)


def schools(x, y, counts=None, *, weights=None):
    """Nested plates, event dimensions, deterministic sites in and out of plates, two observed sites."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    pyro.deterministic("log_shares", shares.log())
    with pyro.plate("school", J, dim=-2):
        effect = pyro.sample("effect", dist.Normal(mu, 1.0))
        pyro.deterministic("shifted", effect + 1.0)
        with pyro.plate("pupil", N, dim=-1):
            pyro.sample("y", dist.Normal(effect + x, 1.0), obs=y)
    with pyro.plate("class", 5):
        pyro.sample("counts", dist.Multinomial(10, shares), obs=counts)


def improper(y):
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mu, torch.ones(5)), obs=y)


def mean_of(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.fixture(scope="module")
def vi():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, generator=generator), torch.randn(J, N, generator=generator)
    counts = torch.tensor([[3.0, 3.0, 4.0]]).repeat(5, 1)
    return fit(schools, x, y, counts, weights=np.arange(3))


@pytest.fixture(scope="module")
def tree(vi):
    return to_datatree(vi, DRAWS)


@pytest.fixture(scope="module")
def mean_fit():
    return fit(mean_of, torch.tensor([0.5, 1.0, 1.5]))


@pytest.fixture(scope="module")
def idata(tree):
    return az.InferenceData.from_datatree(tree)


def test_groups_are_those_of_arviz(tree):
    assert list(tree.children) == [
        "posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive",
        "observed_data", "constant_data",
    ]  # fmt: skip
    assert tree.attrs["left_out"] == ""


@pytest.mark.parametrize(
    ("group", "name", "dims", "shape"),
    [
        ("posterior", "mu", (), ()),
        ("posterior", "shares", ("shares_dim_0",), (3,)),
        ("posterior", "log_shares", ("log_shares_dim_0",), (3,)),
        ("posterior", "effect", ("school", "effect_dim_1"), (J, 1)),
        ("posterior", "shifted", ("school", "shifted_dim_1"), (J, 1)),
        ("posterior_predictive", "y", ("school", "pupil"), (J, N)),
        ("posterior_predictive", "counts", ("class", "counts_dim_1"), (5, 3)),
        ("log_likelihood", "y", ("school", "pupil"), (J, N)),
        ("log_likelihood", "counts", ("class",), (5,)),
        ("sample_stats", "lp", (), ()),
        ("sample_stats", "log_q", (), ()),
        ("sample_stats", "log_weight", (), ()),
        ("prior", "effect", ("school", "effect_dim_1"), (J, 1)),
        ("prior", "shifted", ("school", "shifted_dim_1"), (J, 1)),
        ("prior_predictive", "counts", ("class", "counts_dim_1"), (5, 3)),
    ],
)
def test_draws_have_chain_draw_plates_and_other_dims(tree, group, name, dims, shape):
    array = tree[group][name]
    assert array.dims == ("chain", "draw", *dims)
    assert array.shape == (1, DRAWS, *shape)
    assert np.isfinite(array).all()


def test_data_have_the_dims_of_their_draws(tree):
    assert tree["observed_data"]["y"].dims == ("school", "pupil")
    assert tree["observed_data"]["counts"].dims == ("class", "counts_dim_1")


def test_constant_data_are_the_arguments_that_are_not_observed(tree):
    assert set(tree["constant_data"].data_vars) == {"x", "weights"}


def test_every_dim_has_an_index(tree):
    for group in tree.children.values():
        assert set(group.dims) == set(group.coords)


def test_values_agree_with_the_fit(vi, tree):
    posterior, stats = tree["posterior"], tree["sample_stats"]
    values = {
        name: torch.from_numpy(posterior[name].values[0]) for name in (s.name for s in vi.target.structure.latents)
    }
    x = vi.target.unconstrain(values)
    torch.testing.assert_close(torch.from_numpy(stats["lp"].values[0]), vi.target.log_prob(x), rtol=1e-4, atol=1e-3)
    z, log_det = vi.guide.get_transform().inverse_and_log_det(x)
    log_q = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + log_det
    torch.testing.assert_close(torch.from_numpy(stats["log_q"].values[0]), log_q.detach(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"], atol=1e-4)
    effect = values["effect"]
    y, covariate = vi.target.args[1], vi.target.args[0]
    expected = dist.Normal(effect + covariate, 1.0).log_prob(y)
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(posterior["shifted"], posterior["effect"] + 1.0, rtol=1e-5)


def test_prior_has_the_moments_of_the_prior(tree):
    prior = tree["prior"]
    assert abs(prior["mu"].std().item() - 2.0) < 0.4
    assert abs(prior["shares"].mean("draw") - 1 / 3).max().item() < 0.05
    assert abs((prior["effect"] - prior["mu"]).std().item() - 1.0) < 0.1


def test_attributes_tell_how_far_to_trust(vi, tree):
    figures = vi.diagnostics()
    for attrs in (tree.attrs, tree["posterior"].attrs):
        for name in ("elbo", "khat", "ess", "log_evidence", "log_evidence_se", "num_steps", "seconds", "message"):
            assert attrs[name] == figures[name]
        assert attrs["converged"] == int(figures["converged"]) and type(attrs["converged"]) is int
        assert "r_hat" in attrs["sampling"]
        assert attrs["inference_library"] == "pyro_coupling"
        assert attrs["pyro_version"] == pyro.__version__ and attrs["torch_version"] == str(torch.__version__)


def test_global_random_state_is_left_alone(mean_fit):
    before = torch.get_rng_state()
    mean_fit.to_arviz(10)
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_state_gives_the_same_draws(mean_fit):
    state = mean_fit._generator.get_state()
    first = to_datatree(mean_fit, 50)
    torch.manual_seed(99)
    mean_fit._generator.set_state(state)
    second = to_datatree(mean_fit, 50)
    for group in first.children:
        assert first[group].to_dataset().equals(second[group].to_dataset())


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_num_samples_must_be_a_positive_integer(mean_fit, number):
    with pytest.raises(ValueError, match="num_samples"):
        mean_fit.to_arviz(number)


def test_a_fit_that_was_not_run_is_refused():
    with pytest.raises(RuntimeError, match="run"):
        to_arviz(FlowVI(mean_of))


def test_one_draw(mean_fit):
    assert to_datatree(mean_fit, 1)["posterior_predictive"]["y"].shape == (1, 1, 3)


@classic_only
class TestClassicArviz:
    def test_inference_data(self, mean_fit):
        idata = mean_fit.to_arviz(100)
        assert isinstance(idata, az.InferenceData)
        assert "khat" in idata.attrs and "khat" in idata.posterior.attrs

    def test_summary(self, idata):
        table = az.summary(idata, var_names=["mu", "effect"])
        assert list(table.index) == ["mu"] + [f"effect[{j}, 0]" for j in range(J)]
        assert np.isfinite(table[["mean", "sd"]].to_numpy()).all()

    @pytest.mark.parametrize("name", ["y", "counts"])
    def test_loo(self, idata, name):
        assert np.isfinite(az.loo(idata, var_name=name).elpd_loo)

    def test_loo_of_the_only_observed_site(self, mean_fit):
        assert az.loo(mean_fit.to_arviz(500)).n_data_points == 3

    def test_plot_posterior(self, idata):
        import matplotlib

        matplotlib.use("agg")
        axes = az.plot_posterior(idata, var_names=["mu", "shares"])
        assert len(np.ravel(axes)) >= 4
        matplotlib.pyplot.close("all")

    def test_netcdf_round_trip(self, idata, tmp_path):
        idata.to_netcdf(tmp_path / "fit.nc")
        back = az.from_netcdf(tmp_path / "fit.nc")
        assert back.groups() == idata.groups()
        for group in idata.groups():
            assert back[group].equals(idata[group])
        assert back.attrs["khat"] == idata.attrs["khat"]


@modern_only
class TestModernArviz:
    def test_tree(self, mean_fit):
        tree = mean_fit.to_arviz(100)
        assert isinstance(tree, xarray.DataTree)
        assert "khat" in tree.attrs and "khat" in tree["posterior"].attrs

    def test_summary(self, tree):
        table = az.summary(tree, var_names=["mu", "effect"])
        assert list(table.index) == ["mu"] + [f"effect[{j}, 0]" for j in range(J)]
        assert np.isfinite(table[["mean", "sd"]].to_numpy(float)).all()

    @pytest.mark.parametrize("name", ["y", "counts"])
    def test_loo(self, tree, name):
        assert np.isfinite(az.loo(tree, var_name=name).elpd)

    def test_loo_of_the_only_observed_site(self, mean_fit):
        assert az.loo(mean_fit.to_arviz(500)).n_data_points == 3

    @pytest.mark.parametrize("plot", ["plot_dist", "plot_forest", "plot_pair"])
    def test_plots(self, tree, plot):
        import matplotlib

        matplotlib.use("agg")
        drawn = getattr(az, plot)(tree, var_names=["mu", "shares"], backend="matplotlib")
        assert drawn.viz["figure"].item().axes
        matplotlib.pyplot.close("all")

    def test_netcdf_round_trip(self, tree, tmp_path):
        tree.to_netcdf(tmp_path / "fit.nc")
        back = az.from_netcdf(tmp_path / "fit.nc")
        assert set(back.children) == set(tree.children)
        assert back.attrs["khat"] == tree.attrs["khat"]


def test_arviz_1_gets_the_tree(mean_fit, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: types.SimpleNamespace(__version__="1.0.0"))
    assert isinstance(mean_fit.to_arviz(10), xarray.DataTree)


def test_without_arviz_one_gets_the_tree(mean_fit, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert isinstance(mean_fit.to_arviz(10), xarray.DataTree)


def test_tree_netcdf_round_trip(tree, tmp_path):
    tree.to_netcdf(tmp_path / "fit.nc")
    back = xarray.open_datatree(tmp_path / "fit.nc")
    assert set(back.children) == set(tree.children)
    for group in tree.children:
        assert back[group].to_dataset().equals(tree[group].to_dataset())
    assert back["posterior"].attrs["message"] == tree.attrs["message"]


def test_arviz_1_reads_the_tree(tree):
    stats = pytest.importorskip("arviz_stats")
    assert len(stats.summary(tree, var_names=["mu", "effect"])) == 1 + J
    assert np.isfinite(stats.loo(tree, var_name="y").elpd)


def test_improper_prior_is_left_out():
    tree = to_datatree(fit(improper, torch.arange(5.0)), DRAWS)
    assert not {"prior", "prior_predictive"} & set(tree.children)
    assert "prior" in tree.attrs["left_out"]
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "y_dim_0")
    assert tree["posterior_predictive"]["y"].shape == (1, DRAWS, 5)


def test_names_that_clash():
    """An argument with the name of a plate, sites and plates with those of sample dimensions, a slash, two sizes."""

    def model(y, school):
        with pyro.plate("school", 3):
            pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("draw", 2):
            pyro.sample("chain", dist.Normal(0.0, 1.0))
        inner = pyro.sample("scope/inner", dist.Normal(0.0, 1.0))
        with poutine.block(hide=["rows"]), pyro.plate("rows", 4):
            pyro.sample("four", dist.Normal(inner, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(inner, 1.0), obs=y)

    tree = to_datatree(fit(model, torch.zeros(5), torch.arange(5)), 20)
    posterior = tree["posterior"]
    assert posterior["effect"].dims == ("chain", "draw", "school_dim")
    assert tree["constant_data"]["school"].dims == ("school_dim_0",)
    assert posterior["chain_"].dims == ("chain", "draw", "draw_dim")
    assert posterior["four"].dims == ("chain", "draw", "rows")
    assert posterior["scope.inner"].shape == (1, 20)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "y_dim_0")


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3)])
def test_deterministic_sites_in_a_plate_find_its_axis(shape):
    def model(y):
        with pyro.plate("group", 3):
            value = pyro.sample("value", dist.Normal(0.0, 1.0))
            wide = value if shape == (3,) else value.unsqueeze(-1) * torch.ones(2)
            pyro.deterministic("wide", wide if shape != (2, 3) else wide.transpose(-1, -2))
            pyro.sample("y", dist.Normal(value, 1.0), obs=y)

    dims = to_datatree(fit(model, torch.zeros(3)), 10)["posterior"]["wide"].dims[2:]
    assert dims == {(3,): ("group",), (3, 2): ("group", "wide_dim_1"), (2, 3): ("wide_dim_0", "group")}[shape]


def test_models_that_must_run_point_by_point():
    def model(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(b[0] + b[1] * x, 1.0), obs=y)

    target = PyroTarget(model, (torch.arange(4.0), torch.ones(4)))
    assert not target.vectorized
    for n in (1, 7):
        points = torch.zeros(n, 2)
        assert target.log_likelihood(points)["y"].shape == target.predict(points)["y"].shape == (n, 4)
        assert sample_prior(target, n)["b"].shape == (n, 2)


def mixture(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("y", dist.Normal(4.0 * z, 1.0), obs=y)


def test_local_discrete_latents_are_summed_out_of_the_likelihood():
    y = torch.tensor([0.0, 2.0, 4.0])
    target = PyroTarget(mixture, (y,))
    x = torch.linspace(-1.0, 1.0, 4).unsqueeze(-1)
    p = target.constrain(x)["p"].unsqueeze(-1)
    parts = [(1 - p).log() + dist.Normal(0.0, 1.0).log_prob(y), p.log() + dist.Normal(4.0, 1.0).log_prob(y)]
    torch.testing.assert_close(target.log_likelihood(x)["y"], torch.logaddexp(*parts))
    torch.testing.assert_close(target.log_likelihood(x[:1])["y"], torch.logaddexp(*parts)[:1])


def test_a_fit_with_discrete_latents():
    tree = to_datatree(fit(mixture, torch.tensor([0.0, 2.0, 4.0])), 50)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    assert "z" not in tree["posterior"] and "prior" in tree.children


def test_shared_discrete_latents_leave_the_likelihood_out():
    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        z = pyro.sample("z", dist.Bernoulli(p))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(4.0 * z, 1.0), obs=y)

    tree = to_datatree(fit(model, torch.zeros(3)), 10)
    assert "log_likelihood" not in tree.children
    assert "log_likelihood" in tree.attrs["left_out"]
    assert tree["posterior_predictive"]["y"].shape == (1, 10, 3)


def test_masked_observations_have_no_likelihood():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    target = PyroTarget(model, (torch.tensor([1.0, torch.nan]),))
    likelihood = target.log_likelihood(torch.zeros(3, 1))["y"]
    assert (likelihood[:, 1] == 0).all() and (likelihood[:, 0] < 0).all()


def test_a_module_with_arguments():
    class Regression(torch.nn.Module):
        def forward(self, x, *rest, y, **options):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("obs", dist.Normal(slope * x, 1.0), obs=y)

    x = torch.arange(3.0)
    vi = fit(Regression(), x, torch.ones(2), y=2 * x, offset=np.float64(1.0) * np.ones(2), note="text")
    assert set(to_datatree(vi, 10)["constant_data"].data_vars) == {"x", "offset"}


@pytest.mark.parametrize(
    ("prior", "reason"),
    [
        (lambda: pyro.sample("a", dist.ImproperUniform(constraints.positive, (), ())), "can't be sampled"),
        (lambda: pyro.sample("a", dist.Normal(0.0, 1.0).mask(False)), "masked"),
        (lambda: pyro.sample("a", dist.LKJCholesky(3)), "LKJCholesky"),
        (lambda: pyro.factor("f", -(pyro.sample("a", dist.Normal(0.0, 1.0)) ** 2)), "factor"),
    ],
)
def test_priors_that_sampling_would_not_follow_are_refused(prior, reason):
    def model():
        prior()
        pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=reason):
        sample_prior(PyroTarget(model), 5)
