"""Draws from the prior of a Pyro model, where it has one that can be sampled."""

from __future__ import annotations

__all__ = ["sample_prior"]

from contextlib import nullcontext
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .pyro_model import PyroTarget
from .structure import ModelStructure


@torch.no_grad()
def sample_prior(target: PyroTarget, num_samples: int) -> dict[str, Tensor]:
    """Draws of the continuous latent sites of a model from their prior, with torch's global generator.

    Args:
        target: The model.
        num_samples: Number of draws.

    Returns:
        Name of each continuous latent site -> ``(num_samples, *shape)``.

    Raises:
        ValueError: If the model states no prior that can be sampled.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> sample_prior(PyroTarget(model, (torch.zeros(3),)), 100)["mu"].shape
        torch.Size([100])
    """
    shapes = {site.name: site.shape for site in target.structure.latents}
    first = _run(target, None)
    for site in first.nodes.values():
        _check(site, target)
    if target.vectorized and not target.structure.discrete:
        nodes = _run(target, num_samples).nodes
        return {name: nodes[name]["value"].reshape((num_samples,) + shape) for name, shape in shapes.items()}
    runs = [_run(target, None).nodes for _ in range(num_samples)]
    return {name: torch.stack([nodes[name]["value"] for nodes in runs]) for name in shapes}


def _run(target: PyroTarget, num_samples: int | None) -> poutine.Trace:
    plate = nullcontext() if num_samples is None else target._plate(num_samples)
    try:
        with target._aside(), plate:
            return poutine.trace(target.model).get_trace(*target.args, **target.kwargs)
    except NotImplementedError as error:
        raise ValueError(f"the model's prior can't be sampled: {error or 'it is improper'}") from error


def _is_only_a_name(site: Any, structure: ModelStructure) -> bool:
    """Whether a site without density gives a name to a value, as what LocScaleReparam leaves of the one it replaced."""
    return site["name"] in structure.deterministic and not bool(site["fn"].log_prob(site["value"]).any())


def _check(site: Any, target: PyroTarget) -> None:
    """Refuses sites by which sampling forwards would not follow the density that the model states."""
    if site["type"] != "sample" or site_is_subsample(site) or site["infer"].get("_deterministic"):
        return
    name, structure = site["name"], target.structure
    if site["is_observed"]:
        if name not in structure.observed and not _is_only_a_name(site, structure):
            raise ValueError(f"the model's prior can't be sampled: the factor {name!r} is a part of it")
        return
    fn, masks = site["fn"], [site["mask"]]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    if site["scale"] != 1.0 or not all(mask is None or bool(torch.as_tensor(mask).all()) for mask in masks):
        raise ValueError(f"the model's prior can't be sampled: the latent site {name!r} is scaled or masked")
    if isinstance(fn, torch.distributions.LKJCholesky) and fn.dim > 2:
        # in torch 2.13 the draws do not have the density of its own log_prob
        raise ValueError(f"the model's prior can't be sampled: LKJCholesky at {name!r} draws from another density")
