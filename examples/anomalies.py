"""Anomalies by likelihood: a flow that has seen benign tumours only finds the malignant ones.

Breast-cancer data of Wisconsin, which come with scikit-learn: 30 measurements of the cell nuclei of 569 tumours. The
density of the benign ones is learned from 70 % of them; the others and all malignant ones are ranked by it. A
Gaussian and an isolation forest learn from the same rows.

    python examples/anomalies.py [--splits 10] [--quick] [--output anomalies.png]
"""

from __future__ import annotations

import argparse

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import RocCurveDisplay, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

from pyro_coupling import flows
from pyro_coupling.sklearn import FlowDensity


def detectors(seed: int, epochs: int) -> dict:
    """Estimators whose ``score_samples`` is high where data are usual."""
    return {
        "flow": FlowDensity(flows.real_nvp, num_layers=4, max_iter=epochs, random_state=seed),
        "Gaussian": GaussianMixture(1, random_state=seed),
        "isolation forest": IsolationForest(random_state=seed),
    }


def split(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Benign rows to learn from, rows to rank, and which of these are malignant."""
    rows, benign = load_breast_cancer(return_X_y=True)
    train, held_out = train_test_split(rows[benign == 1], test_size=0.3, random_state=seed)
    malignant = rows[benign == 0]
    return train, np.concatenate([held_out, malignant]), np.repeat([0, 1], [len(held_out), len(malignant)])


def draw(scores: dict[str, np.ndarray], malignant: np.ndarray, path: str) -> None:
    """Log densities of the flow, clipped at the far end, and the three ROC curves of one split."""
    figure = Figure((9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = scores["flow"].clip(min=np.quantile(scores["flow"], 0.1))
    bins = np.linspace(values.min(), values.max(), 40)
    for label, kind in enumerate(("benign, held out", "malignant")):
        left.hist(values[malignant == label], bins, alpha=0.6, density=True, label=kind)
    left.set(xlabel="log density under the flow (lowest tenth at the left edge)", yticks=[], ylabel="density")
    left.legend(frameon=False)
    for name, score in scores.items():
        RocCurveDisplay.from_predictions(malignant, -score, name=name, ax=right)
    right.set(xlabel="benign called malignant", ylabel="malignant found")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two splits and a few epochs, to see that it runs")
    parser.add_argument("--output", default="anomalies.png")
    options = parser.parse_args()
    areas: dict[str, list[float]] = {}
    for seed in range(2 if options.quick else options.splits):
        train, test, malignant = split(seed)
        scores = {}
        for name, detector in detectors(seed, epochs=5 if options.quick else 500).items():
            scores[name] = detector.fit(train).score_samples(test)
            areas.setdefault(name, []).append(roc_auc_score(malignant, -scores[name]))
        if seed == 0:
            draw(scores, malignant, options.output)
    print(f"area under the ROC curve, mean and standard deviation over {len(areas['flow'])} splits")
    for name, found in areas.items():
        print(f"{name:<18}{np.mean(found):.4f} +- {np.std(found, ddof=1) if len(found) > 1 else 0:.4f}")
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
