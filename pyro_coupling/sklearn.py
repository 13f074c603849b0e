"""Density estimation by a coupling flow, as an estimator of scikit-learn."""

from __future__ import annotations

__all__ = ["FlowDensity"]

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .flows import base_distribution, neural_spline
from .transforms import Bijection, Chain, DiagonalAffine

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError('pyro_coupling.sklearn needs scikit-learn 1.6: pip install "pyro-coupling[sklearn]"') from error

_ROWS = 10_000  # that pass the flow at once when nothing is learned
_CLIP = 10.0


class FlowDensity(DensityMixin, BaseEstimator):
    """Estimates a density from samples, by maximum likelihood.

    The data are standardised, and training stops when a part of them that it does not see becomes no likelier. Data
    of type float32 are learned in float32, all others in float64.

    A few hundred rows are soon learned by heart: compare recipes and sizes by ``GridSearchCV``, whose ``score`` is the
    mean log density. Affine couplings (`flows.real_nvp`) may then do better than the splines.

    Numbers that repeat, such as counts or pixels, have no density, and a flow that stands on them is as likely as
    one trains long: spread them out first (`images`). A feature that is constant is refused.

    Args:
        flow: Recipe of a flow, called with the number of features, ``num_layers`` and ``hidden_dims``: one of
            `flows`, or a ``functools.partial`` of one; `flows.neural_spline` if not given. It is turned round,
            since that way it learns a density from data faster.
        num_layers: Number of layers.
        hidden_dims: Sizes of the hidden layers of each conditioner.
        learning_rate: Step size of Adam; it is halved whenever the held-out part has not become likelier for
            half of ``n_iter_no_change`` epochs.
        batch_size: Rows in each step.
        max_iter: Largest number of epochs.
        validation_fraction: Part of the data that is held out to decide when to stop. With 0 all are learned from,
            for ``max_iter`` epochs.
        n_iter_no_change: Epochs without a gain after which training stops.
        device: Where to train, such as ``"cuda"``; the CPU if not given.
        random_state: Seed, or a ``numpy.random.RandomState``; it decides on the flow's start, the held-out part and
            the batches.

    Attributes:
        flow_: The trained flow, from standard normal noise to the data as they were given: a Pyro transform, which
            can be part of a model, and which `save` writes to a file.
        n_iter_: Number of epochs.
        validation_scores_: Mean log density of the held-out part after each epoch; of the training part if none is
            held out.
        n_features_in_: Number of features.
        feature_names_in_: Their names, where the data had them.

    Raises:
        ValueError: In ``fit``, if an argument is out of range or a feature is constant.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.metrics import roc_auc_score
        >>> X, benign = load_breast_cancer(return_X_y=True)
        >>> train, test = X[:300, :10], X[300:, :10]
        >>> density = FlowDensity(num_layers=2, max_iter=20, validation_fraction=0, random_state=0)
        >>> density.fit(train[benign[:300] == 1]).sample(3, random_state=0).shape
        (3, 10)
        >>> bool(roc_auc_score(benign[300:], density.score_samples(test)) > 0.9)  # malignant ones are unlikely
        True
    """

    def __init__(
        self,
        flow: Callable[..., Bijection] | None = None,
        *,
        num_layers: int = 4,
        hidden_dims: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        max_iter: int = 500,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 20,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.flow = flow
        self.num_layers = num_layers
        self.hidden_dims = hidden_dims
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> FlowDensity:  # noqa: N803
        """Learns the density of the rows of ``X``.

        Args:
            X: Data, ``(n_samples, n_features)``.
            y: Not used.

        Returns:
            The object itself.
        """
        self._check_settings()
        data = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=3)
        spread = np.ptp(data, axis=0) > 0
        if not spread.all():
            raise ValueError(
                f"FlowDensity: feature {int(spread.argmin())} is constant in n_samples={len(data)}, so the data have "
                "no density; leave it out"
            )
        random = check_random_state(self.random_state)
        rows = torch.tensor(data[random.permutation(len(data))], device=self.device)
        held_out = max(1, round(self.validation_fraction * len(rows))) if self.validation_fraction else 0
        generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(generator.get_state())
            recipe = self.flow or neural_spline
            core = recipe(rows.size(1), self.num_layers, tuple(self.hidden_dims)).to(rows)
        self.flow_ = Chain([core.inv, DiagonalAffine(rows.mean(0), rows.std(0, correction=0))])
        train = rows[held_out:]
        self._train(train, rows[:held_out] if held_out else train, generator)
        return self

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Log density of each row of ``X``, ``(n_samples,)``, in nats."""
        check_is_fitted(self)
        rows = torch.tensor(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
        with torch.no_grad():
            return torch.cat([self._log_prob(part) for part in rows.split(_ROWS)]).cpu().numpy()

    def score(self, X: Any, y: None = None) -> float:  # noqa: N803
        """Mean log density of the rows of ``X``, in nats; larger is better."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Draws from the estimated density.

        Args:
            n_samples: Number of draws.
            random_state: Seed, or a ``numpy.random.RandomState``.

        Returns:
            Draws ``(n_samples, n_features)``, of the type of the data of ``fit``.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"FlowDensity: n_samples must be at least 1, got {n_samples}")
        noise = check_random_state(random_state).standard_normal((n_samples, self.n_features_in_))
        with torch.no_grad():
            parts = torch.from_numpy(noise).to(self._like).split(_ROWS)
            return torch.cat([self.flow_.forward_and_log_det(part)[0] for part in parts]).cpu().numpy()

    @property
    def _like(self) -> Tensor:
        return next(self.flow_.parameters())

    def _log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self.flow_.inverse_and_log_det(x.to(self._like))
        return base_distribution(self.flow_).log_prob(z) + log_det

    def _train(self, train: Tensor, held_out: Tensor, generator: torch.Generator) -> None:
        """Epochs of Adam until the held-out part gains no more; the flow ends as it was when that was likeliest."""
        parameters = list(self.flow_.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.5, patience=self.n_iter_no_change // 2, threshold=1e-4, threshold_mode="abs"
        )
        best, best_epoch, best_state = -np.inf, -1, copy.deepcopy(self.flow_.state_dict())
        self.validation_scores_: list[float] = []
        for epoch in range(self.max_iter):
            for batch in torch.randperm(len(train), generator=generator).to(train.device).split(self.batch_size):
                optimizer.zero_grad()
                (-self._log_prob(train[batch]).mean()).backward()
                if bool(torch.nn.utils.clip_grad_norm_(parameters, _CLIP).isfinite()):
                    optimizer.step()
            with torch.no_grad():
                score = torch.cat([self._log_prob(part) for part in held_out.split(_ROWS)]).mean().item()
            self.validation_scores_.append(score)
            schedule.step(score)
            if score > best:
                best, best_epoch, best_state = score, epoch, copy.deepcopy(self.flow_.state_dict())
            if self.validation_fraction and epoch - best_epoch >= self.n_iter_no_change:
                break
        self.n_iter_ = len(self.validation_scores_)
        self.flow_.load_state_dict(best_state)
        if self.validation_fraction and epoch - best_epoch < self.n_iter_no_change:
            warnings.warn(
                f"FlowDensity: the held-out part still became likelier in the last {self.n_iter_no_change} of "
                f"max_iter={self.max_iter} epochs; a larger max_iter may fit better",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _check_settings(self) -> None:
        for name in ("num_layers", "batch_size", "max_iter", "n_iter_no_change"):
            number = getattr(self, name)
            if not isinstance(number, (int, np.integer)) or number < 1:
                raise ValueError(f"FlowDensity: {name} must be a positive integer, got {number!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"FlowDensity: learning_rate must be positive, got {self.learning_rate!r}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"FlowDensity: validation_fraction must be 0 or more and less than 1, got {self.validation_fraction!r}"
            )
