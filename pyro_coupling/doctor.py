"""What of the environment there is, and whether it works: the text of ``python -m pyro_coupling [doctor]``."""

from __future__ import annotations

__all__ = ["Finding", "examine", "report"]

import math
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import nn

from . import __version__, flows
from .inference import FlowVI
from .saving import load, save
from .transforms import Bijection, Chain

_FOR_DEVELOPERS = ("bench", "docs", "test")
_START = """\
To start, with a Pyro model and its data:
  from pyro_coupling import FlowVI
  vi = FlowVI(model).run(data)
  print(vi, vi.summary())
To see whether all of this works: python -m pyro_coupling doctor"""


class _MissingError(Exception):
    """What is looked at is not there, which is no fault."""


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        name: What was checked.
        status: ``"ok"``, ``"missing"`` or ``"broken"``.
        text: Figures, or what is wrong and what to do.
        needed: Whether every fit needs it.
    """

    name: str
    status: str
    text: str
    needed: bool

    def __str__(self) -> str:
        return f"{self.status:8}{self.name:10}{self.text}"


class _Package(NamedTuple):
    """A requirement of this package; ``extra`` is "" where it is no optional one, ``version`` where it is missing."""

    name: str
    range: SpecifierSet
    extra: str
    version: str


def report() -> str:
    """Version, devices, packages and the first three lines to write.

    Example:
        >>> report().startswith("pyro_coupling")
        True
    """
    lines = [f"pyro_coupling {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}", ""]
    lines += ["Devices", *(f"  {device}" for device in _devices()), "", "Packages"]
    lines += [f"  {p.name:14}{p.version or _to_install(p)}" for p in _packages()]
    return "\n".join([*lines, "", _START])


def examine() -> Iterator[Finding]:
    """Looks at versions, fits a small model, and tries files, ArviZ, the compiler and the GPU, one after the other.

    Yields:
        A finding for each, as soon as it is there. What is optional and not installed is ``"missing"``; what does
        not work is ``"broken"``.

    Example:
        >>> next(examine()).status
        'ok'
    """
    anew = 'install anew: pip install --upgrade "pyro-coupling"'
    yield _finding("versions", _check_versions, anew, needed=True)
    yield _finding("options", _check_options, "install a version that suits, or do without")
    yield _finding("fit", _check_fit, "torch or Pyro computes wrongly here: install both anew", needed=True)
    yield _finding("files", _check_files, "the folder for temporary files must be writable (TMPDIR)", needed=True)
    yield _finding("arviz", _check_arviz, 'pip install --upgrade "pyro-coupling[arviz]"')
    yield _finding("compiler", _check_compiler, "compile=True needs a C++ compiler, such as g++; nothing else does")
    yield _finding("gpu", _check_gpu, "the GPU's driver must suit torch's CUDA: pytorch.org tells which torch does")


def _finding(name: str, check: Callable[[], str], remedy: str, needed: bool = False) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Finding(name, "ok", check(), needed)
    except _MissingError as missing:
        return Finding(name, "missing", str(missing), needed)
    except Exception as error:  # whatever is wrong is what one asks a doctor for
        reason = str(error).strip().partition("\n")[0] or "no message"
        return Finding(name, "broken", f"{type(error).__name__}: {reason}. {remedy}", needed)


def _devices() -> Iterator[str]:
    yield f"CPU, {os.cpu_count()} cores, of which torch uses {torch.get_num_threads()}"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}, {found.name}, {found.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield f"no CUDA (torch is built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'none'})"
    if torch.backends.mps.is_available():
        yield "mps, Apple's GPU: in float32 only"


def _packages() -> list[_Package]:
    """What a user may want, in the order of the metadata; each once, with the smallest extra that brings it."""
    found: dict[str, _Package] = {}
    if not _version("pyro-coupling"):
        return []  # it runs from a folder
    extras = [e for e in metadata.metadata("pyro-coupling").get_all("Provides-Extra") or () if e not in _FOR_DEVELOPERS]
    requirements = [Requirement(text) for text in metadata.requires("pyro-coupling") or ()]
    for extra in ["", *sorted(extras, key=lambda e: sum(_belongs(r, e) for r in requirements))]:
        for requirement in requirements:
            if _belongs(requirement, extra) and requirement.name not in found:
                version = _version(requirement.name)
                found[requirement.name] = _Package(requirement.name, requirement.specifier, extra, version)
    return list(found.values())


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if not extra:
        return marker is None or marker.evaluate({"extra": ""})
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _to_install(package: _Package) -> str:
    return f'missing: pip install "pyro-coupling{f"[{package.extra}]" if package.extra else ""}"'


def _check_versions() -> str:
    python = SpecifierSet(metadata.metadata("pyro-coupling")["Requires-Python"])
    if platform.python_version() not in python:
        raise RuntimeError(f"Python {platform.python_version()} is not {python}")
    return _in_range([package for package in _packages() if not package.extra])


def _check_options() -> str:
    packages = [package for package in _packages() if package.extra and package.version]
    if not packages:
        raise _MissingError('pip install "pyro-coupling[arviz,plots]" for tables and pictures')
    return _in_range(packages)


def _in_range(packages: Sequence[_Package]) -> str:
    wrong = [
        f"{p.name} {p.version or 'is missing'}, should be {p.range}"
        for p in packages if not p.range.contains(p.version or "0", prereleases=True)
    ]  # fmt: skip
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return ", ".join(f"{p.name} {p.version}" for p in packages)


def _model(y: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def _fitted(max_steps: int) -> FlowVI:
    return FlowVI(_model, max_steps=max_steps, seed=0, progress=False).run(torch.tensor([0.5, 1.0, 3.0]))


def _check_fit() -> str:
    """Holds a fit against the posterior N(4.5 / 4, 1 / 4) and the evidence of three numbers."""
    vi = _fitted(200)
    figures = vi.diagnostics()
    evidence = -1.5 * math.log(2 * math.pi) - 0.5 * math.log(4.0) - 0.5 * (10.25 - 4.5**2 / 4)
    draws = vi.get_samples(4000)["mean"]
    error = draws.mean().item() - 4.5 / 4
    # resampling from twice as many draws adds at most half to the variance of 4000 independent ones
    if abs(error) > 5 * 0.5 * math.sqrt(1.5 / 4000) or abs(figures["log_evidence"] - evidence) > 0.01:
        raise ArithmeticError(
            f"posterior mean {draws.mean():.3f} (exact {4.5 / 4:.3f}), "
            f"log evidence {figures['log_evidence']:.4f} (exact {evidence:.4f})"
        )
    return f"posterior mean and evidence are the exact ones; {figures['seconds']:.1f} s"


def _check_files() -> str:
    flow = flows.neural_spline(2, 1, (4,))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "flow.safetensors")
        save(flow, path)
        again, size = load(path), os.path.getsize(path)
    if not torch.equal(*(f.forward_and_log_det(torch.ones(2))[0] for f in (flow, again))):
        raise ArithmeticError("a flow that was saved and loaded gives other numbers")
    return f"a flow in a safetensors file of {size / 1024:.0f} kB is the same after loading"


def _check_arviz() -> str:
    if not _version("arviz"):
        raise _MissingError('pip install "pyro-coupling[arviz]" for az.summary, az.loo and plots')
    import arviz

    groups = _fitted(10).to_arviz(100)
    if "mean" not in arviz.summary(groups, kind="stats").index:
        raise RuntimeError("az.summary does not find the latents of a fit")
    return f"arviz {arviz.__version__} summarises a fit"


def _check_compiler() -> str:
    """Compiles a flow where nothing that was compiled before can be found."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            _compile(Chain([flows.nice(2, 1, ())], compile=True).requires_grad_(False))
        finally:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            if before is not None:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
    return "compile=True works"


def _compile(flow: Chain) -> None:
    x = torch.ones(3, 2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ordinary, compiled = (flow.forward_and_log_det(x)[0] for _ in range(2))  # the second call compiles
    for warning in told:
        if str(warning.message).startswith("Chain: compilation failed"):
            raise RuntimeError(warning.message)
    torch.testing.assert_close(compiled, ordinary)


def _check_gpu() -> str:
    if not torch.cuda.is_available():
        raise _MissingError("torch sees no CUDA device; everything runs on the CPU")
    flow: Bijection = flows.neural_spline(2, 1, (4,))
    x = torch.randn(100, 2)
    found = []
    for device in ("cpu", "cuda"):
        module = nn.Module.to(flow, device)
        module.zero_grad()
        y, log_det = module.forward_and_log_det(x.to(device))
        (y.sum() + log_det.sum()).backward()
        found.append([y.detach().cpu(), *(p.grad.cpu() for p in module.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
    return f"{torch.cuda.get_device_name()}: a flow and its gradients are those of the CPU"
