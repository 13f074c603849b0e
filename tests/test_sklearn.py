"""`FlowDensity` is an estimator of scikit-learn, and the density that it learns is one."""

import math
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_coupling import flows, load, save
from pyro_coupling.sklearn import FlowDensity

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
quick = partial(FlowDensity, num_layers=1, hidden_dims=(8,), max_iter=3, random_state=0)


def grid(samples, size=400):
    """Points around samples, and the area of each point's cell."""
    low, high = samples.min(0) - np.ptp(samples, 0), samples.max(0) + np.ptp(samples, 0)
    axes = [np.linspace(a, b, size) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes), -1).reshape(-1, 2), np.prod((high - low) / (size - 1))


def moons(n, seed=0):
    return make_moons(n, noise=0.1, random_state=seed)[0] * [1.0, 1000.0] + [5.0, -300.0]


@parametrize_with_checks([quick()])
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        density = FlowDensity(num_layers=2, hidden_dims=(32,), learning_rate=5e-3, max_iter=15, random_state=0)
        return density.fit(moons(1000))


def test_moons_are_likelier_than_under_a_gaussian(fitted):
    test = moons(2000, seed=1)
    covariance = np.cov(moons(1000).T)
    gaussian = -0.5 * (np.linalg.slogdet(covariance)[1] + 2 * math.log(2 * math.pi) + 2)
    assert fitted.score(test) > gaussian + 0.3


def test_density_integrates_to_one(fitted):
    points, area = grid(moons(1000))
    # two hundredths for what lies outside of the window and falls between the points
    assert np.exp(fitted.score_samples(points)).sum() * area == pytest.approx(1, abs=0.02)


def test_samples_have_the_density(fitted):
    # the mean log density of samples is minus the entropy, which the grid gives independently
    log_density = fitted.score_samples(fitted.sample(4000, random_state=1))
    points, area = grid(moons(1000))
    on_grid = fitted.score_samples(points)
    error = log_density.std() / math.sqrt(len(log_density))
    assert log_density.mean() == pytest.approx((np.exp(on_grid) * on_grid).sum() * area, abs=5 * error + 0.02)


def test_samples_are_those_of_their_seed(fitted):
    first, second, third = (fitted.sample(5, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, third)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_keep_their_type(dtype):
    density = quick().fit(moons(100).astype(dtype))
    assert density.score_samples(moons(10)).dtype == density.sample(3).dtype == dtype


def test_units_change_the_density_by_the_factor_alone():
    x = make_moons(200, noise=0.1, random_state=0)[0]
    plain, scaled = quick().fit(x), quick().fit(1e4 * x + 3)
    np.testing.assert_allclose(
        scaled.score_samples(1e4 * x + 3) + 2 * math.log(1e4), plain.score_samples(x), rtol=1e-6, atol=1e-6
    )


def test_global_random_states_are_left_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    quick().fit(moons(50)).sample(3, random_state=0)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_the_flow_is_that_of_the_density_and_can_be_saved(fitted, tmp_path):
    x = moons(20)
    save(fitted.flow_, tmp_path / "flow.safetensors")
    density = flows.distribution(load(tmp_path / "flow.safetensors"))
    np.testing.assert_allclose(density.log_prob(torch.tensor(x)).detach(), fitted.score_samples(x), rtol=1e-12)


def test_pickle_keeps_the_density(fitted):
    x = moons(20)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).score_samples(x), fitted.score_samples(x))


def test_training_stops_when_the_held_out_part_gains_no_more():
    density = FlowDensity(hidden_dims=(16,), num_layers=1, learning_rate=0.02, n_iter_no_change=4, random_state=0)
    scores = density.fit(moons(100)).validation_scores_
    assert density.n_iter_ == len(scores) < density.max_iter
    assert len(scores) - 1 - int(np.argmax(scores)) == 4


def test_the_best_epoch_is_kept():
    x = moons(100)
    density = FlowDensity(num_layers=1, learning_rate=0.05, validation_fraction=0.3, n_iter_no_change=5, random_state=0)
    density.fit(x)
    held_out = np.random.RandomState(0).permutation(100)[:30]
    assert density.score(x[held_out]) == pytest.approx(max(density.validation_scores_), abs=1e-6)
    assert density.validation_scores_[-1] < max(density.validation_scores_)


def test_too_few_epochs_are_told():
    with pytest.warns(ConvergenceWarning, match="max_iter=3"):
        quick().fit(moons(50))


def test_nothing_held_out_trains_to_the_end():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        assert quick(validation_fraction=0).fit(moons(50)).n_iter_ == 3


def test_search_and_pipeline():
    search = GridSearchCV(quick(), {"num_layers": [1, 2], "flow": [flows.real_nvp, None]}, cv=2).fit(moons(60))
    assert set(search.best_params_) == {"num_layers", "flow"} and math.isfinite(search.best_score_)
    piped = make_pipeline(StandardScaler(), quick()).fit(moons(60))
    assert math.isfinite(piped.score(moons(10)))


def test_another_recipe():
    density = quick(flow=partial(flows.real_nvp, mask="alternating")).fit(moons(50))
    assert "Affine" in repr(density.flow_) and "Spline" not in repr(density.flow_)
    assert clone(density).get_params()["flow"].keywords == {"mask": "alternating"}


def test_a_constant_feature_is_refused():
    x = moons(20)
    x[:, 1] = 2.0
    with pytest.raises(ValueError, match="feature 1 is constant"):
        quick().fit(x)


@pytest.mark.parametrize(
    "settings",
    [{"max_iter": 0}, {"batch_size": 1.5}, {"num_layers": -1}, {"n_iter_no_change": 0}, {"learning_rate": 0.0},
     {"validation_fraction": 1.0}, {"validation_fraction": -0.1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"FlowDensity: {next(iter(settings))} must"):
        FlowDensity(**settings).fit(moons(20))


def test_it_must_be_fitted_first():
    with pytest.raises(NotFittedError):
        FlowDensity().sample()


def test_a_number_of_samples_must_be_positive(fitted):
    with pytest.raises(ValueError, match="n_samples"):
        fitted.sample(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_trains_on_a_gpu():
    density = quick(device="cuda").fit(moons(50))
    assert next(density.flow_.parameters()).is_cuda
    assert isinstance(density.sample(3), np.ndarray) and np.isfinite(density.score(moons(10)))
