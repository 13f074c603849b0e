"""The training loop: it ends when told and when done, survives interruption, and goes on from a checkpoint."""

import copy
import itertools
import json
import math
import time

import pytest
import torch
from densities import banana, half_space, standard_normal

from pyro_coupling import flows
from pyro_coupling.files import read_safetensors, write_safetensors
from pyro_coupling.training import Trainer
from pyro_coupling.training.checkpoint import CheckpointFile, Snapshot, take_snapshot
from pyro_coupling.training.threads import suitable_threads


def small_flow(dim=2, **kwargs):
    torch.manual_seed(0)
    return flows.real_nvp(dim, **({"num_layers": 2, "hidden_dims": (8,)} | kwargs)).double()


def trainer(target=None, flow=None, **kwargs):
    target = target or banana()
    options = {"num_particles": 32, "max_steps": 40, "generator": torch.Generator().manual_seed(0)}
    return Trainer(flow or small_flow(target.dim), target, **(options | kwargs))


def after(steps, error=KeyboardInterrupt):
    """A watch function that interrupts the run after some steps."""
    count = itertools.count(1)

    def watch(state):
        if next(count) == steps:
            raise error

    return watch


def parameters(flow):
    return [p.detach().clone() for p in flow.parameters()]


def save(path, run):
    CheckpointFile(path).save(take_snapshot(run))


def resume(path, run):
    Snapshot(CheckpointFile(path).read()).restore(run)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Ends


def test_max_steps_is_honoured():
    record = trainer(max_steps=17).run()
    assert record.num_steps == 17
    assert record.stopped_by == "max_steps"


def test_max_seconds_is_honoured():
    began = time.monotonic()
    record = trainer(max_steps=10**9, max_seconds=0.3).run()
    assert record.stopped_by == "max_seconds"
    assert 0.3 <= record.seconds < time.monotonic() - began + 1e-3


def test_a_fit_that_is_good_ends_by_itself():
    target = standard_normal(2)
    record = trainer(target, max_steps=20_000).run()
    assert record.stopped_by == "converged"
    assert record.num_steps < 5000
    assert record.ess[-1] > 0.99
    assert record.elbo[-1] == pytest.approx(0.0, abs=0.02)


def test_training_improves_the_fit():
    record = trainer(num_particles=64, max_steps=600, learning_rate=1e-2).run()
    # the identity against the banana: E[log p - log q] = 1/2 + 1/2 log 4 - 2 E[(y - x^2)^2] = -6.8
    assert record.elbo[0] < record.elbo[-1]
    assert record.elbo[-1] > -0.5
    assert record.steps == [200, 400, 600]
    assert record.skipped_samples == record.skipped_steps == 0


def test_the_result_is_an_average_of_the_last_steps():
    run = trainer(max_steps=60)
    run.run()
    assert equal(parameters(run.flow), run.averages)
    assert not equal(parameters(run.flow), run.last)


def test_the_watch_function_sees_every_step():
    states = []
    trainer(max_steps=5).run(states.append)
    assert [s.step for s in states] == [1, 2, 3, 4, 5]
    assert [s.progress for s in states] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert states[-1].log_weights.shape == (5 * 32,)


def test_one_seed_is_one_result():
    assert equal(*[parameters(t.flow) for t in (trainer(), trainer()) if t.run()])


def test_the_global_random_state_is_left_alone():
    run, state = trainer(), torch.get_rng_state()
    run.run()
    assert torch.equal(state, torch.get_rng_state())


# Trouble


def test_an_interrupt_keeps_a_usable_flow():
    run = trainer(max_steps=10_000)
    record = run.run(after(30))
    assert record.stopped_by == "interrupt"
    assert record.num_steps == 30
    assert equal(parameters(run.flow), run.averages)
    x, log_det = run.flow.forward_and_log_det(torch.randn(10, 2).double())
    assert x.isfinite().all()
    assert log_det.isfinite().all()


def test_another_error_comes_out():
    with pytest.raises(ZeroDivisionError):
        trainer().run(after(3, ZeroDivisionError))


def test_samples_outside_the_domain_are_counted():
    run = trainer(half_space(2), max_steps=10, num_particles=500)
    record = run.run()
    # P(x > 1) = 0.16 of 10 x 500 draws, and less as the flow learns; 5 standard deviations of the count
    assert 0 < record.skipped_samples < 0.159 * 5000 + 5 * math.sqrt(0.159 * 0.841 * 5000)
    assert record.skipped_steps == 0
    assert all(p.isfinite().all() for p in run.flow.parameters())


def test_a_step_without_a_finite_gradient_changes_nothing():
    flow = small_flow()
    with torch.no_grad():
        flow[-1].log_diag.fill_(720.0)  # exp overflows: samples are infinite, their gradients NaN
    before = parameters(flow)
    record = trainer(standard_normal(2), flow, max_steps=3).run()
    assert record.skipped_samples == 3 * 32
    assert equal(parameters(flow), before)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_particles", 0),
        ("learning_rate", -1.0),
        ("max_steps", 0),
        ("max_seconds", 0.0),
        ("learning_rate", math.nan),
    ],
)
def test_numbers_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=f"Trainer: {argument} must be positive, got {value}"):
        trainer(**{argument: value})


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match=r"estimator must be one of .*, got 'reinforce'"):
        trainer(estimator="reinforce")


# Checkpoints


@pytest.mark.parametrize("num_steps", [20, 230])  # before and after the first window, at which progress is judged
def test_a_resumed_run_is_the_straight_one_bit_for_bit(tmp_path, num_steps):
    options = {"max_steps": num_steps + 20}
    straight = trainer(**options)
    straight.run()

    first = trainer(**options)
    first.run(after(num_steps))
    save(tmp_path / "run", first)
    second = trainer(flow=small_flow(num_layers=2), **options)
    resume(tmp_path / "run", second)
    assert second.record.num_steps == num_steps
    second.run()

    assert equal(parameters(second.flow), parameters(straight.flow))
    assert equal(second.last, straight.last)
    assert second.record.num_steps == straight.record.num_steps
    assert (second.record.elbo, second.record.ess) == (straight.record.elbo, straight.record.ess)
    assert torch.equal(second.generator.get_state(), straight.generator.get_state())


def test_a_checkpoint_in_the_middle_of_a_run_is_as_good(tmp_path):
    straight = trainer()

    def watch(state):
        if state.step == 20:
            save(tmp_path / "run", straight)

    straight.run(watch)
    second = trainer()
    resume(tmp_path / "run", second)
    second.run()
    assert equal(parameters(second.flow), parameters(straight.flow))


def test_a_trainer_can_run_twice_and_be_saved_in_between(tmp_path):
    twice = trainer()
    twice.run(after(10))

    def watch(state):
        if state.step == 20:
            save(tmp_path / "run", twice)

    twice.run(watch)
    second = trainer()
    resume(tmp_path / "run", second)
    second.run()
    assert equal(parameters(second.flow), parameters(twice.flow))


def test_a_checkpoint_goes_on_with_another_number_of_particles(tmp_path):
    first = trainer(num_particles=16, max_steps=5)
    first.run()
    save(tmp_path / "run", first)
    second = trainer(num_particles=32, max_steps=10)
    resume(tmp_path / "run", second)
    second.run(lambda state: save(tmp_path / "run", second))
    assert second.record.num_steps == 10


def test_no_file_is_nothing_to_resume(tmp_path):
    assert CheckpointFile(tmp_path / "none").read() == b""


def test_saves_are_not_due_all_the_time(tmp_path):
    file = CheckpointFile(tmp_path / "run", interval=1000.0)
    trainer().run(lambda state: file.save_if_due(None))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def checkpoint(tmp_path):
    run = trainer(max_steps=3)
    run.run()
    save(tmp_path / "run", run)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "flow", [lambda: small_flow(num_layers=3), lambda: small_flow(hidden_dims=(9,)), lambda: small_flow(dim=3)]
)
def test_the_checkpoint_of_another_flow_is_refused(checkpoint, flow):
    other = flow()
    run = trainer(standard_normal(other.event_shape[0]), other)
    before = parameters(run.flow)
    with pytest.raises(ValueError, match=r"belongs to another model or flow.*Remove the file to start anew"):
        resume(checkpoint, run)
    assert equal(parameters(run.flow), before)


def test_a_file_of_something_else_is_refused(checkpoint):
    checkpoint.write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        resume(checkpoint, trainer())
    write_safetensors(checkpoint, {}, {"format": "other", "version": "1"})
    with pytest.raises(ValueError, match="has the format 'other'"):
        resume(checkpoint, trainer())


def without(name):
    return lambda tensors, state: tensors.pop(name)


def with_state(**entries):
    return lambda tensors, state: state.update(entries)


@pytest.mark.parametrize(
    "spoil",
    [
        without("generator"),
        without("parameter.0"),
        without("average.0"),
        lambda tensors, state: tensors.update({"generator": torch.zeros(3)}),
        lambda tensors, state: tensors.update({"average.0": torch.zeros(3, 99)}),
        lambda tensors, state: state.clear(),
        with_state(record={"unknown": 1}),
        with_state(decay_began="soon"),
    ],
)
def test_a_damaged_checkpoint_is_refused(checkpoint, spoil):
    tensors, metadata = read_safetensors(checkpoint, "pyro_coupling.checkpoint", 1)
    state = json.loads(metadata["state"])
    spoil(tensors, state)
    write_safetensors(checkpoint, tensors, metadata | {"state": json.dumps(state)})
    with pytest.raises(ValueError, match=r"damaged"):
        resume(checkpoint, trainer())


# Threads


@pytest.mark.parametrize("step_bytes", [1, 10**12])
def test_the_number_of_threads_is_given_back(step_bytes):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError), suitable_threads(step_bytes):
            assert torch.get_num_threads() == (1 if step_bytes == 1 else 2)
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_trained_flow_can_be_copied():
    run = trainer(max_steps=3)
    run.run()
    assert equal(parameters(copy.deepcopy(run.flow)), parameters(run.flow))
