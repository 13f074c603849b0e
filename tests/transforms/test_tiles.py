"""Long batches in tiles: the same numbers, gradients and contexts, and whole batches where a layer needs them."""

import pytest
import torch
from torch import nn

from pyro_coupling import flows
from pyro_coupling.transforms import ActNorm, Affine, BatchNorm, Bijection, Chain, Coupling
from pyro_coupling.transforms.tiles import in_tiles

DIM, LONG = 3, 9000


class Lengths(nn.Module):
    """A conditioner that writes down how long its batches are."""

    def __init__(self, context_dim=0):
        super().__init__()
        self.net, self.found = nn.Linear(1 + context_dim, 4), []

    def forward(self, x):
        self.found.append(len(x))
        return self.net(x)


def made(*others, context_dim=0, **settings):
    torch.manual_seed(0)
    lengths = Lengths(context_dim)
    chain = Chain([Coupling([True, False, False], lengths, Affine(), context_dim), *others], **settings).double()
    lengths.found.clear()  # of the trial at construction
    return chain, lengths.found


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(*batch, size=DIM, seed=1):
    return torch.randn(*batch, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_long_batches_run_in_tiles_of_equal_length():
    chain, found = made()
    chain(data(1024))
    chain(data(LONG))
    assert found == [1024, *9 * [1000]]
    found.clear()
    chain(data(3001).float().double())  # a prime number of rows
    assert found == [1001, 1000, 1000]


@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det", "forward_and_score"])
@pytest.mark.parametrize("batch", [(LONG,), (2, LONG), (LONG, 1), (3, 1, 1500)])
@pytest.mark.parametrize("context", [(), (-1,), (1,), None])
def test_the_same_values_and_gradients_as_of_a_whole_batch(method, batch, context):
    flow = flows.neural_spline(DIM, 2, (8,), context_dim=0 if context is None else 2).double()
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = data(*batch).requires_grad_()
    inputs = (x, data(*batch, seed=2)) if method == "forward_and_score" else (x,)
    if context is not None:
        context = data(*batch[len(batch) - 1 :] if context == (-1,) else context, size=2, seed=3).requires_grad_()
    sources = [x, *flow.parameters()] + ([] if context is None else [context])
    whole = {
        "forward_and_log_det": flow._forwards,
        "inverse_and_log_det": flow._backwards,
        "forward_and_score": flow._scores,
    }[method]
    found, expected = getattr(flow, method)(*inputs, context), whole(*inputs, context)
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(value.sin().sum() + log_det.sum(), sources, allow_unused=True)
        for value, log_det, *_ in (found, expected)
    ]
    # sums over up to 18 000 rows, in another order
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_a_layer_that_mixes_the_batch_gets_all_of_it():
    chain, found = made(ActNorm(DIM))
    x = data(LONG)
    y, _ = chain.forward_and_log_det(x)
    assert found == [LONG] and torch.allclose(y.mean(0), torch.zeros(3).double(), atol=1e-12)
    chain(x)  # which the first batch has set
    assert found[1:] == 9 * [1000]
    for norm in (BatchNorm(DIM), Coupling([True, False, False], nn.Sequential(nn.BatchNorm1d(1), Lengths()), Affine())):
        chain, found = made(norm)
        chain.inverse_and_log_det(x)
        chain.eval().inverse_and_log_det(x)
        assert found == [LONG, *9 * [1000]]


class Centred(Bijection):
    """Not row by row, and says so."""

    mixes_batch = True

    def forward_and_log_det(self, x, context=None):
        return x - x.mean(0), x.new_zeros(len(x))


def test_a_layer_of_ones_own_can_ask_for_whole_batches():
    y, _ = made(Centred((DIM,)))[0].forward_and_log_det(data(LONG))
    assert torch.allclose(y.mean(0), torch.zeros(3).double(), atol=1e-12)


@pytest.mark.parametrize("setting", ["reversible", "checkpoint"])
def test_chains_that_save_memory(setting):
    plain, _ = made()
    frugal, _ = made(**{setting: True})
    gradients = []
    for chain in (plain, frugal):
        value, log_det = chain.forward_and_log_det(data(LONG))
        gradients.append(torch.autograd.grad(value.sin().sum() + log_det.sum(), list(chain.parameters())))
    torch.testing.assert_close(*gradients)


def test_function_transforms_and_tracing():
    chain, found = made()
    x = data(LONG)
    _, slope = torch.func.jvp(chain, (x,), (torch.ones_like(x),))
    rows = torch.func.vmap(lambda row: torch.func.jvp(chain, (row,), (torch.ones_like(row),))[1])(x)
    torch.testing.assert_close(slope, rows)
    found.clear()
    chain.requires_grad_(False)
    traced = torch.jit.trace(lambda x: chain.forward_and_log_det(x), (x,), check_trace=False)
    assert found == [LONG]  # so that it holds for any other batch
    torch.testing.assert_close(traced(x[:7]), chain.forward_and_log_det(x[:7]))


def test_compiled_tiles_are_shared_by_batches():
    coupling = Coupling([True, False, False], nn.Linear(1, 4), Affine()).double()
    flow = Chain([coupling], compile=True)
    for _ in range(2):
        assert len(flow._compiled._functions) == 0
        found = flow.forward_and_log_det(data(4000))
    assert len(flow._compiled._functions) == 1  # four tiles of 1000
    for _ in range(2):
        found = flow.forward_and_log_det(data(LONG))
    assert len(flow._compiled._functions) == 1 and flow._compiled.reason == ""
    torch.testing.assert_close(found, flow._forwards(data(LONG), None))


def test_empty_events_and_batches():
    empty = Bijection((0,))
    for shape in [(5000, 0), (0, 0)]:
        (found,) = in_tiles(lambda x, context: (x,), empty, (torch.zeros(shape),), None)
        assert found.shape == shape
    assert made()[0](data(0)).shape == (0, DIM)


def test_images_run_whole():
    seen = []
    image = Bijection((1, 2, 2))
    in_tiles(lambda x, context: (seen.append(x.shape), (x,))[1], image, (torch.zeros(5000, 1, 2, 2),), None)
    assert seen == [(5000, 1, 2, 2)]
