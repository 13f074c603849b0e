"""FlowVI on 1, 2 and 3 local processes of one thread each: steps per second, bytes per step, and the same posterior.

A posterior of the evaluation set is fitted for an equal number of steps under torchrun. What a step tells the other
ranks is counted where it is told, at `torch.distributed.all_reduce`; what that puts on the wire is read off the
loopback interface, which carries nothing else worth mention. Scores are those of the evaluation, from 4000 draws.

    python benchmarks/ranks.py --evaluation ../shared/evaluation [--posterior radon_centered] [--steps 1000]
        [--ranks 1 2 3] [--rounds 3] [--json benchmarks/results/ranks.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pyro_coupling import FlowVI
from pyro_coupling.training import Trainer


class Traffic:
    """Counts messages, their bytes, and the bytes on the loopback interface, while a trainer runs."""

    def __init__(self) -> None:
        self.messages = self.told = self.wire = 0
        self._reduce, self._run = dist.all_reduce, Trainer.run

    def __enter__(self) -> Traffic:
        def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.messages += 1
            self.told += tensor.numel() * tensor.element_size()
            return self._reduce(tensor, *args, **kwargs)

        def run(trainer: Trainer, watch: Any = None) -> Any:
            before = loopback_bytes()
            dist.all_reduce = all_reduce
            try:
                return self._run(trainer, watch)
            finally:
                dist.all_reduce = self._reduce
                self.wire += loopback_bytes() - before

        Trainer.run = run
        return self

    def __exit__(self, *exception: object) -> None:
        Trainer.run = self._run


def loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return sum(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def measure(evaluation: Path, posterior: str, steps: int) -> dict[str, float]:
    """What this rank finds in one fit."""
    sys.path.insert(0, str(evaluation))
    import common
    import numpy as np
    from score import score

    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    module, arguments = common.load(posterior)
    with Traffic() as traffic:
        vi = FlowVI(module.model, max_steps=steps, seed=0, progress=False).run(**arguments)
    figures, reference = vi.diagnostics(), common.reference(posterior)
    draws = {name: np.asarray(value) for name, value in vi.get_samples(4000).items()}
    draws = {name: draws[name].reshape((4000,) + reference[name].shape[1:]) for name in reference}
    worst = score(draws, reference, moments=common.exact_moments(posterior))["summary"]
    taken = vi.record.num_steps
    return {
        "steps_per_second": taken / vi.record.seconds,
        "messages_per_step": traffic.messages / taken,
        "bytes_per_step": traffic.told / taken,
        "wire_bytes_per_step": traffic.wire / taken,
        "parameters": sum(p.numel() for p in vi.guide.parameters()),
        **{name: figures[name] for name in ("ess", "khat", "log_evidence", "log_evidence_se")},
        **{name: float(worst[name]) for name in ("mean_worst", "w1_worst", "sd_ratio_worst")},
    }


def on_ranks(size: int, options: argparse.Namespace) -> dict[str, float]:
    """What rank 0 finds, with so many ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), __file__]
    chosen = ["--evaluation", str(options.evaluation), "--posterior", options.posterior, "--steps", str(options.steps)]
    done = subprocess.run([*launch, "--one", *chosen], capture_output=True, text=True)
    found = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(found[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--posterior", default="radon_centered")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(options.evaluation, options.posterior, options.steps)
        if os.environ["RANK"] == "0":
            print("RESULT " + json.dumps(found), flush=True)
        return
    rounds = [{size: on_ranks(size, options) for size in options.ranks} for _ in range(options.rounds)]
    results = {}
    print("| ranks | steps/s | messages, kB a step | on the wire, kB a step | ESS | k-hat | log evidence | worst mean "
          "| worst W1 | worst sd ratio |\n" + "|---" * 10 + "|")  # fmt: skip
    for size in options.ranks:
        row = results[size] = rounds[0][size]  # one seed: only times differ from round to round
        row["steps_per_second"] = statistics.median(r[size]["steps_per_second"] for r in rounds)
        print(
            f"| {size} | {row['steps_per_second']:.0f} | {row['messages_per_step']:.0f}, "
            f"{row['bytes_per_step'] / 1e3:.1f} | {row['wire_bytes_per_step'] / 1e3:.0f} | {row['ess']:.3f} | "
            f"{row['khat']:.2f} | {row['log_evidence']:.3f} +- {row['log_evidence_se']:.3f} | "
            f"{row['mean_worst']:.3f} | {row['w1_worst']:.3f} | {row['sd_ratio_worst']:.3f} |"
        )
    if options.json:
        settings = {"posterior": options.posterior, "steps": options.steps, "rounds": options.rounds}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
