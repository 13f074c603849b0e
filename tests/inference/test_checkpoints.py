"""A run with a checkpoint goes on from it as if nothing had happened, whatever happened."""

import errno
import fcntl
import importlib.util
import json
import math
import os
import signal
import stat
import subprocess
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import Y, groups, location_scale, small_flow, two_normals

from pyro_coupling import AutoCouplingFlow, FlowVI, flows, guides, nn
from pyro_coupling.training import Trainer, checkpoint
from pyro_coupling.transforms import Affine, Chain, Coupling


def bimodal(y):
    x = pyro.sample("x", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(x[..., 0].square(), 1.0), obs=y)


def fit(path=None, model=location_scale, data=Y, flow=small_flow, guide=None, **options):
    options = {"max_steps": 30, "seed": 0, "num_particles": 32} | options
    if model is not two_normals:  # whose guide must not see its discrete latents
        guide = guide or AutoCouplingFlow(model, flow)
    vi = FlowVI(model, guide, progress=False, checkpoint=path, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(Rough|Not to be trusted)")
        return vi.run(data)


def outcome(vi):
    """All that a run ends with but the time it took."""
    figures = {name: value for name, value in vi.diagnostics().items() if name != "seconds"}
    torch.manual_seed(0)  # for dropout
    return json.dumps(figures), vi.guide.state_dict() | vi.get_samples(20)


def assert_same(first, second):
    (figures, tensors), (expected_figures, expected_tensors) = outcome(first), outcome(second)
    assert figures == expected_figures
    torch.testing.assert_close(tensors, expected_tensors, rtol=0, atol=0)


class Killed(BaseException):
    """Comes as suddenly as a signal: nothing catches it."""


def at_step(monkeypatch, step, action):
    """Does something in the middle of a step."""
    original = Trainer.clip_and_step

    def stepping(self):
        if self.record.num_steps == step:
            action()
        original(self)

    monkeypatch.setattr(Trainer, "clip_and_step", stepping)


def kill(*args, **kwargs):
    raise Killed


def killed_at(monkeypatch, path, step, **options):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "INTERVAL", 0.0)
        at_step(patch, step, kill)
        fit(path, **options)


# Going on


@pytest.mark.parametrize("step", [0, 12])
@pytest.mark.parametrize("model", [location_scale, two_normals])
def test_a_killed_run_goes_on_bit_for_bit(monkeypatch, tmp_path, model, step):
    killed_at(monkeypatch, tmp_path / "run", step, model=model)
    assert_same(fit(tmp_path / "run", model=model), fit(model=model))


def test_a_run_killed_in_its_warm_start_begins_anew(monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(guides, "warm_start", kill)
        fit(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert_same(fit(tmp_path / "run"), fit())


def test_the_warm_start_is_saved_at_once_and_not_repeated(monkeypatch, tmp_path):
    straight = fit(model=bimodal, data=torch.tensor(25.0))
    assert straight.diagnostics()["missed_mass"] > 0.3  # what the other mode's start tells
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "run", kill)
        fit(tmp_path / "run", model=bimodal, data=torch.tensor(25.0))
    monkeypatch.setattr(guides, "warm_start", kill)
    assert_same(fit(tmp_path / "run", model=bimodal, data=torch.tensor(25.0)), straight)


def test_dropout_goes_on_bit_for_bit(monkeypatch, tmp_path):
    def flow(dim):
        return Chain([Coupling([True, False], nn.MLP(1, 2, (8,), dropout=0.5), Affine())])

    killed_at(monkeypatch, tmp_path / "run", 12, flow=flow)
    assert_same(fit(tmp_path / "run", flow=flow), fit(flow=flow))


def test_ctrl_c_is_put_off_until_the_step_is_over_and_the_run_goes_on_bit_for_bit(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        at_step(patch, 12, partial(signal.raise_signal, signal.SIGINT))
        interrupted = fit(tmp_path / "run")
    assert interrupted.diagnostics()["num_steps"] == 13
    assert interrupted.diagnostics()["stopped_by"] == "interrupt"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(fit(tmp_path / "run"), fit())


def test_a_second_ctrl_c_ends_a_step_too(monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 12, twice)
    assert fit().diagnostics()["num_steps"] == 12


def test_without_a_seed_the_run_goes_on_with_its_own(monkeypatch, tmp_path):
    torch.manual_seed(1)
    straight = fit(seed=None)
    torch.manual_seed(1)
    killed_at(monkeypatch, tmp_path / "run", 12, seed=None)
    torch.manual_seed(2)
    assert_same(fit(tmp_path / "run", seed=None), straight)


# Runs that are over


def test_a_finished_run_is_not_trained_on_and_says_so(monkeypatch, tmp_path):
    finished = fit(tmp_path / "run")
    monkeypatch.setattr(Trainer, "_step", kill)
    with pytest.warns(UserWarning, match=r"holds a run that was finished \(max_steps after 30 steps\)"):
        again = fit(tmp_path / "run")
    assert_same(finished, again)


def test_a_run_that_reached_max_seconds_is_not_trained_on(monkeypatch, tmp_path):
    fit(tmp_path / "run", max_steps=None, max_seconds=0.5)
    monkeypatch.setattr(Trainer, "_step", kill)
    with pytest.warns(UserWarning, match="finished .max_seconds"):
        again = fit(tmp_path / "run", max_steps=None, max_seconds=0.5)
    assert again.diagnostics()["seconds"] > 0.5


def test_a_raised_max_steps_trains_on_at_full_step_size(tmp_path):
    assert fit(tmp_path / "run").record.num_steps == 30
    on = fit(tmp_path / "run", max_steps=350)
    assert on.record.num_steps == 350  # the decay that began at step 15 would have ended it at 315
    assert on.diagnostics()["stopped_by"] == "max_steps"


# Files of something else


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "the seed is not the same, 0 there, 1 here"),
        ({"model": groups}, "the set of latent sites is not the same, .*'sigma'.* there, .*'theta'"),
        ({"data": torch.arange(4.0)}, r"the shape of the data is not the same, {'y': \[3\]} there, {'y': \[4\]} here"),
        ({"data": Y + 0.1}, "the log density at the initial point is not the same, -"),
        ({"flow": partial(flows.real_nvp, num_layers=3)}, "the guide is not the same"),
        ({"guide": AutoCouplingFlow(location_scale, small_flow, num_starts=2)}, "the guide is not the same"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, words):
    fit(tmp_path / "run", max_steps=1)
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint .*run' belongs to another run: {words}.*Remove the file"):
        fit(tmp_path / "run", **change)
    assert (tmp_path / "run").read_bytes() == before


def test_a_refused_guide_still_has_its_warm_start_before_it(tmp_path):
    fit(tmp_path / "run", max_steps=1)
    guide = AutoCouplingFlow(location_scale, flows.real_nvp)
    with pytest.raises(ValueError, match="the guide is not the same"):
        fit(tmp_path / "run", guide=guide)
    assert_same(fit(guide=guide), fit(flow=flows.real_nvp))


def test_the_checkpoint_of_a_trainer_alone_is_refused(tmp_path):
    trainer = Trainer(small_flow(2), fit(max_steps=1).target)
    checkpoint.CheckpointFile(tmp_path / "run").save(checkpoint.take_snapshot(trainer))
    with pytest.raises(ValueError, match="is not one of FlowVI"):
        fit(tmp_path / "run")


def test_an_impossible_path_is_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(guides, "warm_start", kill)
    with pytest.raises(ValueError, match="is in a folder that does not exist"):
        fit(tmp_path / "nowhere" / "run")
    with pytest.raises(ValueError, match="is a folder"):
        fit(tmp_path)
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="is damaged: it is empty"):
        fit(tmp_path / "run")


# Full disks


def disk_full(handle):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_nothing_that_was_there_and_warns_once(monkeypatch, tmp_path):
    fit(tmp_path / "run", max_steps=5)
    before = (tmp_path / "run").read_bytes()
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(os, "fsync", disk_full)
        full = fit(tmp_path / "run")
    messages = [str(w.message) for w in caught if "can't be written" in str(w.message)]
    assert len(messages) == 2  # as it begins, and at the end
    assert "No space left on device): what it held stays, it is tried every 0 s" in messages[0]
    assert "the end of the run is not in it" in messages[1]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run").read_bytes() == before
    assert_same(fit(tmp_path / "run"), full)


def test_a_disk_that_is_full_for_a_while_is_tried_again(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    with pytest.warns(UserWarning, match="can't be written"), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        at_step(patch, 5, lambda: patch.setattr(os, "fsync", lambda handle: None))
        fit(tmp_path / "run")
    assert checkpoint.Snapshot((tmp_path / "run").read_bytes()).record.num_steps == 30


def mounted(folder, size):
    """A small disk, where the tests may have one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def test_a_truly_full_disk(tmp_path):
    if not mounted(tmp_path, "1m"):
        pytest.skip("needs a file system of its own")
    try:
        fit(tmp_path / "run", max_steps=5)
        before = (tmp_path / "run").read_bytes()
        with open(tmp_path / "rest", "wb") as rest:
            while True:
                try:
                    os.write(rest.fileno(), bytes(4096))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    break
        with pytest.warns(UserWarning, match="No space left on device"):
            fit(tmp_path / "run")
        assert (tmp_path / "run").read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["rest", "run"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Killed processes, power cuts


def test_file_and_folder_are_brought_to_the_disk(monkeypatch, tmp_path):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    checkpoint.CheckpointFile(tmp_path / "run").save(b"content")
    assert synced == [False, True]


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    leftover, other = tmp_path / f".run.{'0a' * 16}", tmp_path / f".other.{'0a' * 16}"
    being_written, mine = tmp_path / f".run.{'1b' * 16}", tmp_path / ".run.backup"
    for path in (leftover, other, being_written, mine):
        path.touch()
    with open(being_written, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fit(tmp_path / "run", max_steps=1)
    assert sorted(tmp_path.iterdir()) == sorted([other, being_written, mine, tmp_path / "run"])


def kill_trials():
    path = Path(__file__).parents[2] / "benchmarks" / "kill_trials.py"
    spec = importlib.util.spec_from_file_location("kill_trials", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_killed_by_a_signal_end_as_one_that_never_was(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "INTERVAL", checkpoint.INTERVAL)  # which the script shortens
    script = kill_trials()
    trials = script.Trials(tmp_path, steps=60)
    digests = trials.run(3, seconds=6.0)
    assert sum(trials.counts.values()) == 3
    assert digests == [script.fit(steps=60)]
    assert math.isclose(checkpoint.INTERVAL, 0.02)
