"""Anomalies by likelihood: densities that have seen benign tumours only look for the malignant ones.

Breast-cancer data of Wisconsin, which come with scikit-learn: 30 measurements of the cell nuclei of 569 tumours. The
density of the benign ones is learned from 70 % of them; the others and all malignant ones are ranked by it. A
Gaussian and an isolation forest learn from the same rows. Coordinates and size of the flow are those under which
benign rows left out of the training ones were likeliest; malignant rows had no part in that.

    python examples/anomalies.py [--splits 10] [--quick] [--output anomalies.png]
"""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler

from pyro_coupling import flows
from pyro_coupling.sklearn import FlowDensity


def bell_shaped(density: FlowDensity | GaussianMixture) -> Pipeline:
    """A density of coordinates in which each feature is about normal (Yeo-Johnson), and none correlated."""
    return make_pipeline(
        StandardScaler(with_mean=False), PowerTransformer(standardize=False), PCA(whiten=True), density
    )


def detectors(seed: int, epochs: int) -> dict:
    """Estimators whose ``score_samples`` is high where data are usual."""
    return {
        "flow": bell_shaped(FlowDensity(flows.real_nvp, num_layers=4, max_iter=epochs, random_state=seed)),
        "Gaussian of the same coordinates": bell_shaped(GaussianMixture(1, random_state=seed)),
        "Gaussian of the measurements": GaussianMixture(1, random_state=seed),
        "isolation forest": IsolationForest(random_state=seed),
    }


def log_volume(detector: Pipeline | GaussianMixture, rows: np.ndarray) -> np.ndarray:
    """What a pipeline's log density lacks to be one of the measurements, ``(n,)``."""
    if not isinstance(detector, Pipeline):
        return np.zeros(len(rows))
    scaler, power, axes, _ = (step for _, step in detector.steps)
    bend = ((power.lambdas_ - 1) * np.log1p(rows / scaler.scale_)).sum(1)  # no measurement is negative
    return bend - np.log(scaler.scale_).sum() - 0.5 * np.log(axes.explained_variance_).sum()


def split(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Benign rows to learn from, rows to rank, and which of these are malignant."""
    rows, benign = load_breast_cancer(return_X_y=True)
    train, held_out = train_test_split(rows[benign == 1], test_size=0.3, random_state=seed)
    malignant = rows[benign == 0]
    return train, np.concatenate([held_out, malignant]), np.repeat([0, 1], [len(held_out), len(malignant)])


def draw(scores: dict[str, np.ndarray], malignant: np.ndarray, path: str) -> None:
    """Log densities of the flow, clipped at the far end, and the ROC curves, for one split."""
    figure = Figure((10.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = scores["flow"].clip(min=np.quantile(scores["flow"], 0.1))
    bins = np.linspace(values.min(), values.max(), 40)
    for label, kind in enumerate(("benign, held out", "malignant")):
        left.hist(values[malignant == label], bins, alpha=0.6, label=kind)
    left.set(xlabel="log density under the flow (lowest tenth at the left edge)", ylabel="tumours")
    left.legend(frameon=False, loc="upper left")
    for (name, score), style in zip(scores.items(), ("-", "--", "-", "-"), strict=True):
        found = roc_curve(malignant, -score, drop_intermediate=False)
        right.plot(*found[:2], style, label=f"{name}, {roc_auc_score(malignant, -score):.3f}")
    right.set(xlabel="benign called malignant", ylabel="malignant found", xlim=(-0.01, 0.5), ylim=(0.5, 1.005))
    right.legend(frameon=False, loc="lower right", title="area under the curve")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two splits and a few epochs, to see that it runs")
    parser.add_argument("--output", default="anomalies.png")
    options = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {}
    for seed in range(2 if options.quick else options.splits):
        train, test, malignant = split(seed)
        scores = {}
        for name, detector in detectors(seed, epochs=5 if options.quick else 500).items():
            scores[name] = detector.fit(train).score_samples(test)
            density = (scores[name] + log_volume(detector, test))[malignant == 0].mean()
            figures.setdefault(name, []).append((roc_auc_score(malignant, -scores[name]), density))
        if seed == 0:
            draw(scores, malignant, options.output)
    print("| detector | area under the ROC curve | log density of held-out benign tumours |\n|---|---|---|")
    for name, found in figures.items():
        (area, density), (spread, _) = np.mean(found, 0), np.std(found, 0, ddof=1)
        print(f"| {name} | {area:.3f} ± {spread:.3f} | {'' if name == 'isolation forest' else f'{density:.2f}'} |")
    print(f"Means and standard deviations over {len(found)} splits; picture: {options.output}")
    flow, gaussian = (np.array(figures[name])[:, 1] for name in ("flow", "Gaussian of the same coordinates"))
    gain = flow - gaussian
    print(f"The flow is {gain.mean():.2f} ± {gain.std(ddof=1):.2f} nats likelier than the Gaussian of its coordinates")


if __name__ == "__main__":
    main()
