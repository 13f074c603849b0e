"""What every conditioner promises: its shapes, zero at the start, a batch that never mixes, torch's own ways of use."""

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from pyro_coupling.nn import (
    MLP,
    Constant,
    ConvNet,
    DilatedConv1d,
    GatedResidualConv,
    LearnedPositions,
    MessagePassing,
    OnGraph,
    PeriodicFeatures,
    ResidualMLP,
    SeparateMLPs,
    SetAttention,
    SinusoidalPositions,
    mlp,
)
from pyro_coupling.nn.parts import Linear, zeroed
from pyro_coupling.transforms import Affine, Coupling

EDGES = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 1]])
ADJACENCY = torch.tensor([[False, True, False], [True, False, True], [False, False, True]])
group_norm = partial(nn.GroupNorm, 2)


class Neighbours(nn.Module):
    """A home-made layer of torch_geometric's calling convention, with dropout."""

    def __init__(self, in_features, out_features, dropout=0.0):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, edge_index):
        start, end = edge_index.unbind()
        hidden = self.linear(x)
        return self.dropout(hidden.index_add(0, end, hidden.index_select(0, start)).tanh())


def on_graph(dropout=0.0):
    return nn.Sequential(OnGraph(Neighbours(2, 8, dropout), EDGES), zeroed(nn.Linear(8, 6)))


def periodic(dropout=0.0):
    features = PeriodicFeatures(3, which=[0, 2])
    return nn.Sequential(features, MLP(features.out_features, 4, (8,), dropout=dropout))


def attention(**kwargs):
    return partial(SetAttention, 2, 6, hidden_dim=8, num_heads=2, num_layers=1, **kwargs)


#: name -> what builds it, the shape of its input, the shape of its output
CASES = {
    "MLP": (partial(MLP, 3, 4, (8, 8)), (3,), (4,)),
    "MLP-relu": (partial(MLP, 3, 4, (8, 8), nn.ReLU), (3,), (4,)),
    "SeparateMLPs": (partial(SeparateMLPs, 3, 2, 4, (8,)), (3,), (8,)),
    "ResidualMLP": (partial(ResidualMLP, 3, 4, 8), (3,), (4,)),
    "ResidualMLP-layer-norm": (partial(ResidualMLP, 3, 4, 8, layer_norm=True), (3,), (4,)),
    "PeriodicFeatures": (periodic, (3,), (4,)),
    "ConvNet": (partial(ConvNet, 2, 6, 8), (2, 4, 5), (6, 4, 5)),
    "ConvNet-group-norm": (partial(ConvNet, 2, 6, 8, 5, normalization=group_norm), (2, 4, 5), (6, 4, 5)),
    "GatedResidualConv": (partial(GatedResidualConv, 2, 6, 8), (2, 4, 5), (6, 4, 5)),
    "GatedResidualConv-group-norm": (
        partial(GatedResidualConv, 2, 6, 8, 1, normalization=group_norm),
        (2, 4, 5),
        (6, 4, 5),
    ),
    "DilatedConv1d": (partial(DilatedConv1d, 2, 6, 8, 3), (2, 9), (6, 9)),
    "DilatedConv1d-one-layer": (partial(DilatedConv1d, 2, 6, 8, 1, 5), (2, 9), (6, 9)),
    "SetAttention": (attention(), (5, 2), (5, 6)),
    "SetAttention-relu": (attention(activation=nn.ReLU), (5, 2), (5, 6)),
    "SetAttention-one-item": (attention(), (1, 2), (1, 6)),
    "SetAttention-sinusoidal": (attention(positions=SinusoidalPositions()), (5, 2), (5, 6)),
    "SetAttention-learned": (lambda **kwargs: attention(positions=LearnedPositions(5, 8))(**kwargs), (5, 2), (5, 6)),
    "MessagePassing": (partial(MessagePassing, 2, 6, EDGES, 8), (4, 2), (4, 6)),
    "MessagePassing-sum": (partial(MessagePassing, 2, 6, EDGES, 8, aggregation="sum"), (4, 2), (4, 6)),
    "MessagePassing-adjacency": (partial(MessagePassing, 2, 6, ADJACENCY, 8), (3, 2), (3, 6)),
    "MessagePassing-no-edges": (partial(MessagePassing, 2, 6, EDGES[:, :0], 8, num_nodes=2), (2, 2), (2, 6)),
    "OnGraph": (on_graph, (4, 2), (4, 6)),
}
cases = pytest.mark.parametrize("name", CASES)


def make(name, **kwargs):
    """The named network in float64 with all its parameters drawn anew."""
    torch.manual_seed(1)
    network = CASES[name][0](**kwargs).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return network


def draw(name, *batch, dtype=torch.float64):
    return torch.randn(batch + CASES[name][1], dtype=dtype)


def close(found, expected, tolerance=1e-12):
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


@cases
@pytest.mark.parametrize("batch", [(), (7,), (7, 3), (0,)], ids=str)
def test_any_batch_shape_goes_in_and_comes_out(name, batch):
    assert make(name)(draw(name, *batch)).shape == batch + CASES[name][2]


@cases
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_output_is_zero_at_the_start(name, dropout):
    network, _, out_shape = CASES[name]
    x = draw(name, 7, dtype=torch.get_default_dtype())
    assert torch.equal(network(dropout=dropout)(x), torch.zeros((7,) + out_shape))


@cases
def test_entries_of_a_batch_do_not_mix(name):
    network, x = make(name), draw(name, 3, 2)
    one_by_one = torch.stack([torch.stack([network(entry) for entry in row]) for row in x])
    assert one_by_one.std() > 0.01
    assert close(network(x), one_by_one)


@cases
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_vmap_gives_the_batch_without_falling_back_to_a_loop(name, grad):
    network, x = make(name).eval(), draw(name, 3, 2)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(torch.func.vmap(network)(x), network(x))
        assert close(torch.func.vmap(torch.func.vmap(network))(x), network(x))


@cases
def test_jacrev_under_vmap_is_the_jacobian(name):
    network, x = make(name), draw(name, 2)
    found = torch.func.vmap(torch.func.jacrev(network))(x)
    expected = torch.stack([torch.autograd.functional.jacobian(network, entry) for entry in x])
    assert close(found, expected)


@cases
def test_functional_call_takes_the_parameters_it_is_given(name):
    network, x = make(name), draw(name, 3)
    others = {key: parameter + 0.1 for key, parameter in network.named_parameters()}
    found = torch.func.functional_call(network, others, x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    assert close(found, network(x))


@cases
def test_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    network = make(name)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for batch in ((), (2, 3)):
        x = draw(name, *batch)
        assert close(compiled(x), network(x))


@cases
def test_copies_compute_the_same(name):
    network, x = make(name), draw(name, 3)
    saved = io.BytesIO()
    torch.save(network.state_dict(), saved)
    saved.seek(0)
    fresh = CASES[name][0]().double()
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), fresh):
        assert torch.equal(twin(x), network(x))


@cases
def test_float32_and_float64_agree(name):
    network, x = make(name), draw(name, 7)
    exact = network(x)
    rounded = network.float()(x.float())
    assert (exact.dtype, rounded.dtype) == (torch.float64, torch.float32)
    # some ten layers, each with a rounding of 1e-7 for every addition
    assert (rounded - exact).abs().max() < 1e-5 * exact.abs().max()


@cases
def test_default_dtype_is_respected(name):
    torch.set_default_dtype(torch.float64)
    assert CASES[name][0]()(draw(name, 2)).dtype == torch.float64


@pytest.mark.parametrize("name", [name for name in CASES if "no-edges" not in name])
def test_gradient_reaches_every_parameter(name):
    network = make(name)
    network(draw(name, 7)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@cases
def test_second_derivatives_are_those_of_autograd(name):
    network, x = make(name), draw(name)
    assert torch.autograd.gradgradcheck(network, (x.requires_grad_(),))


@cases
def test_far_out_inputs_and_their_gradients_are_finite(name):
    network = make(name).float()
    x = (1e6 * draw(name, 7, dtype=torch.float32)).requires_grad_()
    y = network(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@cases
def test_bfloat16_autocast_is_finite_and_near(name):
    network, x = make(name).float(), draw(name, 7, dtype=torch.float32)
    exact = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(x)
    # bfloat16 has eight bits, and a network some ten layers
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()


@cases
def test_dropout_acts_in_training_and_not_in_eval(name):
    plain, dropping = make(name), make(name, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    x = draw(name, 7)
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(dropping.eval()(x), plain(x))


def test_dropout_makes_forward_and_inverse_of_a_layer_differ_in_training_only():
    layer = Coupling([True, False], MLP(1, 2, (64,), dropout=0.5), Affine())
    nn.init.normal_(layer.conditioner[-1].weight)
    x = torch.randn(7, 2)
    for training in (True, False):
        layer.train(training)
        y, _ = layer.forward_and_log_det(x)
        back, _ = layer.inverse_and_log_det(y)
        assert training is not close(back, x, 1e-5)


WRONG = {
    "MLP-in": (lambda: MLP(0, 4), "in_features must be a positive integer, got 0"),
    "MLP-hidden": (lambda: MLP(3, 4, (8, 0)), r"hidden_dims must hold positive integers, got \(8, 0\)"),
    "MLP-dropout": (lambda: MLP(3, 4, dropout=1.0), "dropout must be at least 0 and less than 1, got 1.0"),
    "mlp-hidden": (lambda: mlp(0, 2, 2, (0,)), "hidden_dims must hold positive integers"),
    "mlp-dropout": (lambda: mlp(3, 2, 2, separate=True, dropout=-0.1), "dropout must be .* got -0.1"),
    "ResidualMLP-hidden": (lambda: ResidualMLP(3, 4, 0), "hidden_dim must be a positive integer, got 0"),
    "ResidualMLP-size": (lambda: ResidualMLP(3, 4, 8.0), "hidden_dim must be a positive integer, got 8.0"),
    "ResidualMLP-blocks": (lambda: ResidualMLP(3, 4, num_blocks=-1), "num_blocks must be a positive integer, got -1"),
    "ConvNet-hidden": (lambda: ConvNet(1, 2, 0), "hidden_channels must be a positive integer, got 0"),
    "ConvNet-kernel": (lambda: ConvNet(1, 2, kernel_size=2), "kernel_size must be odd, .* got 2"),
    "GatedResidualConv-in": (lambda: GatedResidualConv(0, 2), "in_channels must be a positive integer, got 0"),
    "GatedResidualConv-kernel": (lambda: GatedResidualConv(1, 2, kernel_size=4), "kernel_size must be odd, .* got 4"),
    "GatedResidualConv-dropout": (lambda: GatedResidualConv(1, 2, dropout=float("nan")), "dropout must be .* got nan"),
    "DilatedConv1d-layers": (lambda: DilatedConv1d(1, 2, num_layers=0), "num_layers must be a positive integer, got 0"),
    "DilatedConv1d-kernel": (lambda: DilatedConv1d(1, 2, kernel_size=0), "kernel_size must be a positive integer"),
    "SetAttention-heads": (lambda: SetAttention(2, 4, 8, 3), "num_heads must divide hidden_dim = 8, got 3"),
    "SetAttention-no-heads": (lambda: SetAttention(2, 4, 8, 0), "num_heads must be a positive integer, got 0"),
    "SinusoidalPositions": (lambda: SinusoidalPositions(1.0), "longest must be a finite number above 1, got 1.0"),
    "LearnedPositions": (lambda: LearnedPositions(0, 8), "num_items must be a positive integer, got 0"),
    "MessagePassing-high": (
        lambda: MessagePassing(2, 4, EDGES, num_nodes=3),
        "edges must name nodes from 0 to 2, found 0 to 3",
    ),
    "MessagePassing-low": (lambda: MessagePassing(2, 4, EDGES - 1), "edges must name nodes from 0 to 2, found -1 to 2"),
    "MessagePassing-shape": (
        lambda: MessagePassing(2, 4, EDGES.T),
        r"edges as integers must have shape \(2, num_edges\), found \(5, 2\)",
    ),
    "MessagePassing-adjacency": (
        lambda: MessagePassing(2, 4, ADJACENCY[:2]),
        r"edges as booleans must have shape \(nodes, nodes\), found \(2, 3\)",
    ),
    "MessagePassing-nodes": (
        lambda: MessagePassing(2, 4, ADJACENCY, num_nodes=4),
        r"edges as booleans must have shape \(4, 4\), found \(3, 3\)",
    ),
    "MessagePassing-none": (lambda: MessagePassing(2, 4, EDGES[:, :0]), "num_nodes must be a positive integer, got 0"),
    "MessagePassing-rounds": (
        lambda: MessagePassing(2, 4, EDGES, num_rounds=0),
        "num_rounds must be a positive integer, got 0",
    ),
    "MessagePassing-max": (
        lambda: MessagePassing(2, 4, EDGES, aggregation="max"),
        "aggregation must be 'mean' or 'sum', got 'max'",
    ),
    "PeriodicFeatures-bound": (lambda: PeriodicFeatures(3, 0.0), "bound must be positive and finite, got 0.0"),
    "PeriodicFeatures-which": (
        lambda: PeriodicFeatures(3, which=[3]),
        r"which must name features from 0 to 2, each at most once, got \[3\]",
    ),
    "PeriodicFeatures-twice": (lambda: PeriodicFeatures(3, which=[1, 1]), "which must name features .* at most once"),
    "PeriodicFeatures-mask": (
        lambda: PeriodicFeatures(3, which=[True, False]),
        r"which as booleans must have shape \(3,\), found \(2,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_by_the_arguments_name(name):
    build, message = WRONG[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MessagePassing(2, 4, EDGES.float()), "edges must be integers .* found torch.float32"),
        (lambda: OnGraph(torch.tanh, EDGES), "OnGraph: module must be a torch.nn.Module, found builtin_function"),
    ],
    ids=["edges", "module"],
)
def test_wrong_types_are_refused(build, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        build()


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (ConvNet(1, 2, 4), (4, 5), r"the input must have at least 3 dimensions, but has shape \(4, 5\)"),
        (MessagePassing(2, 4, EDGES, 4), (5, 2), r"MessagePassing: .* 4 nodes, but has shape \(5, 2\)"),
        (OnGraph(Neighbours(2, 4), EDGES), (2,), r"OnGraph: .* 4 nodes, but has shape \(2,\)"),
        (LearnedPositions(3, 2), (1, 2), r"LearnedPositions: .* \(3, 2\), but has shape \(1, 2\)"),
        (PeriodicFeatures(3), (7, 2), r"PeriodicFeatures: .* 3 features, but has shape \(7, 2\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inputs_of_wrong_shape_are_refused(network, shape, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        network(torch.zeros(shape))


def test_learned_numbers_move_at_their_rate():
    slow, fast = Constant(3), Constant(3, rate=8.0)
    for numbers in (slow, fast):
        assert torch.equal(numbers(torch.empty(5, 0)), torch.zeros(3))
        with torch.no_grad():
            numbers.value += 0.25
    assert torch.equal(slow(torch.empty(5, 0)), torch.full((3,), 0.25))
    assert torch.equal(fast(torch.empty(5, 0)), torch.full((3,), 2.0))


@pytest.mark.parametrize("in_features", [1, 3, 15, 16])
@pytest.mark.parametrize("batch_shape", [(), (7,), (2, 7)])
def test_linear_is_torchs_own(in_features, batch_shape):
    torch.manual_seed(0)
    theirs = nn.Linear(in_features, 5).double()
    ours = Linear(in_features, 5).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(*batch_shape, in_features, dtype=torch.float64, requires_grad=True)

    def derivatives(layer):
        y = layer(x).tanh().sum()
        first = torch.autograd.grad(y, [x, *layer.parameters()], create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, *layer.parameters()])]

    for found, expected in zip(derivatives(ours), derivatives(theirs), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_weights_of_few_inputs_can_be_saved_by_safetensors_itself():
    layer = Linear(3, 5)
    layer(torch.ones(2, 3)).sum().backward()
    assert torch.equal(load(save(layer.state_dict()))["weight"], layer.weight)


def test_relu_acts_in_place_and_the_module_that_was_given_does_not():
    torch.manual_seed(0)
    given = nn.ReLU()
    network = MLP(3, 4, (8, 8), activation=lambda: given)
    assert [part.inplace for part in network if isinstance(part, nn.ReLU)] == [True, True]
    assert not given.inplace
    nn.init.normal_(network[-1].weight)
    ordinary = nn.Sequential(network[0], given, network[2], given, network[4])
    x = torch.randn(7, 3, requires_grad=True)

    def outcome(network):
        y = network(x)
        return [y, *torch.autograd.grad(y.cos().sum(), [x, *network.parameters()])]

    for found, expected in zip(outcome(network), outcome(ordinary), strict=True):
        assert torch.equal(found, expected)
