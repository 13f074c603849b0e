"""Squeezing, reshaping, bijections on slices, encoded contexts."""

import pyro.distributions as dist
import pytest
import torch
from harness import coupling, randomise
from torch import nn

from pyro_coupling.transforms import Chain, DiagonalAffine, OnSlice, Reshape, Squeeze, WithContext, halves


def test_squeeze_puts_each_block_into_the_channels_of_one_pixel():
    image = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    y = Squeeze((2, 4, 6))(image)
    assert y.shape == (8, 2, 3)
    for i in range(2):
        for j in range(3):
            assert y[:, i, j].tolist() == image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten().tolist()


def test_squeeze_is_pixel_unshuffle_of_torch():
    image = torch.randn(5, 3, 6, 9)
    assert torch.equal(Squeeze((3, 6, 9), factor=3)(image), nn.functional.pixel_unshuffle(image, 3))


def test_squeeze_of_sound_groups_samples_into_channels():
    assert Squeeze((1, 6), 3)(torch.arange(6.0)[None]).tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("batch", [(), (7,), (2, 3), (0,)])
@pytest.mark.parametrize(
    "make", [lambda: Squeeze((2, 4, 6)), lambda: Reshape((4, 3), (2, 6)), lambda: Squeeze((2, 6), 3)]
)
def test_layouts_come_back_and_have_no_log_det(make, batch):
    layout = make()
    x = torch.randn(*batch, *layout.event_shape)
    y, log_det = layout.forward_and_log_det(x)
    assert y.shape == (*batch, *layout.output_shape) and log_det.shape == batch and not log_det.any()
    assert torch.equal(layout.inv(y), x) and torch.equal(layout.inv.inv(x), y)
    assert layout.forward_shape(x.shape) == y.shape and layout.inverse_shape(y.shape) == x.shape
    assert torch.equal(layout.forward_and_score(x, -x)[2], -y)


def test_pyro_draws_events_of_the_new_shape():
    base = dist.Normal(torch.zeros(1, 4, 4), 1.0).to_event(3)
    d = dist.TransformedDistribution(base, [Chain([Squeeze((1, 4, 4)), DiagonalAffine(torch.ones(4, 2, 2))])])
    x = d.sample((5,))
    assert d.event_shape == (4, 2, 2) and x.shape == (5, 4, 2, 2)
    expected = dist.Normal(torch.ones(4, 2, 2), 1.0).to_event(3).log_prob(x)
    assert torch.allclose(d.log_prob(x), expected)


def test_on_slice_moves_the_first_slices_only():
    inner = randomise(DiagonalAffine(torch.zeros(1, 3)).double(), 0.3)
    layer = OnSlice(inner, (4, 3))
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    y, log_det = layer.forward_and_log_det(x)
    assert torch.equal(y[:, 1:], x[:, 1:]) and torch.equal(y[:, :1], inner(x[:, :1]))
    assert torch.equal(log_det, inner.forward_and_log_det(x[:, :1])[1])


def test_an_encoder_runs_once_and_learns():
    calls = []

    class Encoder(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    layers = [randomise(coupling(halves(4), context_dim=3), 0.3) for _ in range(3)]
    flow = WithContext(Chain(layers), Encoder(2, 3), 2)
    calls.clear()
    y, log_det = flow.forward_and_log_det(torch.randn(5, 4), torch.randn(5, 2))
    assert calls == [5]
    (y.sum() + log_det.sum()).backward()
    assert flow.encoder.weight.grad.abs().sum() > 0


MISTAKES = {
    "odd height": (lambda: Squeeze((1, 5, 4)), r"\(1, 5, 4\).*factor 2"),
    "factor": (lambda: Squeeze((1, 4, 4), 0), "factor"),
    "vector": (lambda: Squeeze((4,)), "positions"),
    "reshape": (lambda: Reshape(6, (2, 2)), "4 entries.*6"),
    "no slice": (lambda: OnSlice(DiagonalAffine(torch.zeros(2, 3)), (4, 4)), r"\(2, 3\).*\(4, 4\)"),
    "whole": (lambda: OnSlice(DiagonalAffine(torch.zeros(4)), 4), r"\(4,\)"),
    "shape changes": (lambda: OnSlice(Squeeze((1, 2, 2)), (2, 2, 2)), "keep its shape"),
    "slice dim": (lambda: OnSlice(DiagonalAffine(torch.zeros(2)), 4, dim=0), "dim"),
    "chain": (lambda: Chain([Squeeze((1, 4, 4)), DiagonalAffine(torch.zeros(1, 4, 4))]), r"\(4, 2, 2\).*\(1, 4, 4\)"),
    "encoder": (lambda: WithContext(coupling(halves(4), context_dim=3), nn.Linear(2, 4), 2), r"batch, 3.*\(2, 4\)"),
    "output": (lambda: Squeeze((1, 4, 4)).inv(torch.zeros(1, 4, 4)), r"\(4, 2, 2\).*\(1, 4, 4\)"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()
