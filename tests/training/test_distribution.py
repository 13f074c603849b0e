"""Several processes train what one process trains, in step with each other."""

import functools
import os
import signal

import pytest
import torch
from densities import banana, half_space
from ranks import run_on_ranks

from pyro_coupling import flows
from pyro_coupling.training import ESTIMATORS, Trainer, reverse_kl_backward
from pyro_coupling.training.distribution import Ranks, joined_ranks
from pyro_coupling.transforms import ActNorm, Chain

CASES = [(estimator, covering) for estimator in ESTIMATORS for covering in (False, True)]
PARTICLES = 33  # of which two ranks have 17 and 16


def small_flow():
    torch.manual_seed(0)
    return flows.real_nvp(2, num_layers=2, hidden_dims=(8,)).double()


def trainer(ranks, flow=None, max_steps=30):
    generator = torch.Generator().manual_seed(0)
    flow = flow or small_flow()
    return Trainer(flow, banana(), num_particles=PARTICLES, max_steps=max_steps, generator=generator, ranks=ranks)


def gradient(ranks, estimator, covering):
    """Log weights and gradient, where some samples are outside of the target's domain."""
    flow = small_flow()
    z = torch.randn(PARTICLES, 2, generator=torch.Generator().manual_seed(1)).double()
    log_weights = reverse_kl_backward(flow, half_space(2), z, estimator, covering, ranks)
    gradients = [p.grad for p in flow.parameters()]
    ranks.add(gradients)
    return log_weights, torch.cat([g.flatten() for g in gradients])


def trained(ranks):
    run = trainer(ranks)
    run.run()
    return torch.cat([p.detach().flatten() for p in run.flow.parameters()]), torch.cat(list(run.recent))


def first_batch(ranks):
    """What the first batch sets in a layer that is normalised by it."""
    flow = Chain([small_flow(), ActNorm(2).double()])
    trainer(ranks, flow, max_steps=1).run()
    return flow[1].loc, flow[1].scale


def interrupted_steps(ranks):
    """Steps until rank 1 alone was interrupted at its fifth."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore it
    run = trainer(ranks, max_steps=100)

    def watch(state):
        if state.step == 5 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)

    record = run.run(watch)
    return record.num_steps, record.stopped_by


def all_of_it(rank):
    with joined_ranks() as ranks:
        assert (ranks.rank, ranks.size) == (rank, 2)
        found = {
            "gradients": [gradient(ranks, *case) for case in CASES],
            "trained": trained(ranks),
            "first_batch": first_batch(ranks),
            "interrupted": interrupted_steps(ranks),
            "agreed": [ranks.agree(10.0 + rank, stop) for stop in (False, rank == 1)],
            "shared": [ranks.share(content if rank == 0 else b"other") for content in (b"", b"abc" * 1000)],
        }
    with joined_ranks() as again:
        found["again"] = again.agree(1.0, False)
    return found


@functools.cache
def both_ranks():
    found = run_on_ranks(all_of_it, 2)
    for result in found:
        if not isinstance(result, dict):
            raise AssertionError(f"a rank failed: {result!r}")
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_is_that_of_one_process_with_all_particles(case):
    log_weights, expected = gradient(Ranks(), *case)
    assert not log_weights.isfinite().all()
    for found in both_ranks():
        torch.testing.assert_close(found["gradients"][CASES.index(case)], (log_weights, expected))


def test_ranks_end_bitwise_equal_and_as_one_process_up_to_rounding():
    first, second = (found["trained"] for found in both_ranks())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first, trained(Ranks()), rtol=1e-6, atol=1e-8)


def test_a_layer_that_the_first_batch_sets_sees_all_of_it():
    for found in both_ranks():
        torch.testing.assert_close(found["first_batch"], first_batch(Ranks()))


def test_an_interrupt_of_one_rank_ends_all_after_the_same_step():
    assert [found["interrupted"] for found in both_ranks()] == [(5, "interrupt")] * 2


def test_the_clock_is_that_of_rank_0_and_any_rank_may_stop():
    assert [found["agreed"] for found in both_ranks()] == [[(10.0, False), (10.0, True)]] * 2


def test_rank_0_tells_the_others():
    assert [found["shared"] for found in both_ranks()] == [[b"", b"abc" * 1000]] * 2


def test_ranks_can_be_joined_again():
    assert [found["again"] for found in both_ranks()] == [(1.0, False)] * 2


def test_one_process_talks_to_nobody():
    with joined_ranks() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)
        assert ranks.agree(1.5, True) == (1.5, True)
        assert ranks.share(b"abc") == b"abc"
    assert not torch.distributed.is_initialized()


def test_every_rank_needs_a_particle():
    three = Ranks()
    three.size = 3
    with pytest.raises(ValueError, match="num_particles must be at least 1 for each of 3 ranks, got 2"):
        Trainer(small_flow(), banana(), num_particles=2, ranks=three)
