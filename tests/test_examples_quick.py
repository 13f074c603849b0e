"""Every example runs from start to end with ``--quick``, in a folder of its own, and leaves a picture there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"live_memory", "planar"}  # imported by other examples
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in MODULES)
NEEDS = {
    "alanine_dipeptide": ["mdtraj"],
    "anomalies": ["sklearn"],
    "constant_memory": ["sklearn"],
    "demo": ["arviz"],
    "digits": ["sklearn"],
    "policy": ["gymnasium"],
    "population_flow": ["sklearn"],
    "vae_prior": ["sklearn"],
}
OPTIONS = {"demo": ["--output", "demo_output"]}  # which by default writes beside the examples


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example_runs_and_saves_a_picture(path, tmp_path):
    for module in ["matplotlib", *NEEDS.get(path.stem, [])]:
        pytest.importorskip(module)
    found = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": found}
    command = [sys.executable, str(path), "--quick", *OPTIONS.get(path.stem, [])]
    everything = os.environ | settings
    run = subprocess.run(command, cwd=tmp_path, env=everything, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert list(tmp_path.rglob("*.png")), "no picture was saved"
