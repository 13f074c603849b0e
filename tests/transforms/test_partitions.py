"""Partitions and masks: what stays where, and how a conditioner sees it."""

import pytest
import torch
from torch import nn

from pyro_coupling.transforms import (
    Affine,
    Coupling,
    MaskedPartition,
    Partition,
    Shift,
    SlicePartition,
    alternating,
    checkerboard,
    decorrelating,
    from_indices,
    halves,
)

PARTITIONS = {
    "any": lambda: Partition(from_indices((2, 3), [0, 4])),
    "first-channels": lambda: SlicePartition((4, 2, 3), 1, dim=-3),
    "last-channels": lambda: SlicePartition((4, 2, 3), 1, dim=-3, stays_first=False),
    "features": lambda: SlicePartition((3, 4), dim=-1),
    "last-features": lambda: SlicePartition((3, 4), 3, dim=-1, stays_first=False),
    "rows": lambda: SlicePartition((2, 4, 3), dim=-2),
    "checkerboard": lambda: MaskedPartition(checkerboard((2, 3, 4))),
    "masked-features": lambda: MaskedPartition(alternating((3, 4)), dim=-1),
    "nothing-stays": lambda: MaskedPartition(torch.zeros(2, 2, 2, dtype=torch.bool)),
}
every = pytest.mark.parametrize("partition", [make() for make in PARTITIONS.values()], ids=PARTITIONS)


def flat_event(partition):
    return torch.arange(1.0, partition.event_shape.numel() + 1)


@every
@pytest.mark.parametrize("batch", [(), (7,), (0,), (2, 3)])
def test_join_undoes_split(partition, batch):
    x = torch.randn(*batch, partition.event_shape.numel())
    staying, moving = partition.split(x)
    assert staying.shape == (*batch, partition.num_staying) and moving.shape == (*batch, partition.num_moving)
    assert torch.equal(partition.join(staying, moving), x)


@every
def test_moving_entries_are_their_places_in_the_event(partition):
    x = flat_event(partition)
    assert partition.split(x)[1].tolist() == x[list(partition.moving_entries)].tolist()


@every
def test_the_conditioner_sees_what_stays_in_its_place_and_nothing_else(partition):
    x = flat_event(partition)
    shown = partition.show(partition.split(x)[0])
    assert shown.shape == partition.shown_shape
    assert sorted(shown[shown != 0].tolist()) == sorted(partition.split(x)[0].tolist())
    if shown.shape == partition.event_shape:
        mask = torch.ones(x.numel(), dtype=torch.bool).index_fill(0, torch.tensor(partition.moving_entries), False)
        assert torch.equal(shown.flatten(), x * mask)


@every
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_answers_go_to_the_entries_at_their_place(partition, batch):
    """Parameter k of an entry is channel ``k * channels + c`` of the answer, at the entry's position."""
    num_params, dim = 3, partition.channel_dim
    if len(partition.shown_shape) == 1:
        answer = torch.randn(*batch, *partition.answer_shape(num_params))
        expected = answer.reshape(*batch, num_params, -1)
    else:
        whole = torch.randn(*batch, num_params, *partition.event_shape)
        moving = whole.flatten(len(batch) + 1)[..., list(partition.moving_entries)]
        slices = isinstance(partition, SlicePartition)
        kept = partition.event_shape if not slices else [*partition.shown_shape]
        if slices:
            kept[dim] = partition.event_shape[dim] - partition.shown_shape[dim]
            whole = moving.reshape(*batch, num_params, *kept)
        answer = torch.cat(list(whole.unbind(len(batch))), dim)
        expected = moving
    assert answer.shape == (*batch, *partition.answer_shape(num_params))
    assert torch.equal(partition.read(answer, num_params), expected)


def test_slices_of_an_image_are_its_channels():
    image = torch.randn(4, 2, 3)
    cut = SlicePartition((4, 2, 3), 1, dim=-3)
    assert torch.equal(cut.show(cut.split(image.flatten())[0]), image[:1])
    other = SlicePartition((4, 2, 3), 1, dim=-3, stays_first=False)
    assert torch.equal(other.show(other.split(image.flatten())[0]), image[-1:])


# Masks


def test_a_checkerboard_has_no_neighbours_of_one_kind():
    board = checkerboard((3, 4, 5))
    assert (board[:, 1:] ^ board[:, :-1]).all() and (board[:, :, 1:] ^ board[:, :, :-1]).all()
    assert torch.equal(checkerboard((3, 4, 5), phase=1), ~board)


def test_from_indices_is_true_there_and_nowhere_else():
    assert from_indices((2, 3), torch.tensor([5, 1])).flatten().nonzero().flatten().tolist() == [1, 5]


@pytest.mark.parametrize("pairs", [1, 3, 6])
def test_decorrelating_parts_every_correlated_pair(pairs):
    generator = torch.Generator().manual_seed(pairs)
    common = torch.randn(4000, pairs, generator=generator)
    # correlation 0.8 within a pair; the sampling error of the others' zero is 1 / sqrt(4000)
    noisy = torch.cat([common, -common], -1) + 0.5 * torch.randn(4000, 2 * pairs, generator=generator)
    shuffle = torch.randperm(2 * pairs, generator=generator)
    mask = decorrelating(noisy[:, shuffle])[shuffle.argsort()]
    assert (mask[:pairs] ^ mask[pairs:]).all()


def test_decorrelating_takes_events_of_any_shape_and_constant_columns():
    samples = torch.randn(50, 2, 3)
    samples[:, 0, 0] = 1.0
    mask = decorrelating(samples)
    assert mask.shape == (2, 3) and int(mask.sum()) == 3


# Layers


def conv(partition, num_params=2, context=0):
    size = partition.shown_shape[-3] + context
    return nn.Conv2d(size, partition.answer_shape(num_params)[-3], 3, padding=1)


def test_a_context_vector_reaches_every_pixel():
    cut = SlicePartition((2, 4, 4), dim=-3)
    layer = Coupling(cut, conv(cut, context=3), Affine(), context_dim=3)
    x, context = torch.randn(5, 2, 4, 4), torch.randn(5, 3)
    per_pixel = Coupling(cut, layer.conditioner, Affine(), context_dim=(3, 4, 4))
    y, log_det = layer.forward_and_log_det(x, context)
    again, same = per_pixel.forward_and_log_det(x, context[..., None, None].expand(5, 3, 4, 4))
    assert torch.equal(y, again) and torch.equal(log_det, same)


def test_a_context_for_each_pixel_acts_where_it_is():
    cut = SlicePartition((2, 6, 6), dim=-3)
    layer = Coupling(cut, conv(cut, context=1), Affine(), context_dim=(1, 6, 6))
    x, context = torch.randn(2, 6, 6), torch.zeros(1, 6, 6)
    other = context.clone()
    other[0, 0, 0] = 1.0
    changed = layer.forward_and_log_det(x, context)[0] != layer.forward_and_log_det(x, other)[0]
    assert changed[1, :2, :2].all() and int(changed.sum()) == 4  # the reach of a 3 x 3 kernel in a corner


MISTAKES = {
    "features": (lambda: Coupling(halves(4), nn.Linear(2, 5), Affine()), r"\(batch, 2\) to \(batch, 4\).*\(2, 5\)"),
    "channels": (
        lambda: Coupling(SlicePartition((2, 4, 4), dim=-3), nn.Conv2d(1, 3, 1), Affine()),
        r"\(batch, 1, 4, 4\) to \(batch, 2, 4, 4\).*\(2, 3, 4, 4\)",
    ),
    "size": (
        lambda: Coupling(SlicePartition((2, 4, 4), dim=-3), nn.Conv2d(1, 2, 3), Affine()),
        r"\(batch, 2, 4, 4\).*\(2, 2, 2, 2\)",
    ),
    "context": (
        lambda: Coupling(SlicePartition((2, 4, 4), dim=-3), nn.Conv2d(4, 2, 1), Affine(), (3, 2, 2)),
        r"\(3, 2, 2\).*\(1, 4, 4\)",
    ),
    "everything stays": (lambda: Coupling([True, True], nn.Linear(2, 2), Shift()), "moves nothing"),
    "no mask": (lambda: Partition([1, 0]), "boolean"),
    "no slice": (lambda: SlicePartition((1, 4, 4), dim=-3), "num_staying"),
    "all slices": (lambda: SlicePartition((2, 4, 4), 2, dim=-3), "num_staying"),
    "dim": (lambda: SlicePartition((2, 4), dim=0), "dim must be from -2 to -1"),
    "masked dim": (lambda: MaskedPartition(halves(4), dim=-2), "dim"),
    "vector": (lambda: checkerboard((4,)), "height and width"),
    "index": (lambda: from_indices(4, [4]), "0 to 3"),
    "index twice": (lambda: from_indices(4, [1, 1]), "different"),
    "one sample": (lambda: decorrelating(torch.zeros(1, 4)), "samples"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(mistake, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mistake()


def test_the_trial_of_a_conditioner_leaves_no_trace():
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    network[2].eval()
    state, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    Coupling(halves(4), network, Affine())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in network] == [True, True, False]


@pytest.mark.parametrize(("dtype", "context_dtype"), [(torch.float64, torch.float64), (torch.float32, torch.float64)])
def test_mixed_dtypes_are_named(dtype, context_dtype):
    layer = Coupling(halves(4), nn.Linear(3, 4), Affine(), context_dim=1)
    with pytest.raises(ValueError, match=r"Coupling: .*dtype.*float64.*float32"):
        layer.forward_and_log_det(torch.zeros(4, dtype=dtype), torch.zeros(1, dtype=context_dtype))


def test_mixed_devices_are_named():
    layer = Coupling(halves(4), nn.Linear(2, 4), Affine()).to("meta")
    with pytest.raises(ValueError, match=r"Coupling: .*device.*cpu.*meta"):
        layer.forward_and_log_det(torch.zeros(4))


def test_an_error_of_the_network_itself_is_passed_on():
    class Broken(nn.Linear):
        def forward(self, x):
            if x.dim() == 1:
                raise RuntimeError("broken")
            return super().forward(x)

    layer = Coupling(halves(4), Broken(2, 4), Affine())
    with pytest.raises(RuntimeError, match="broken"):
        layer.forward_and_log_det(torch.zeros(4))
