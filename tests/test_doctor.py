"""`python -m pyro_coupling` tells what is there, and its doctor finds out what does not work."""

import subprocess
import sys
import warnings
from importlib import metadata

import pytest
import torch

from pyro_coupling import __version__, doctor
from pyro_coupling.__main__ import main

CHECK_COMPILER = doctor._check_compiler


def without(monkeypatch, *missing, **versions):
    """The environment without some packages, and with others in another version."""
    true = metadata.version

    def version(name):
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or true(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.fixture
def quick(monkeypatch):
    """Without what takes seconds: the fits, and the compiler, which takes a minute."""
    for check in ("_check_fit", "_check_arviz", "_check_compiler"):
        monkeypatch.setattr(doctor, check, lambda: "not tried")


def examined(capsys):
    """The exit status of the doctor, and its line on each check."""
    status = main(["doctor"])
    return status, {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}


def test_report_tells_versions_devices_packages_and_how_to_start(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert __version__ in text and "CPU" in text and ("cuda:0" in text or "no CUDA" in text)
    for name in ("torch", "pyro-ppl", "arviz", "matplotlib", "openmm", "scikit-learn"):
        assert f"\n  {name} " in text
    assert torch.__version__ in text
    assert "FlowVI(model).run(data)" in text


def test_what_developers_need_is_not_asked_of_users():
    assert not {"ruff", "pytest", "sphinx", "zuko"} & {package.name for package in doctor._packages()}


@pytest.mark.parametrize(
    ("name", "extra"),
    [("arviz", "[arviz]"), ("matplotlib", "[plots]"), ("openmm", "[molecules]"), ("scikit-learn", "[sklearn]"),
     ("scipy", "")],
)  # fmt: skip
def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, name, extra):
    without(monkeypatch, name)
    (line,) = (line for line in doctor.report().splitlines() if line.startswith(f"  {name} "))
    assert line.endswith(f'missing: pip install "pyro-coupling{extra}"')


def test_a_sound_environment_has_nothing_broken(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_check_compiler", lambda: "not tried")
    status, found = examined(capsys)
    assert status == 0
    for name in ("versions", "options", "fit", "files", "arviz", "compiler"):
        assert found[name].startswith("ok "), found[name]
    assert found["gpu"].split()[0] == ("ok" if torch.cuda.is_available() else "missing")


def test_a_missing_option_is_no_fault(monkeypatch):
    without(monkeypatch, "arviz")
    finding = doctor._finding("arviz", doctor._check_arviz, "")
    assert finding.status == "missing" and 'pip install "pyro-coupling[arviz]"' in finding.text


@pytest.mark.parametrize(("name", "check", "expected"), [("torch", "versions", 1), ("arviz", "options", 0)])
def test_a_version_out_of_range_is_broken(capsys, monkeypatch, quick, name, check, expected):
    without(monkeypatch, **{name: "0.1"})
    status, found = examined(capsys)
    assert status == expected
    assert found[check].startswith("broken") and f"{name} 0.1, should be" in found[check]


def test_a_missing_requirement_is_broken(capsys, monkeypatch, quick):
    without(monkeypatch, "scipy")
    status, found = examined(capsys)
    assert status == 1 and "scipy is missing" in found["versions"]


def test_a_wrong_posterior_is_broken(monkeypatch):
    model = doctor._model
    monkeypatch.setattr(doctor, "_model", lambda y: model(y + 0.3))
    finding = doctor._finding("fit", doctor._check_fit, "remedy", needed=True)
    assert finding.status == "broken" and "(exact 1.125)" in finding.text and finding.text.endswith("remedy")


def test_a_file_that_changes_a_flow_is_broken(capsys, monkeypatch, quick):
    def load(path):
        flow = doctor.flows.nice(2, 1, (4,))
        torch.nn.init.ones_(flow.parts[-1].shift)
        return flow

    monkeypatch.setattr(doctor, "load", load)
    status, found = examined(capsys)
    assert status == 1 and found["files"].startswith("broken")


def test_a_compiler_that_fails_is_broken_but_not_needed(capsys, monkeypatch, quick):
    def fails(*args, **kwargs):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(doctor, "_check_compiler", CHECK_COMPILER)
    status, found = examined(capsys)
    assert status == 0
    assert found["compiler"].startswith("broken") and "no working C++ compiler" in found["compiler"]


def test_the_compilers_cache_stays_where_it_was(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    for before in (None, "/somewhere"):
        if before is None:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        else:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        assert doctor._check_compiler() == "compile=True works"
        assert doctor.os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before


@pytest.mark.slow
def test_the_compiler_is_tried():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert doctor._check_compiler() == "compile=True works"


def test_without_metadata_it_says_so(capsys, monkeypatch, quick):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    for question in ("version", "metadata", "requires"):
        monkeypatch.setattr(metadata, question, absent)
    assert main([]) == 0
    capsys.readouterr()
    status, found = examined(capsys)
    assert status == 1 and found["versions"].startswith("broken")


def test_it_is_a_command():
    done = subprocess.run([sys.executable, "-m", "pyro_coupling"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"pyro_coupling {__version__}")


def test_an_unknown_command_is_refused():
    with pytest.raises(SystemExit):
        main(["nurse"])
