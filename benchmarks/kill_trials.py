"""Kills runs of FlowVI at random moments, resumes them, and compares what they end with.

A run of a small model with a checkpoint is started in a process of its own and killed by SIGKILL at a random moment:
as it reads the model, in the warm start, as it trains or saves, in the diagnosis. It is started again with the same
path, and so on; after five kills it may finish. Its parameters, draws and diagnostics have to be, bit for bit, those
of a run that was never killed. After every kill the checkpoint, if there is one yet, has to be whole.

    python benchmarks/kill_trials.py [--kills 50] [--json benchmarks/results/kill_trials.json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_coupling import FlowVI
from pyro_coupling.training import checkpoint

STEPS = 200
KILLS_OF_ONE_RUN = 5
checkpoint.INTERVAL = 0.02  # seconds between two saves, so that many kills meet one


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def fit(path: Path | None = None, steps: int = STEPS) -> str:
    """A digest of all that a run ends with, the time it took left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit is too short to be trusted, and may have been finished
        vi = FlowVI(model, max_steps=steps, seed=0, progress=False, checkpoint=path).run(torch.tensor([1.0, 2.0, 4.0]))
    figures = {name: value for name, value in vi.diagnostics().items() if name != "seconds"}
    digest = hashlib.sha256(json.dumps(figures, sort_keys=True).encode())
    for name, value in sorted((vi.guide.state_dict() | vi.get_samples(100)).items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Trials:
    """Kills runs, and counts what they were doing.

    Args:
        folder: Where checkpoints go.
        steps: Steps of a run.
        seed: Of the moments of the kills.

    Attributes:
        counts: Kills by what the checkpoint held.
        leftovers: Kills that left a partial file behind.
    """

    def __init__(self, folder: Path, steps: int = STEPS, seed: int = 0) -> None:
        self.folder = folder
        self.steps = steps
        self.moments = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.leftovers = 0

    def run(self, kills: int, seconds: float) -> list[str]:
        """Digests of the runs that it took.

        Args:
            kills: How many kills in all.
            seconds: About how long a run takes; a kill comes within half of it.
        """
        digests = []
        while kills > 0:
            path = self.folder / f"run_{len(digests)}"
            for _ in range(min(kills, KILLS_OF_ONE_RUN)):
                self.kill_one(path, self.moments.uniform(0.0, 0.5 * seconds))
                kills -= 1
            digests.append(self._start(path).communicate()[0].split()[-1])
            if partial_files(path):
                raise AssertionError(f"partial files were left behind: {partial_files(path)}")
        return digests

    def kill_one(self, path: Path, delay: float) -> None:
        """Starts or resumes a run, kills it after some seconds, and looks at the file."""
        process = self._start(path)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.counts[self._state(path)] += 1
        self.leftovers += bool(partial_files(path))

    def _start(self, path: Path) -> subprocess.Popen:
        """A process that has just begun its run."""
        command = [sys.executable, __file__, "--one", str(path), "--steps", str(self.steps)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        if process.stdout.readline().strip() != "begin":
            raise AssertionError("the run did not begin")
        return process

    def _state(self, path: Path) -> str:
        if not path.exists():
            return "warm start, nothing saved"
        record = checkpoint.Snapshot(path.read_bytes(), str(path)).record  # raises if it is torn
        if record.stopped_by:
            return "finished"
        return "training" if record.num_steps else "training, only the warm start saved"


def partial_files(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir() if p.name.startswith(f".{path.name}.")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print("begin", flush=True)
        print(fit(options.one, options.steps))
        return
    began = time.monotonic()
    straight = fit(steps=options.steps)
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), options.steps, options.seed)
        digests = trials.run(options.kills, seconds)
    same = sum(digest == straight for digest in digests)
    print(f"{options.kills} kills of {len(digests)} runs, {trials.leftovers} in the middle of a save:")
    for state, count in trials.counts.most_common():
        print(f"  {count:3d} with the checkpoint at: {state}")
    print(f"{same} of {len(digests)} runs ended bit for bit as the one that was never killed")
    if options.json:
        results = {"kills": options.kills, "runs": len(digests), "same": same, "in_a_save": trials.leftovers}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results | {"checkpoint_at": trials.counts}, indent=1) + "\n")
    if same < len(digests):
        raise SystemExit("runs that were killed ended otherwise")


if __name__ == "__main__":
    main()
