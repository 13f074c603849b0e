"""Each network against the formula of its paper, and what it may and may not see."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_coupling.nn import (
    MLP,
    ConvNet,
    DilatedConv1d,
    GatedResidualConv,
    LearnedPositions,
    MessagePassing,
    OnGraph,
    PeriodicFeatures,
    ResidualMLP,
    SetAttention,
    SinusoidalPositions,
)

float64 = torch.float64


def randomised(network):
    """The network in float64 with all parameters drawn anew."""
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return network


def weights(network):
    """Weights and biases in turn, as pairs."""
    values = list(network.parameters())
    return list(zip(values[::2], values[1::2], strict=True))


def close(found, expected, tolerance=1e-12):
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_mlp_without_hidden_layers_is_linear():
    network, x = randomised(MLP(3, 4, ())), torch.randn(7, 3, dtype=float64)
    ((weight, bias),) = weights(network)
    assert close(network(x), x @ weight.T + bias)


def test_residual_mlp_is_the_pre_activation_block():
    # He et al. 2016, equation 6: x + W2 f(W1 f(x)), between a first and a last layer
    network, x = randomised(ResidualMLP(3, 4, 8, num_blocks=1)), torch.randn(7, 3, dtype=float64)
    first, one, two, last = weights(network)
    hidden = F.linear(x, *first)
    hidden = hidden + F.linear(F.silu(F.linear(F.silu(hidden), *one)), *two)
    assert close(network(x), F.linear(F.silu(hidden), *last))


def test_layer_norm_stands_before_every_activation():
    network = ResidualMLP(3, 4, 8, num_blocks=2, layer_norm=True)
    modules = [module for module in network.modules() if not list(module.children())]
    before = [modules[i - 1] for i, module in enumerate(modules) if isinstance(module, nn.SiLU)]
    assert len(before) == 5 and all(isinstance(module, nn.LayerNorm) for module in before)


def test_conv_net_is_three_convolutions():
    # Kingma and Dhariwal 2018, section 3.3: 3x3, 1x1, 3x3, rectified between
    network, x = randomised(ConvNet(2, 4, 8)), torch.randn(7, 2, 5, 6, dtype=float64)
    first, middle, last = weights(network)
    assert [tuple(weight.shape[2:]) for weight, _ in (first, middle, last)] == [(3, 3), (1, 1), (3, 3)]
    hidden = F.conv2d(F.conv2d(x, *first, padding=1).relu(), *middle).relu()
    assert close(network(x), F.conv2d(hidden, *last, padding=1))


def test_gated_residual_conv_gates_by_a_sigmoid():
    # Salimans et al. 2017: x + a sigmoid(b), a and b the halves of the second convolution's channels
    network, x = randomised(GatedResidualConv(2, 4, 8, num_blocks=1)), torch.randn(7, 2, 5, 6, dtype=float64)
    first, one, two, last = weights(network)
    hidden = F.conv2d(x, *first, padding=1)
    a, b = F.conv2d(F.silu(F.conv2d(F.silu(hidden), *one, padding=1)), *two, padding=1).split(8, 1)
    hidden = hidden + a * b.sigmoid()
    assert close(network(x), F.conv2d(F.silu(hidden), *last, padding=1))


@pytest.mark.parametrize("network", [ConvNet(1, 1, 2), GatedResidualConv(1, 1, 2, 1)], ids=["plain", "gated"])
def test_convolutions_move_with_the_image(network):
    network, image = randomised(network), torch.zeros(1, 16, 16, dtype=float64)
    image[:, 6:9, 6:9] = torch.randn(1, 3, 3, dtype=float64)
    # a shift commutes away from the border, which the padding changes
    inner = (..., slice(6, 11), slice(6, 11))
    shifted = network(image.roll((1, 1), (-2, -1))).roll((-1, -1), (-2, -1))
    assert close(shifted[inner], network(image)[inner])


def test_dilated_stack_is_wavenets():
    # van den Oord et al. 2016, equation 2 and figure 4, with a convolution of its own for each skip connection
    network, x = randomised(DilatedConv1d(2, 4, 8, num_layers=2)), torch.randn(7, 2, 11, dtype=float64)
    first, one, two, residual, skip, last = weights(network)
    hidden = F.conv1d(x, *first)
    a, b = F.conv1d(hidden, *one, padding=1).split(8, 1)
    out_one = a.tanh() * b.sigmoid()
    hidden = hidden + F.conv1d(out_one, *residual)
    a, b = F.conv1d(hidden, *two, padding=2, dilation=2).split(8, 1)
    out_two = a.tanh() * b.sigmoid()
    skips = F.conv1d(out_one, skip[0][:, :8]) + F.conv1d(out_two, skip[0][:, 8:], skip[1])
    assert close(network(x), F.conv1d(F.silu(skips), *last))


@pytest.mark.parametrize(("num_layers", "kernel_size", "field"), [(1, 3, 3), (3, 3, 15), (4, 3, 31), (2, 5, 13)])
def test_dilated_stack_sees_exactly_its_receptive_field(num_layers, kernel_size, field):
    network = randomised(DilatedConv1d(1, 1, 4, num_layers, kernel_size))
    time = 2 * field + 1
    x = torch.randn(1, time, dtype=float64)
    jacobian = torch.func.jacrev(network)(x)[0, :, 0]
    distance = (torch.arange(time)[:, None] - torch.arange(time)).abs()
    assert network.receptive_field == field
    assert torch.equal(jacobian != 0, distance <= field // 2)


def sequence_network(positions):
    return randomised(SetAttention(2, 3, 8, 2, positions=positions))


def test_attention_without_positions_is_permutation_equivariant():
    network, x, order = sequence_network(None), torch.randn(7, 5, 2, dtype=float64), torch.randperm(5)
    assert close(network(x[:, order]), network(x)[:, order])


@pytest.mark.parametrize("positions", [SinusoidalPositions(), LearnedPositions(5, 8)], ids=["sinusoidal", "learned"])
def test_attention_with_positions_tells_the_order(positions):
    network, x, order = sequence_network(positions), torch.randn(7, 5, 2, dtype=float64), torch.tensor([1, 0, 2, 3, 4])
    assert (network(x[:, order]) - network(x)[:, order]).abs().max() > 1e-3


def test_attention_lets_every_item_see_all_items():
    jacobian = torch.func.jacrev(sequence_network(None))(torch.randn(5, 2, dtype=float64))
    assert (jacobian.abs().amax((1, 3)) > 0).all()


def test_attention_takes_any_number_of_items():
    network = sequence_network(SinusoidalPositions())
    assert [network(torch.randn(n, 2, dtype=float64)).shape for n in (1, 5, 9)] == [(1, 3), (5, 3), (9, 3)]


def test_attention_layers_start_unlike_each_other():
    first, second = SetAttention(2, 3, 8, 2).layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@pytest.mark.parametrize("features", [6, 7])
def test_sinusoidal_positions_are_the_papers(features):
    # Vaswani et al. 2017, section 3.5, sines and cosines each on their own side
    found = SinusoidalPositions(100.0)(torch.zeros(4, features, dtype=float64))
    half = math.ceil(features / 2)
    for position in range(4):
        for i in range(features):
            angle = position / 100.0 ** ((i % half) / half)
            expected = math.sin(angle) if i < half else math.cos(angle)
            assert abs(found[position, i].item() - expected) < 1e-12


def directed_graph():
    """Seven nodes, the last without edges, one edge twice and one from a node to itself."""
    return torch.tensor([[0, 1, 2, 2, 3, 4, 5, 5, 1], [1, 2, 0, 0, 3, 1, 4, 2, 4]])


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_message_passing_is_its_formula_edge_by_edge(aggregation):
    # Gilmer et al. 2017, equations 1 and 2
    edges, x = directed_graph(), torch.randn(7, 2, dtype=float64)
    network = randomised(MessagePassing(2, 3, edges, 4, num_rounds=1, num_nodes=7, aggregation=aggregation))
    first, ends, one, two, last = weights(network)
    state = F.linear(x, *first)
    new_state = []
    for node in range(7):
        incoming = [
            F.silu(F.linear(state[start], *ends)[:4] + F.linear(state[node], *ends)[4:])
            for start, end in edges.T.tolist()
            if end == node
        ]
        total = sum(incoming, torch.zeros(4, dtype=float64))
        if aggregation == "mean" and incoming:
            total = total / len(incoming)
        new_state.append(state[node] + F.linear(F.silu(F.linear(torch.cat([state[node], total]), *one)), *two))
    assert close(network(x), F.linear(F.silu(torch.stack(new_state)), *last))


def test_message_passing_is_equivariant_to_relabelling_with_the_graph():
    edges, x = directed_graph(), torch.randn(3, 7, 2, dtype=float64)
    network = randomised(MessagePassing(2, 3, edges, 4, num_nodes=7))
    label = torch.randperm(7)  # node i gets the name label[i]
    relabelled = MessagePassing(2, 3, label[edges], 4, num_nodes=7).double()
    relabelled.load_state_dict(network.state_dict() | {"edges": label[edges]})
    renamed = torch.empty_like(x)
    renamed[:, label] = x
    assert close(relabelled(renamed)[:, label], network(x))


def test_message_passing_hears_of_nodes_as_far_away_as_there_are_rounds():
    path = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    network = randomised(MessagePassing(1, 1, path, 8, num_rounds=2))
    jacobian = torch.func.jacrev(network)(torch.randn(6, 1, dtype=float64))[:, 0, :, 0]
    hops = torch.arange(6)[:, None] - torch.arange(6)
    assert torch.equal(jacobian != 0, (hops >= 0) & (hops <= 2))


def test_an_adjacency_is_its_list_of_edges():
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 3]])
    adjacency = torch.zeros(4, 4, dtype=torch.bool)
    adjacency[edges[0], edges[1]] = True
    network = randomised(MessagePassing(2, 3, edges, 4))
    same = MessagePassing(2, 3, adjacency, 4).double()
    same.load_state_dict({key: value for key, value in network.state_dict().items() if key != "edges"}, strict=False)
    x = torch.randn(7, 4, 2, dtype=float64)
    assert close(same(x), network(x))


class Recorded(nn.Module):
    """Keeps what it was called with, and returns the input twice over."""

    def forward(self, x, edge_index):
        self.seen = x, edge_index
        return torch.cat([x, x], -1)


def test_on_graph_hands_over_one_graph_of_unconnected_copies():
    module, edges = Recorded(), torch.tensor([[0, 2], [1, 0]])
    x = torch.randn(2, 1, 4, 5)
    y = OnGraph(module, edges, num_nodes=4)(x)
    flat, edge_index = module.seen
    assert torch.equal(flat, x.reshape(8, 5))
    assert edge_index.tolist() == [[0, 2, 4, 6], [1, 0, 5, 4]]
    assert torch.equal(y, torch.cat([x, x], -1))


def test_periodic_features_are_cosines_and_sines_behind_the_others():
    x = torch.randn(7, 4, dtype=float64)
    features = PeriodicFeatures(4, bound=2.0, which=[3, 1])
    angles = x[:, [1, 3]] * math.pi / 2
    assert features.out_features == 6
    assert close(features(x), torch.cat([x[:, [0, 2]], angles.cos(), angles.sin()], -1))


def test_periodic_features_do_not_see_the_seam():
    features, x = PeriodicFeatures(3, bound=2.0), torch.randn(7, 3, dtype=float64)
    assert features.out_features == 6
    assert close(features(x + 4.0), features(x))


@pytest.mark.parametrize("which", [[True, False, True], torch.tensor([0, 2]), (2, 0)], ids=["mask", "tensor", "tuple"])
def test_periodic_features_take_masks_and_indices(which):
    x = torch.randn(7, 3)
    assert torch.equal(PeriodicFeatures(3, which=which)(x), PeriodicFeatures(3, which=[0, 2])(x))


def test_periodic_features_may_be_none():
    features, x = PeriodicFeatures(3, which=[]), torch.randn(7, 3)
    assert torch.equal(features(x), x) and features.out_features == 3
