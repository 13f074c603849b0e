"""`FlowVI` on several processes: one fit, the same on all of them, that a killed process does not lose."""

import functools
import os
import signal
import warnings

import pytest
import torch
from models import Y, groups, groups_posterior, small_flow
from ranks import run_on_ranks

from pyro_coupling import AutoCouplingFlow, FlowVI
from pyro_coupling.training import Trainer, checkpoint

PARTICLES = 33


def fit(data=Y, **options):
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # of which nothing is to depend
    options = {"max_steps": 100, "seed": 0, "num_particles": PARTICLES} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FlowVI(groups, AutoCouplingFlow(groups, small_flow), **({"progress": False} | options)).run(data)


def outcome(vi):
    starts = [(start.loc, start.scale_tril, start.elbo) for start in vi.guide.starts]
    return vi.diagnostics(), dict(vi.guide.state_dict()), vi.get_samples(500), starts


def three_fits(rank, folder):
    """One with a seed, one without, and one that goes on from a checkpoint of one process."""
    return [outcome(fit(**options)) for options in ({}, {"seed": None}, {"checkpoint": folder / "run"})]


@functools.cache
def both_ranks(folder):
    fit(max_steps=50, checkpoint=folder / "run")
    found = run_on_ranks(three_fits, 2, folder)
    for result in found:
        if not isinstance(result, list):
            raise AssertionError(f"a rank failed: {result!r}")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.mark.parametrize("which", [0, 1, 2], ids=["seed", "no seed", "checkpoint"])
def test_every_rank_ends_with_the_same_fit(folder, which):
    first, second = (found[which] for found in both_ranks(folder))
    assert first[0] == second[0]
    torch.testing.assert_close(first[1:], second[1:], rtol=0, atol=0)


def test_the_fit_is_that_of_one_process_with_all_particles(folder):
    figures, parameters, draws, _ = both_ranks(folder)[0][0]
    alone = fit()
    # in float32 rounding grows over a hundred steps of Adam
    torch.testing.assert_close(parameters, dict(alone.guide.state_dict()), rtol=1e-2, atol=1e-3)
    assert figures["ess"] == pytest.approx(alone.diagnostics()["ess"], abs=0.01)
    mean, sd = groups_posterior()
    assert draws["mu"].mean().item() == pytest.approx(mean, abs=5 * sd / 500**0.5)


def test_a_checkpoint_of_one_process_goes_on_with_two(folder):
    assert both_ranks(folder)[0][2][0]["num_steps"] == 100


def killed(rank, path):
    checkpoint.INTERVAL = 0.0
    original = Trainer._step

    def step(self, seconds):
        if rank == 1 and self.record.num_steps == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, seconds)

    Trainer._step = step
    fit(checkpoint=path, progress=True)


def test_a_killed_rank_is_told_of_and_the_run_can_go_on(tmp_path, capfd):
    error, nothing = run_on_ranks(killed, 2, tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""
    assert "looking for starting points" in err
    assert "going on" not in err  # rank 1, which has rank 0's warm start, shows no progress
    assert nothing is None
    assert isinstance(error, RuntimeError)
    assert "rank 0 of 2 has lost the others: a process was killed" in str(error)
    assert "Start the same command again; with FlowVI(..., checkpoint=path) it goes on from the last save" in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert checkpoint.Snapshot((tmp_path / "run").read_bytes()).record.num_steps == 20
    resumed = fit(checkpoint=tmp_path / "run")
    assert resumed.diagnostics()["num_steps"] == 100
    torch.testing.assert_close(dict(resumed.guide.state_dict()), dict(fit().guide.state_dict()), rtol=1e-2, atol=1e-3)


def other_data(rank):
    fit(Y + rank)


def test_ranks_with_other_data_are_refused():
    lost, refused = run_on_ranks(other_data, 2)
    assert isinstance(refused, ValueError)
    assert "of rank 0' belongs to another run: the log density at the initial point is not the same" in str(refused)
    assert isinstance(lost, RuntimeError)
