"""`FlowVI`, as one uses it: run, judge, draw, save."""

import functools
import json
import math
import re
import warnings
from collections import namedtuple

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from densities import gaussian, two_modes
from models import (
    Y,
    groups,
    groups_evidence,
    groups_posterior,
    location_scale,
    normal_mean,
    normal_mean_evidence,
    small_flow,
    subsampled,
    two_normals,
)
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal

from pyro_coupling import AutoCouplingFlow, FlowVI
from pyro_coupling.files import read_safetensors, write_safetensors
from pyro_coupling.inference.assessment import assess, missed_mass
from pyro_coupling.training import GaussianStart, Trainer
from pyro_coupling.transforms import DiagonalAffine


def fit(model, *args, guide=None, **kwargs):
    """A short run, whatever it is worth."""
    options = {"max_steps": 20, "seed": 0, "progress": False}
    arguments = {name: kwargs.pop(name) for name in list(kwargs) if name not in FlowVI.__init__.__kwdefaults__}
    vi = FlowVI(model, guide, **(options | kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vi.run(*args, **arguments)


@functools.cache
def fitted():
    """A fit that tests only look at."""
    return fit(groups, Y)


# Models with a known evidence


def regression(x, y):
    weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([x.size(-1)]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal((weights * x).sum(-1), 0.5), obs=y)


def regression_evidence(x, y):
    covariance = 0.25 * torch.eye(len(y)).double() + 4.0 * x.double() @ x.double().mT
    return dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y.double()).item()


def gamma_poisson(counts):
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(counts)):
        pyro.sample("count", dist.Poisson(rate), obs=counts)


def gamma_poisson_evidence(counts):
    n, total = len(counts), counts.sum().item()
    value = 2 * math.log(0.5) - math.lgamma(2) + math.lgamma(2 + total) - (2 + total) * math.log(0.5 + n)
    return value - torch.lgamma(counts + 1).sum().item()


def dirichlet_multinomial(counts):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    pyro.sample("counts", dist.Multinomial(int(counts.sum()), p, validate_args=False), obs=counts)


def dirichlet_multinomial_evidence(counts):
    return dist.DirichletMultinomial(torch.tensor([1.0, 2.0, 3.0]), int(counts.sum())).log_prob(counts).item()


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), (v / 2).exp().unsqueeze(-1)).to_event(1))


def missing(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def two_normals_evidence(y):
    mu = torch.linspace(-15, 15, 6001).double()
    each = torch.stack([dist.Normal(mu, 1.0).log_prob(y_i) + math.log(0.7) for y_i in y])
    other = torch.stack([dist.Normal(mu + 3, 1.0).log_prob(y_i) + math.log(0.3) for y_i in y])
    joint = torch.logaddexp(each, other).sum(0) + dist.Normal(0.0, 2.0).log_prob(mu)
    return (joint.logsumexp(0) + math.log(0.005)).item()


X = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
KNOWN = [
    (normal_mean, (Y,), normal_mean_evidence()),
    (groups, (Y,), groups_evidence()),
    (regression, (X, X.sum(-1)), regression_evidence(X, X.sum(-1))),
    (gamma_poisson, (Y,), gamma_poisson_evidence(Y)),
    (dirichlet_multinomial, (Y,), dirichlet_multinomial_evidence(Y)),
    (two_normals, (Y,), two_normals_evidence(Y)),
    (missing, (Y, torch.tensor([True, False, True])), normal_mean_evidence(Y[[0, 2]])),
]


@pytest.mark.parametrize(("model", "args", "expected"), KNOWN, ids=[k[0].__name__ for k in KNOWN])
def test_evidence_of_a_conjugate_model(model, args, expected):
    vi = FlowVI(model, max_steps=300, seed=0, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = vi.run(*args).diagnostics()
    # five of its own standard errors, and float32
    assert figures["log_evidence"] == pytest.approx(expected, abs=5 * figures["log_evidence_se"] + 1e-4)
    assert figures["elbo"] <= figures["log_evidence"] + 1e-4
    assert figures["ess"] > 0.95
    assert figures["converged"]


def test_run_to_the_end_by_itself():
    vi = FlowVI(groups, AutoCouplingFlow(groups, small_flow), seed=0, progress=False).run(Y)
    assert vi.diagnostics()["stopped_by"] == "converged"
    assert vi.diagnostics()["num_steps"] < 5000
    assert vi.diagnostics()["ess"] > 0.99


# Draws


def test_shapes_and_names_of_draws():
    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            b = pyro.sample("b", dist.Dirichlet(torch.ones(4)))
        pyro.sample("c", dist.LKJCholesky(2, 1.0))
        pyro.deterministic("twice", 2 * a)
        pyro.deterministic("first", b[..., 0], event_dim=2)

    vi = fit(model, max_steps=2)
    for draws in (vi.get_samples(5), vi.get_samples(5, importance=False), vi.sample_with_log_weights(5)[0]):
        shapes = {name: tuple(value.shape) for name, value in draws.items()}
        assert shapes == {"a": (5,), "b": (5, 2, 3, 4), "c": (5, 2, 2), "twice": (5,), "first": (5, 2, 3)}
        torch.testing.assert_close(draws["b"].sum(-1), torch.ones(5, 2, 3))
        torch.testing.assert_close(draws["twice"], 2 * draws["a"])
        torch.testing.assert_close(draws["first"], draws["b"][..., 0])
        assert not any(value.requires_grad for value in draws.values())


def test_float64_data_give_float64_draws():
    draws = fit(location_scale, Y.double()).get_samples(3)
    assert {v.dtype for v in draws.values()} == {torch.float64}
    assert {v.dtype for v in fit(location_scale, Y).get_samples(3).values()} == {torch.float32}


def test_importance_resampling_corrects_a_fit_that_is_off():
    # one step from the best Gaussian of log rate, which the posterior Gamma(2 + sum, 0.5 + n) is not
    y = torch.tensor([0.0, 1.0])
    vi = fit(gamma_poisson, y, max_steps=1)
    ess, n = vi.diagnostics()["ess"], 4000
    mean, sd = 3 / 2.5, math.sqrt(3) / 2.5
    assert ess < 0.99
    corrected = vi.get_samples(n)["rate"]
    # resampled draws count at least like ess * n independent ones: 5 standard errors
    assert corrected.mean().item() == pytest.approx(mean, abs=5 * sd / math.sqrt(ess * n))
    assert corrected.std().item() == pytest.approx(sd, rel=5 / math.sqrt(ess * n))
    draws, log_weights = vi.sample_with_log_weights(n)
    weights = torch.softmax(log_weights, 0)
    assert (weights * draws["rate"]).sum().item() == pytest.approx(mean, abs=5 * sd / math.sqrt(ess * n))
    assert (log_weights.logsumexp(0) - math.log(n)).item() == pytest.approx(
        gamma_poisson_evidence(y), abs=5 * math.sqrt((1 / ess - 1) / n)
    )


def test_raw_draws_are_the_guides():
    vi = fitted()
    state = vi._generator.get_state()
    raw = vi.get_samples(100, importance=False)
    vi._generator.set_state(state)
    torch.testing.assert_close(raw, vi.sample_with_log_weights(100)[0])


def test_draws_are_fresh_at_every_call_and_hardly_repeat():
    first, second = fitted().get_samples(500)["mu"], fitted().get_samples(500)["mu"]
    assert not torch.equal(first, second)
    assert len(first.unique()) > 450


def test_draws_that_repeat_do_not_stand_together():
    draws = fit(funnel, max_steps=1).get_samples(500)["v"]
    repeats = 500 - len(draws.unique())
    assert repeats > 20
    assert int((draws.diff() == 0).sum()) < repeats / 2


# Repeatable


def test_one_seed_is_one_result_whatever_the_global_state():
    first = fit(location_scale, Y)
    torch.manual_seed(99)
    second = fit(location_scale, Y)
    assert torch.equal(first.get_samples(50)["mu"], second.get_samples(50)["mu"])
    figures = [{k: v for k, v in vi.diagnostics().items() if k != "seconds"} for vi in (first, second)]
    assert figures[0] == figures[1]
    assert not torch.equal(first.get_samples(50)["mu"], fit(location_scale, Y, seed=1).get_samples(50)["mu"])


def test_a_run_leaves_global_state_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads(), torch.get_default_dtype()
    vi = fit(two_normals, Y)
    vi.get_samples(10)
    vi.sample_with_log_weights(10)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2:] == (torch.get_num_threads(), torch.get_default_dtype())
    assert len(pyro.get_param_store()) == 0


def test_the_number_of_threads_is_given_back_after_an_error():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fit(normal_mean, Y, max_steps=1)
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="full data"):
            fit(subsampled, Y, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_a_seed_pyros_governs():
    def draws():
        pyro.set_rng_seed(7)
        return fit(normal_mean, Y, seed=None, max_steps=2).get_samples(5)["mu"]

    assert torch.equal(draws(), draws())
    assert not torch.equal(fit(normal_mean, Y, seed=None, max_steps=2).get_samples(5)["mu"], draws())


# Arguments


def test_positional_and_keyword_arguments_reach_the_model():
    def model(y, sd=1.0, *, shift):
        mu = pyro.sample("mu", dist.Normal(shift, 1e-3))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, sd), obs=y)

    vi = fit(model, Y, 2.0, shift=4.0)
    assert vi.get_samples(10)["mu"].mean().item() == pytest.approx(4.0, abs=0.01)
    assert (vi.target.args, vi.target.kwargs) == ((Y, 2.0), {"shift": 4.0})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "FlowVI: model must be callable, got int"),
        ({"guide": AutoNormal(normal_mean)}, TypeError, "guide must be an AutoCouplingFlow, got AutoNormal"),
        ({"num_particles": 0}, ValueError, "num_particles must be a positive integer, got 0"),
        ({"num_particles": 2.5}, ValueError, "num_particles must be a positive integer, got 2.5"),
        ({"max_steps": -1}, ValueError, "max_steps must be a positive integer, got -1"),
        ({"max_steps": True}, ValueError, "max_steps must be a positive integer, got True"),
        ({"max_seconds": 0}, ValueError, "max_seconds must be positive, got 0"),
        ({"max_seconds": math.nan}, ValueError, "max_seconds must be positive, got nan"),
    ],
)
def test_arguments_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        FlowVI(**({"model": normal_mean} | arguments))


@pytest.mark.parametrize("number", [0, -1, 2.0, True, None])
@pytest.mark.parametrize("method", ["get_samples", "sample_with_log_weights", "summary"])
def test_numbers_of_draws_that_cannot_be(method, number):
    with pytest.raises(ValueError, match="num_samples must be a positive integer, got"):
        getattr(fitted(), method)(number)


@pytest.mark.parametrize("use", ["get_samples", "sample_with_log_weights", "summary", "diagnostics"])
def test_use_before_the_run_says_what_to_do(use):
    with pytest.raises(RuntimeError, match=r"call run\(...\) with the model's arguments first"):
        getattr(FlowVI(normal_mean), use)()


def test_models_without_an_evidence_are_refused():
    with pytest.raises(ValueError, match=r"subsamples its data in the plate 'data' \(2 of 3\).*full data.*SVI"):
        FlowVI(subsampled, progress=False).run(Y, 2)
    with pytest.raises(ValueError, match=r"changes from run to run.*poutine.block"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FlowVI(poutine.block(groups, hide=["theta"]), progress=False).run(Y)


# Guides of one's own


def test_a_guide_of_ones_own_is_trained_further():
    guide = AutoCouplingFlow(groups, small_flow)
    vi = fit(groups, Y, guide=guide)
    assert vi.guide is guide
    before = guide.get_posterior().log_prob(torch.zeros(4))
    fit(groups, Y, guide=guide, max_steps=30)
    assert not torch.equal(before, guide.get_posterior().log_prob(torch.zeros(4)))


def test_the_guide_is_one_of_pyros_afterwards():
    vi = fitted()
    mean, sd = groups_posterior()
    assert vi.guide.median()["mu"].item() == pytest.approx(mean, abs=0.1 * sd)
    assert set(vi.guide(Y)) == {"mu", "theta"}


def test_a_guide_with_a_discrete_latent_left_in_is_told_of_it():
    with pytest.raises(ValueError, match=r"cannot handle discrete sample site 'z'"):
        fit(two_normals, Y, guide=AutoCouplingFlow(two_normals))


def test_a_second_run_on_other_data():
    vi = fit(groups, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vi.run(torch.arange(5.0))  # two groups more
    assert vi.get_samples(3)["theta"].shape == (3, 5)
    assert vi.diagnostics()["log_evidence"] == pytest.approx(groups_evidence(torch.arange(5.0)), abs=0.1)


# As one used MCMC


def test_it_stands_where_mcmc_stood():
    def samples(inference):
        inference.run(Y)
        draws = inference.get_samples()
        return {name: value.shape[1:] for name, value in draws.items()}, Predictive(groups, draws)(Y)["y"].shape[1:]

    mcmc = MCMC(NUTS(groups), num_samples=2, warmup_steps=1, disable_progbar=True)
    assert samples(FlowVI(groups, max_steps=2, seed=0, progress=False)) == samples(mcmc)


def test_summary_is_a_table_of_scalars():
    table = fitted().summary(2000)
    assert list(table.index) == ["mu", "theta[0]", "theta[1]", "theta[2]"]
    assert list(table.columns) == ["mean", "sd", "5%", "50%", "95%", "mcse"]
    mean, sd = groups_posterior()
    # 5 Monte-Carlo errors of each figure, of an effective 2000 draws
    assert table.loc["mu", "mean"] == pytest.approx(mean, abs=5 * sd / math.sqrt(2000))
    assert table.loc["mu", "sd"] == pytest.approx(sd, rel=5 / math.sqrt(4000))
    assert table.loc["mu", "50%"] == pytest.approx(mean, abs=5 * 1.25 * sd / math.sqrt(2000))
    assert table.loc["mu", "95%"] == pytest.approx(mean + 1.645 * sd, abs=5 * 2.1 * sd / math.sqrt(2000))
    assert table.loc["mu", "mcse"] == pytest.approx(sd / math.sqrt(2000), rel=0.1)


def test_summary_names_every_entry_of_an_array():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))

    assert list(fit(model, max_steps=1).summary(10).index) == [f"x[{i},{j}]" for i in range(2) for j in range(3)]


def test_repr_tells_the_state():
    assert repr(FlowVI(normal_mean)) == "FlowVI(not run yet)"
    assert repr(fitted()).startswith("FlowVI(4 latents, 20 steps in ")
    assert repr(fitted()).endswith(fitted().diagnostics()["message"])


# Judgement


def test_diagnostics_hold_what_is_promised():
    figures = fitted().diagnostics()
    numbers = {"khat", "ess", "elbo", "log_evidence", "log_evidence_se", "num_steps", "seconds"}
    assert all(math.isfinite(figures[name]) for name in numbers)
    assert isinstance(figures["converged"], bool)
    assert figures["num_steps"] == 20
    assert figures["stopped_by"] == "max_steps"
    assert 0 < figures["ess"] <= 1
    assert "Training ended at max_steps" in figures["message"]
    figures["ess"] = None
    assert fitted().diagnostics()["ess"] is not None  # a copy


def bimodal():
    x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(x[..., 0].square(), 1.0), obs=torch.tensor(25.0))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_missed_mode_is_not_trusted_however_high_the_ess(seed):
    vi = FlowVI(bimodal, max_steps=50, seed=seed, progress=False)
    with pytest.warns(UserWarning, match="Not to be trusted: of 2 separate modes"):
        vi.run()
    figures = vi.diagnostics()
    assert not figures["converged"]
    assert figures["num_modes"] == 2
    # the modes are each other's mirror image; a few hundred draws of each
    assert figures["missed_mass"] == pytest.approx(0.5, abs=0.15)


def test_both_modes_covered_is_nothing_missed():
    target = two_modes(1, gap=6.0)
    both = [GaussianStart(torch.tensor([s * 6.0]).double(), torch.eye(1).double(), -math.log(2), "x") for s in (1, -1)]

    def missed(loc, scale):
        flow = DiagonalAffine(torch.tensor([loc]).double(), torch.tensor([scale]).double())
        z = torch.randn(4000, 1).double()
        x, log_det = flow.forward_and_log_det(z)
        log_q = -0.5 * z[:, 0] ** 2 - 0.5 * math.log(2 * math.pi) - log_det
        return missed_mass(flow, target, both, x, log_q, target.log_prob(x), torch.Generator().manual_seed(0))

    assert missed(6.0, 1.0) == pytest.approx(0.5, abs=0.1)
    assert missed(0.0, 8.0) == 0.0


def test_one_start_misses_nothing():
    target, start = gaussian(torch.zeros(1).double(), torch.eye(1).double()), fitted().guide.starts[:1]
    assert missed_mass(None, target, start, None, None, None, None) == 0.0


@pytest.mark.parametrize(
    ("khat", "ess", "missed", "stopped_by", "trusted", "words"),
    [
        (0.2, 0.99, 0.0, "converged", True, "Good: relative ESS 0.99, k-hat 0.20; the draws are nearly exact."),
        (5.0, 0.99, 0.0, "converged", True, "nearly exact"),  # the tail of even weights is noise
        (0.4, 0.7, 0.0, "converged", True, "Good with importance resampling"),
        (0.8, 0.7, 0.0, "converged", False, "Not to be trusted"),
        (0.6, 0.2, 0.0, "converged", False, "Rough: .*give the flow more layers"),
        (0.6, 0.2, 0.0, "max_steps", False, r"Rough: .*train longer.*Training ended at max_steps\."),
        (0.6, 0.01, 0.0, "max_seconds", False, r"Not to be trusted: .*Training ended at max_seconds\."),
        (math.inf, 0.0, 0.0, "interrupt", False, r"NeuTraReparam\(vi\.guide\).*Training was interrupted\."),
        (0.2, 0.99, 0.3, "converged", False, "of 3 separate modes .* misses some, with about 30% of the known"),
    ],
)
def test_messages_say_what_and_what_to_do(khat, ess, missed, stopped_by, trusted, words):
    verdict = assess(khat, ess, missed, 3, stopped_by)
    assert verdict.trusted is trusted
    assert re.search(words, verdict.message)


def test_a_good_fit_gives_no_warning_and_a_poor_one_does():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlowVI(normal_mean, max_steps=20, seed=0, progress=False).run(Y)

    with pytest.warns(UserWarning, match="train longer"):
        FlowVI(funnel, max_steps=1, seed=0, progress=False).run()


# Interruption and progress


def interrupted_at(monkeypatch, step):
    original = Trainer._step

    def stepping(self, seconds):
        if self.record.num_steps == step:
            raise KeyboardInterrupt
        original(self, seconds)

    monkeypatch.setattr(Trainer, "_step", stepping)


def test_ctrl_c_ends_the_training_and_keeps_the_fit(monkeypatch):
    interrupted_at(monkeypatch, 7)
    vi = fit(groups, Y, max_steps=10_000)
    assert vi.diagnostics()["num_steps"] == 7
    assert vi.diagnostics()["stopped_by"] == "interrupt"
    assert "Training was interrupted" in vi.diagnostics()["message"]
    assert vi.get_samples(10)["mu"].isfinite().all()


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(monkeypatch, tmp_path):
    straight = fit(location_scale, Y, max_steps=30).get_samples(20)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 12)
        fit(location_scale, Y, max_steps=30, checkpoint=tmp_path / "run")
    resumed = fit(location_scale, Y, max_steps=30, checkpoint=tmp_path / "run")
    assert resumed.diagnostics()["num_steps"] == 30
    assert all(torch.equal(value, straight[name]) for name, value in resumed.get_samples(20).items())


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    fit(location_scale, Y, checkpoint=tmp_path / "run", max_steps=1)
    with pytest.raises(ValueError, match=r"belongs to another run: .*'theta'"):
        fit(groups, Y, checkpoint=tmp_path / "run", max_steps=1)


def test_a_callback_sees_every_step_and_may_end_the_run():
    steps = []
    fit(groups, Y, max_steps=5, callback=lambda state: steps.append((state.step, len(state.log_weights))))
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5] and steps[0][1] == 128

    def refuse(state):
        raise LookupError(f"step {state.step}")

    with pytest.raises(LookupError, match="step 1"):
        fit(groups, Y, callback=refuse)
    with pytest.raises(TypeError, match="callback must be callable, got int"):
        FlowVI(groups, callback=3)


def test_progress_goes_to_stderr(capfd):
    FlowVI(normal_mean, max_steps=3, seed=0, progress=True).run(Y)
    out, err = capfd.readouterr()
    assert out == ""
    assert "FlowVI" in err
    assert "Good: relative ESS" in err


def test_no_progress_is_silence(capfd):
    FlowVI(normal_mean, max_steps=3, seed=0, progress=False).run(Y)
    assert capfd.readouterr() == ("", "")


def test_max_seconds_ends_the_run():
    vi = fit(groups, Y, max_steps=None, max_seconds=0.5)
    assert vi.diagnostics()["stopped_by"] == "max_seconds"
    assert "Training ended at max_seconds" in vi.diagnostics()["message"]


# Files


Point = namedtuple("Point", "x y")


@pytest.fixture
def saved(tmp_path):
    vi = fit(location_scale, Y, max_steps=3)
    vi.save(tmp_path / "fit")
    return vi, tmp_path / "fit"


def test_a_loaded_fit_is_the_saved_one(saved):
    vi, path = saved
    loaded = FlowVI.load(path, location_scale)
    assert loaded.diagnostics() == vi.diagnostics()
    assert repr(loaded) == repr(vi)
    torch.testing.assert_close(loaded.get_samples(20), vi.get_samples(20), rtol=0, atol=0)  # the same draws go on
    assert torch.equal(loaded.target.args[0], Y)
    assert set(loaded.guide(Y)) == {"mu", "sigma"}
    loaded.max_steps = 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert loaded.run(Y).diagnostics()["num_steps"] == 5


def test_a_loaded_fit_can_be_saved_again(saved, tmp_path):
    FlowVI.load(saved[1], location_scale).save(tmp_path / "again")
    assert FlowVI.load(tmp_path / "again", location_scale).diagnostics() == saved[0].diagnostics()


@pytest.mark.parametrize(
    "argument",
    [
        1,
        2.5,
        True,
        None,
        "text",
        torch.arange(3),
        np.arange(4.0)[::-1],
        np.array([True, False]),
        [1, torch.ones(2)],
        (1, [2.0, (3,)]),
        {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}},
        {"x": [torch.ones(2), {"y": np.zeros(1)}]},
    ],
    ids=str,
)
def test_arguments_of_many_kinds_come_back(tmp_path, argument):
    seen = []

    def model(first, *, second):
        seen[:] = [first, second]
        pyro.sample("x", dist.Normal(0.0, 1.0))

    fit(model, argument, second=argument, max_steps=1).save(tmp_path / "fit")
    seen.clear()
    FlowVI.load(tmp_path / "fit", model)
    for value in seen:
        assert type(value) is type(argument)
        assert str(value) == str(argument)


@pytest.mark.parametrize(
    "argument", [Point(1, 2), object(), {1: 2}, np.array(["a"]), {"a": {1, 2}}], ids=lambda value: type(value).__name__
)
def test_arguments_that_cannot_be_stored_have_to_be_passed(tmp_path, argument):
    def model(argument):
        pyro.sample("x", dist.Normal(0.0, 1.0))

    vi = fit(model, argument, max_steps=1)
    with pytest.warns(UserWarning, match=r"arguments are not stored.*pass them to FlowVI.load"):
        vi.save(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"does not hold the model's arguments: pass them"):
        FlowVI.load(tmp_path / "fit", model)
    assert FlowVI.load(tmp_path / "fit", model, argument).diagnostics() == vi.diagnostics()
    assert FlowVI.load(tmp_path / "fit", model, argument=argument).diagnostics() == vi.diagnostics()


def test_a_model_without_arguments(tmp_path):
    fit(bimodal, max_steps=1).save(tmp_path / "fit")
    assert FlowVI.load(tmp_path / "fit", bimodal).get_samples(2)["x"].shape == (2, 2)


def test_discrete_latents_survive_a_file(tmp_path):
    vi = fit(two_normals, Y, max_steps=1)
    vi.save(tmp_path / "fit")
    assert torch.equal(FlowVI.load(tmp_path / "fit", two_normals).get_samples(5)["mu"], vi.get_samples(5)["mu"])


def test_a_guide_of_ones_own_may_be_passed(tmp_path):
    vi = fit(groups, Y, guide=AutoCouplingFlow(groups, small_flow), max_steps=1)
    vi.save(tmp_path / "fit")
    loaded = FlowVI.load(tmp_path / "fit", groups, guide=AutoCouplingFlow(groups, small_flow))
    assert torch.equal(loaded.get_samples(5)["mu"], vi.get_samples(5)["mu"])
    with pytest.raises(ValueError, match="does not fit the guide"):
        FlowVI.load(tmp_path / "fit", groups, guide=AutoCouplingFlow(groups))


def test_the_fit_of_another_model_is_refused(saved):
    with pytest.raises(ValueError, match=r"does not fit the model: it has the latent sites .*'sigma'.*'theta'"):
        FlowVI.load(saved[1], groups)


def test_nothing_to_save_before_the_run(tmp_path):
    with pytest.raises(RuntimeError, match="call run"):
        FlowVI(normal_mean).save(tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


def test_files_that_are_no_fit(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        FlowVI.load(tmp_path / "none", location_scale)
    path = saved[1]
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:20], b"", content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            FlowVI.load(path, location_scale)
    write_safetensors(path, {}, {"format": "pyro_coupling.checkpoint", "version": "1"})
    with pytest.raises(ValueError, match=r"has the format 'pyro_coupling\.checkpoint'"):
        FlowVI.load(path, location_scale)
    write_safetensors(path, {}, {"format": "pyro_coupling.FlowVI", "version": "2"})
    with pytest.raises(ValueError, match="newer than 1"):
        FlowVI.load(path, location_scale)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda state, tensors: state.clear(),
        lambda state, tensors: state.pop("default_guide"),
        lambda state, tensors: state.update(num_particles="many"),
        lambda state, tensors: state.update(num_particles=-3),
        lambda state, tensors: state.update(figures=[]),
        lambda state, tensors: state["figures"].update(ess="high"),
        lambda state, tensors: state["figures"].pop("khat"),
        lambda state, tensors: state.update(latents={"mu": []}),
        lambda state, tensors: state.update(arguments=3),
        lambda state, tensors: state.update(arguments={"list": [{"plain": 1}]}),
        lambda state, tensors: state.update(arguments={"code": "import os"}),
        lambda state, tensors: state.update(arguments={"list": [{"tensor": "missing"}, {"dict": {}}]}),
        lambda state, tensors: tensors.pop("log_weights"),
        lambda state, tensors: tensors.pop("generator"),
        lambda state, tensors: tensors.update(generator=torch.zeros(3)),
        lambda state, tensors: tensors.update({"guide.transform.parts.1.loc": torch.zeros(5)}),
        lambda state, tensors: tensors.update({"guide.transform.parts.1.loc": torch.zeros(2, dtype=torch.int64)}),
        lambda state, tensors: tensors.update({"guide.transform.parts.1.shift": torch.zeros(7)}),
        lambda state, tensors: tensors.update({"guide.surprise": torch.zeros(1)}),
        lambda state, tensors: [tensors.pop(k) for k in list(tensors) if k.startswith("guide.")],
    ],
)
def test_a_tampered_file_is_a_value_error(saved, tamper):
    _, path = saved
    tensors, metadata = read_safetensors(path, "pyro_coupling.FlowVI", 1)
    state = json.loads(metadata["state"])
    tamper(state, tensors)
    write_safetensors(path, tensors, metadata | {"state": json.dumps(state)})
    with pytest.raises(ValueError, match=r"damaged|does not fit|positive integer"):
        FlowVI.load(path, location_scale)


def test_a_description_that_is_no_json_is_a_value_error(saved):
    _, path = saved
    tensors, metadata = read_safetensors(path, "pyro_coupling.FlowVI", 1)
    nested = '"arguments": ' + '{"list": [' * 5000 + "]}" * 5000
    deep = json.dumps(json.loads(metadata["state"]) | {"arguments": None}).replace('"arguments": null', nested)
    for text in ("", "{", "[" * 100_000, "null", "NaN", deep):
        write_safetensors(path, tensors, metadata | {"state": text})
        with pytest.raises(ValueError, match="damaged"):
            FlowVI.load(path, location_scale)
