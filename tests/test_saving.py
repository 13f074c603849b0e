"""A saved flow or guide comes back as it was; a file that is not as it should be is refused in a sentence."""

import copy
import json
import math
import os
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from harness import CASES, draw, make, randomise
from models import Y, groups, location_scale, normal_mean, small_flow, two_normals
from pyro.distributions.transforms import iterated
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

import pyro_coupling
from pyro_coupling import AutoCouplingFlow, FlowVI, flows, load, register, save
from pyro_coupling.codec import encode
from pyro_coupling.files import read_safetensors, write_safetensors
from pyro_coupling.nn import mlp
from pyro_coupling.saving import _digest
from pyro_coupling.targets import init_to_center
from pyro_coupling.transforms import (
    Affine,
    Bijection,
    Chain,
    Coupling,
    DiagonalAffine,
    Elementwise,
    Permutation,
    Shift,
    affine_coupling,
    conditional_affine_coupling,
    halves,
)

FIXTURES = Path(__file__).parent / "fixtures"


TANH = nn.Tanh()


@register(name="tests.Net")
class Net(nn.Module):
    """A conditioner of a user."""

    def __init__(self, inputs, outputs, activation=TANH, width=4):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(inputs, width), activation, nn.Linear(width, outputs))
        self.factor = 1.0

    def forward(self, x):
        return self.factor * self.inner(x)


@register(name="tests.Cubic")
@dataclass(frozen=True)
class Cubic(Elementwise):
    """An elementwise map of a user; its inverse is not needed here."""

    strength: float = 1.0

    @property
    def num_params(self):
        return 1

    def forward_and_log_det(self, x, params):
        slope = params.squeeze(-2).exp()
        y = slope * x + self.strength * x**3
        return y, (slope + 3 * self.strength * x**2).log()

    def inverse_and_log_det(self, y, params):
        raise NotImplementedError


@register(name="tests.Doubled")
class Doubled(Bijection):
    """A bijection of a user."""

    def __init__(self, size, *, factor):
        super().__init__((size,))
        self.factor = factor

    def forward_and_log_det(self, x, context=None):
        return self.factor * x, x.new_full(x.shape[:-1], x.size(-1) * math.log(self.factor))

    def inverse_and_log_det(self, y, context=None):
        return y / self.factor, y.new_full(y.shape[:-1], -y.size(-1) * math.log(self.factor))


class Unregistered(Doubled):
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"


def there_and_back(flow, path):
    save(flow, path)
    return load(path)


def same(flow, loaded, dtype=torch.float64):
    """Whether both map the same numbers to the same, to the bit."""
    x, context = draw(flow, (5,), dtype)
    pairs = zip(flow.forward_and_log_det(x, context), loaded.forward_and_log_det(x, context), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def small(dim=2, elementwise=None):
    elementwise = elementwise or Affine()
    return Coupling(halves(dim), Net(dim // 2, elementwise.num_params * (dim - dim // 2)), elementwise)


# What comes back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_every_flow_comes_back(name, dtype, path):
    flow = make(name, dtype)
    loaded = there_and_back(flow, path)
    assert type(loaded) is type(flow) and repr(loaded) == repr(flow)
    assert {k: v.dtype for k, v in loaded.state_dict().items()} == {k: v.dtype for k, v in flow.state_dict().items()}
    assert same(flow, loaded, dtype)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_default_dtype_does_not_matter(default, path):
    flow = make("neural_spline")
    save(flow, path)
    torch.set_default_dtype(default)
    assert same(flow, load(path))


def test_mixed_dtypes_come_back(path):
    loaded = there_and_back(Chain([small().double(), DiagonalAffine(torch.zeros(2))]), path)
    assert loaded[0].conditioner.inner[0].weight.dtype == torch.float64
    assert loaded[1].loc.dtype == loaded[1].shift.dtype == torch.float32


def test_numbers_that_are_no_numbers_come_back(path):
    flow = DiagonalAffine(torch.zeros(3))
    flow.shift.data = torch.tensor([math.nan, math.inf, -math.inf])
    assert there_and_back(flow, path).shift.tolist()[1:] == [math.inf, -math.inf]


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_comes_back(training, path):
    loaded = there_and_back(make("chain").train(training), path)
    assert all(module.training == training for module in loaded.modules())


def test_frozen_parameters_stay_frozen(path):
    flow = make("chain")
    flow[0].requires_grad_(False)
    loaded = there_and_back(flow, path)
    frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"parts.0.{name}" for name, _ in flow[0].named_parameters()}


ACTIVATIONS = [nn.ReLU, partial(nn.LeakyReLU, 0.3), partial(nn.Softplus, beta=2.0)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations_given_as_classes(activation, path):
    flow = randomise(Coupling(halves(2), mlp(1, 2, 1, (4,), activation), Affine()), 1.0).double()
    assert same(flow, there_and_back(flow, path))


CONDITIONERS = [
    lambda: nn.Linear(1, 2, bias=False),
    lambda: nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4), nn.GELU("tanh"), nn.Dropout(0.2), nn.Linear(4, 2)),
    lambda: nn.Sequential(OrderedDict(first=nn.Linear(1, 4), second=nn.Linear(4, 2))),
    lambda: nn.Sequential(nn.Unflatten(-1, (1, 1)), nn.Conv1d(1, 2, 1), nn.Flatten(-2)),
    lambda: Net(1, 2),
    lambda: Net(1, 2, nn.SELU(), width=3),
    lambda: Net(1, activation=nn.Sequential(nn.Tanh(), nn.Identity()), outputs=2),
]


@pytest.mark.parametrize("make_conditioner", CONDITIONERS)
def test_conditioners_of_torch_and_of_ones_own(make_conditioner, path):
    flow = Coupling(halves(2), make_conditioner(), Affine()).double().eval()
    loaded = there_and_back(flow, path)
    assert repr(loaded) == repr(flow) and same(flow, loaded)


def test_an_elementwise_map_and_a_bijection_of_ones_own(path):
    flow = Chain([small(2, Cubic(0.5)), Doubled(2, factor=3.0)]).double()
    loaded = there_and_back(flow, path)
    assert loaded[0].elementwise == Cubic(0.5) and loaded[1].factor == 3.0 and same(flow, loaded)


@pytest.mark.parametrize("scale", [math.inf, 2.0])
def test_infinite_settings_come_back(scale, path):
    assert there_and_back(small(2, Cubic(scale)), path).elementwise == Cubic(scale)


def test_a_shared_conditioner_stays_shared(path):
    net = Net(1, 2)
    flow = Chain([Coupling(halves(2), net, Affine()), Permutation([1, 0]), Coupling(halves(2), net, Affine())]).double()
    loaded = there_and_back(flow, path)
    assert loaded[0].conditioner is loaded[2].conditioner and same(flow, loaded)
    assert len(list(loaded.parameters())) == len(list(flow.parameters()))


def test_an_inverse_stays_the_inverse_of_the_same(path):
    layer = small().double()
    flow = Chain([layer, Permutation([1, 0]), layer.inv])
    loaded = there_and_back(flow, path)
    assert loaded[2].inv is loaded[0] and same(flow, loaded)


def test_a_conditioned_flow_has_its_context(path):
    context = torch.randn(2, dtype=torch.float64, requires_grad=True)
    flow = randomise(conditional_affine_coupling(4, 2, (3,)), 1.0).double().condition(context * 2)
    loaded = there_and_back(flow, path)
    assert torch.equal(loaded.context, context * 2) and same(flow, loaded)


def test_how_a_chain_saves_memory_comes_back_also_where_it_was_changed(path):
    flow = Chain([small(), Permutation([1, 0])], reversible=True)
    assert there_and_back(flow, path).reversible
    flow.reversible, flow.checkpoint = False, True
    loaded = there_and_back(flow, path)
    assert loaded.checkpoint and not loaded.reversible


def test_pyros_composition_comes_back(path):
    flow = iterated(3, affine_coupling, 4, (3,))
    x = torch.randn(5, 4)
    assert torch.equal(there_and_back(flow, path)(x), flow(x))


def test_a_conditioner_alone_comes_back(path):
    net = Net(2, 3)
    x = torch.randn(5, 2)
    assert torch.equal(there_and_back(net, path)(x), net(x))


def test_copies_and_parts_of_a_loaded_flow_can_be_saved(path):
    flow = make("chain")
    once = there_and_back(flow, path)
    assert same(flow, there_and_back(copy.deepcopy(once), path))
    assert same(flow[0], there_and_back(once[0], path))


def test_a_trained_flow_comes_back(path):
    flow = small().double()
    optimizer = torch.optim.Adam(flow.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        flow.forward_and_log_det(torch.randn(5, 2).double())[0].square().sum().backward()
        optimizer.step()
    assert same(flow, there_and_back(flow, path))


def test_what_an_optimiser_does_later_does_not_reach_the_saved_flow_or_its_arguments(path):
    flow = DiagonalAffine(torch.ones(2))
    loaded = there_and_back(flow, path)
    with torch.no_grad():
        loaded.loc.add_(1.0)
    assert there_and_back(loaded, path).loc.tolist() == [2.0, 2.0] and flow.loc.tolist() == [1.0, 1.0]


def test_the_file_holds_json_and_tensors(path):
    save(Chain([Permutation(torch.tensor([1, 0]))]), path)
    tensors, metadata = read_safetensors(path, "pyro_coupling.flow", 1)
    content = json.loads(metadata["content"])
    assert content["flow"]["module"]["class"] == "Chain"
    assert set(tensors) == {"argument.0", "state.parts.0.permutation", "state.parts.0.inverse_permutation"}


def test_neither_saving_nor_loading_touches_the_random_state_or_the_flow(path):
    flow = make("neural_spline").train()
    before, state = torch.get_rng_state(), copy.deepcopy(flow.state_dict())
    loaded = there_and_back(flow, path)
    assert torch.equal(torch.get_rng_state(), before)
    assert flow.training and all(torch.equal(state[key], value) for key, value in flow.state_dict().items())
    assert all(a is not b for a, b in zip(flow.parameters(), loaded.parameters(), strict=True))


# What can't be saved


class Settable(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x


def replaced(change):
    flow = Chain([small(), Permutation([1, 0])])
    change(flow)
    return flow


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: setattr(f[0], "conditioner", nn.Linear(1, 2)), r"conditioner' is a Linear, but was .* as a Net"),
        (lambda f: setattr(f[0], "elementwise", Shift()), r"'parts\.0' is Coupling\(elementwise=Shift\(\)\), but was"),
        (lambda f: setattr(f[0].conditioner, "factor", 2.0), r"is a Net with factor=2\.0, but was .* factor=1\.0"),
        (lambda f: setattr(f[0].conditioner.inner, "1", nn.ReLU()), r"inner\.1' is a ReLU, but was .* as a Tanh"),
        (lambda f: f[0].conditioner.inner.append(nn.Tanh()), r"'parts\.0\.conditioner\.inner\.3' was added after"),
        (lambda f: f[0].conditioner.inner.pop(2), r"'parts\.0\.conditioner\.inner\.2' was removed after"),
        (lambda f: f[0].register_buffer("extra", torch.ones(1)), r"missing none; not its own 'parts\.0\.extra'"),
        (lambda f: f[0].conditioner.inner[0].register_parameter("bias", None), r"Linear\(.*bias=False\), but was"),
        (lambda f: setattr(f[0].conditioner, "forward", lambda x: torch.ones(2, 2)), "not give the same numbers"),
    ],
)  # fmt: skip
def test_a_part_that_was_replaced_is_named(change, message, path):
    with pytest.raises(ValueError, match=message):
        save(replaced(change), path)
    assert not path.exists()


def test_parts_of_a_chain_may_be_replaced(path):
    def change(flow):
        flow.parts[1] = Doubled(2, factor=2.0)
        flow.parts.append(Permutation([1, 0]))

    flow = replaced(change).double()
    assert same(flow, there_and_back(flow, path))


@register(name="tests.Drawn")
class Drawn(Doubled):
    """Its factor is drawn anew by each construction, and is not in its state."""

    def __init__(self, size):
        super().__init__(size, factor=1.0)
        self._factor = torch.rand(()).item() + 1

    def forward_and_log_det(self, x, context=None):
        return self._factor * x, x.new_zeros(x.shape[:-1])


def test_what_would_come_back_as_something_else_is_refused(path):
    with pytest.raises(ValueError, match="Chain can't be saved: it does not give the same numbers"):
        save(Chain([Drawn(2)]), path)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (lambda: Unregistered(2, factor=1.0), r"Unregistered is not registered: put @pyro_coupling\.register above"),
        (lambda: Chain([Unregistered(2, factor=1.0)]), r"Chain\.bijections: .*Unregistered is not registered"),
        (lambda: Coupling(halves(2), nn.GRUCell(1, 2), Affine()), "GRUCell is not registered"),
        (lambda: Coupling(halves(2), Net(1, 2, Settable(1)), Affine()), "Net.activation: .*Settable is not registered"),
        (lambda: Coupling(halves(2), mlp(1, 2, 1, (4,), lambda: nn.Tanh()), Affine()), "<lambda> is not registered"),
        (lambda: flows.real_nvp, "save: flow must be a bijection, a guide or another module, got function"),
        (lambda: nn.Linear(2, 2).state_dict(), "save: flow must be .*, got OrderedDict"),
    ],
)
def test_what_is_not_registered_says_so(flow, message, path):
    with pytest.raises(TypeError, match=message):
        save(flow(), path)
    assert not path.exists()


def test_a_state_that_is_no_tensor_is_refused(path):
    @register(name="tests.Extra")
    class Extra(nn.Module):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(TypeError, match="Extra: its state_dict holds a dict, '_extra_state', which is no tensor"):
        save(Extra(), path)


# Files that are not as they should be


def rewrite(path, change, digest=True):
    """Changes tensors and content of a file, as one would who knows the format."""
    tensors, metadata = read_safetensors(path, "pyro_coupling.flow", 1)
    content = json.loads(metadata["content"])
    change(content, tensors)
    metadata["content"] = json.dumps(content)
    if digest:
        metadata["digest"] = _digest(metadata["content"], tensors)
    write_safetensors(path, tensors, metadata)


@pytest.fixture
def saved(path):
    save(Chain([small(), Permutation([1, 0]), DiagonalAffine(torch.zeros(2))]), path)
    return path


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "missing")


def test_a_truncated_file_and_a_flipped_bit(saved):
    content = saved.read_bytes()
    for length in (0, 8, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match=os.path.basename(saved)):
            load(saved)
    for place in range(8, len(content), 97):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=os.path.basename(saved)):
            load(saved)
    saved.write_bytes(content)
    load(saved)


def test_files_of_other_kinds_and_newer_versions(saved):
    tensors, metadata = read_safetensors(saved, "pyro_coupling.flow", 1)
    write_safetensors(saved, tensors, metadata | {"version": "2"})
    with pytest.raises(ValueError, match=r"has version '2', newer than 1: update pyro-coupling"):
        load(saved)
    write_safetensors(saved, tensors, metadata | {"format": "pyro_coupling.FlowVI"})
    with pytest.raises(ValueError, match=r"has the format 'pyro_coupling\.FlowVI'"):
        load(saved)
    for key in ("content", "digest"):
        write_safetensors(saved, tensors, {k: v for k, v in metadata.items() if k != key})
        with pytest.raises(ValueError, match=f"is damaged: it can't be read .KeyError: '{key}'"):
            load(saved)


def test_a_change_of_one_who_does_not_know_the_digest(saved):
    rewrite(saved, lambda content, tensors: tensors["state.parts.2.loc"].add_(1.0), digest=False)
    with pytest.raises(ValueError, match="it is not as it was written, its digest does not match"):
        load(saved)


def arguments(content, *names):
    node = content["flow"]["module"]
    for name in names:
        node = node["list"][name] if isinstance(name, int) else node["arguments"][name]
    return node


def width(content):
    return arguments(content, "bijections", 0, "conditioner", "width")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c.clear(), "can't be loaded|damaged"),
        (lambda c, t: c["flow"].clear(), "damaged"),
        (lambda c, t: c.update(flow=[1]), "damaged"),
        (lambda c, t: c.update(flow={"module": {"plain": 1}}), "that of a int, which is no module"),
        (lambda c, t: c["flow"].update(module={"class": "os.system", "arguments": {}}), r"'os\.system' is no class"),
        (lambda c, t: c["flow"].update(frozen=3), "damaged"),
        (lambda c, t: arguments(c).update({"class": "tests.Unheard"}), r"'tests\.Unheard' is no class"),
        (lambda c, t: arguments(c, "bijections").update(list=[]), "Chain can't be made: Chain: bijections is empty"),
        (lambda c, t: arguments(c, "bijections", 0)["arguments"].update(more={"plain": 1}), "no argument 'more'"),
        (lambda c, t: arguments(c, "bijections", 0)["arguments"].pop("partition"), "Coupling can't be made"),
        (lambda c, t: width(c).update(plain=10**12), "can't be made"),
        (lambda c, t: width(c).update(plain=5), r"parts\.0\.conditioner\.inner\.0"),
        (lambda c, t: width(c).update(plain="five"), "Net can't be made"),
        (lambda c, t: t.pop("state.parts.2.loc"), r"missing 'parts\.2\.loc'; not its own none"),
        (lambda c, t: t.update({"state.more": torch.ones(1)}), "missing none; not its own 'more'"),
        (lambda c, t: t.update({"more": torch.ones(1)}), "holds tensors that belong to nothing: 'more'"),
        (lambda c, t: t.pop("argument.0"), r"its tensor 'argument\.0' is missing"),
        (lambda c, t: t.update({"state.parts.2.loc": torch.zeros(3)}), r"float32 of shape \(2,\), found .*\(3,\)"),
        (lambda c, t: t.update({"state.parts.2.loc": torch.zeros(2).int()}), r"float32 .*, found torch\.int32"),
        (lambda c, t: t.update({"state.parts.1.permutation": torch.ones(2)}), r"int64 .*, found torch\.float32"),
    ],
)  # fmt: skip
def test_a_tampered_file_is_refused(change, message, saved):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "NaN", "[]", '{"flow": {}, "guide": {}}', "{}"])
def test_a_description_that_is_none(text, saved):
    tensors, metadata = read_safetensors(saved, "pyro_coupling.flow", 1)
    write_safetensors(saved, tensors, metadata | {"content": text, "digest": _digest(text, tensors)})
    with pytest.raises(ValueError, match=str(saved)):
        load(saved)


def test_a_class_of_the_file_that_is_not_registered_any_more_is_named(saved):
    rewrite(saved, lambda c, t: arguments(c, "bijections", 0, "conditioner").update({"class": "project.Net"}))
    with pytest.raises(ValueError, match=r"'project\.Net' is no class that is known here; import the module"):
        load(saved)


# Files of earlier versions


def test_the_flow_of_the_first_version_still_loads():
    """Made by ``python tests/fixtures/make_flow_v1.py``, which also wrote down what the flow gave."""
    flow = load(FIXTURES / "flow_v1.safetensors")
    expected = json.loads((FIXTURES / "flow_v1.json").read_text())
    x = torch.tensor(expected["x"], dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(x)
    # other versions of torch may round differently
    torch.testing.assert_close(y, torch.tensor(expected["y"], dtype=x.dtype), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det, torch.tensor(expected["log_det"], dtype=x.dtype), rtol=1e-10, atol=1e-10)
    assert repr(flow) == expected["repr"]


# Guides


def met(model, *args, **settings):
    guide = AutoCouplingFlow(model, small_flow, warm_start="init", **settings)
    guide(*args)
    return guide


def test_a_loaded_guide_draws_what_the_saved_one_draws(path):
    guide = met(location_scale, Y)
    save(guide, path)
    loaded = load(path, model=location_scale)
    loaded(Y)  # reading the model draws from the random state, once
    pyro.set_rng_seed(3)
    expected = Predictive(location_scale, guide=guide, num_samples=5)(Y)
    pyro.set_rng_seed(3)
    found = Predictive(location_scale, guide=loaded, num_samples=5)(Y)
    assert all(torch.equal(found[name], expected[name]) for name in ("mu", "sigma"))
    assert torch.equal(loaded.median()["mu"], guide.median()["mu"])
    assert loaded.warm_start == "init" and loaded.num_starts == guide.num_starts


def test_a_loaded_guide_trains_on_without_a_warm_start(path):
    guide = met(location_scale, Y)
    save(guide, path)
    loaded = load(path, location_scale)
    pyro.clear_param_store()  # in which both guides have the same name
    svi = SVI(location_scale, loaded, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert math.isfinite(svi.step(Y))
    assert torch.equal(loaded.transform[1].loc, guide.transform[1].loc) and not loaded.starts
    assert not torch.equal(loaded.transform[1].shift, guide.transform[1].shift)


def test_a_float64_guide_comes_back_as_one(path):
    save(met(normal_mean, Y.double()), path)
    assert load(path, normal_mean)(Y.double())["mu"].dtype == torch.float64


def test_a_loaded_guide_can_be_saved_before_it_meets_its_model(path):
    guide = met(location_scale, Y)
    save(guide, path)
    save(load(path, location_scale), path)
    with pytest.raises(ValueError, match=r"latents \{'mu': \(\), 'sigma': \(\)\}"):
        load(path, groups)(Y)


def reordered(y=Y):
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.mark.parametrize(
    ("model", "found"), [(groups, r"'theta': \(3,\)"), (reordered, r"\{'sigma': \(\), 'mu': \(\)\}")]
)
def test_a_model_with_other_latents_is_refused_with_both_named(model, found, path):
    save(met(location_scale, Y), path)
    loaded = load(path, model)
    for _ in range(2):  # a second call is no way around
        with pytest.raises(ValueError, match=r"\{'mu': \(\), 'sigma': \(\)\}, .*" + found):
            loaded(Y)


def start(site):
    return pyro.infer.autoguide.init_to_median(site)


def test_settings_of_a_guide_come_back(path):
    init = partial(pyro.infer.autoguide.init_to_value, values={"mu": torch.tensor(2.0)})
    save(met(normal_mean, Y, init_loc_fn=init, num_starts=3), path)
    loaded = load(path, normal_mean)
    assert loaded.num_starts == 3 and loaded._init_loc_fn.keywords == {"values": {"mu": torch.tensor(2.0)}}
    with pytest.raises(TypeError, match="start is not registered"):
        save(met(normal_mean, Y, init_loc_fn=start), path)


def test_what_a_guide_cannot_be_saved_for(path):
    class Mine(AutoCouplingFlow):
        pass

    with pytest.raises(ValueError, match="has not met its model"):
        save(AutoCouplingFlow(normal_mean), path)
    with pytest.raises(TypeError, match="Mine: only an AutoCouplingFlow itself"):
        save(Mine(normal_mean), path)


def test_a_guide_needs_a_model_and_a_flow_none(saved, tmp_path):
    with pytest.raises(ValueError, match="it holds a flow, so load it without a model"):
        load(saved, model=normal_mean)
    save(met(normal_mean, Y), tmp_path / "guide")
    with pytest.raises(ValueError, match="it holds a guide, so load it with a model"):
        load(tmp_path / "guide")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c["guide"].pop("latents"), "damaged"),
        (lambda c, t: c["guide"].update(latents=3), "damaged"),
        (lambda c, t: c["guide"].update(settings={"dict": {}}), "settings are not those of a guide"),
        (lambda c, t: c["guide"]["settings"]["dict"].update(num_starts={"plain": "a"}), "settings are not those"),
        (lambda c, t: c["guide"]["settings"]["dict"].update(num_starts={"plain": -1}), "num_starts must be at least 1"),
        (lambda c, t: c["guide"]["settings"]["dict"].update(flow={"name": "torch.nn.Tanh"}), "settings are not those"),
        (lambda c, t: c["guide"]["flow"]["module"]["arguments"]["bijections"]["list"].pop(), "not its own"),
    ],
)
def test_a_tampered_guide_is_refused(change, message, path):
    save(met(normal_mean, Y), path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        load(path, normal_mean)


def test_a_flow_that_is_that_of_no_guide_is_refused(saved, path):
    settings = {"init_loc_fn": init_to_center, "warm_start": "init", "num_starts": 1}
    guide = {"latents": [], "settings": encode(settings, {})}
    rewrite(saved, lambda c, t: c.update(guide=guide | {"flow": c.pop("flow")}))
    load(saved, normal_mean)  # a chain that ends in an affine map may be one
    save(small(), saved)
    rewrite(saved, lambda c, t: c.update(guide=guide | {"flow": c.pop("flow")}))
    with pytest.raises(ValueError, match="its flow is not that of a guide"):
        load(saved, normal_mean)


# Fits


def fit(model, *args, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FlowVI(model, max_steps=2, seed=0, progress=False, **settings).run(*args)


@pytest.mark.parametrize("model", [groups, two_normals])
def test_a_fit_with_a_guide_of_ones_own_is_loaded_without_it(model, path):
    hidden = poutine.block(model, hide=["z"]) if model is two_normals else model
    vi = fit(model, Y, guide=AutoCouplingFlow(hidden, lambda dim: Doubled(dim, factor=2.0), warm_start="init"))
    vi.save(path)
    loaded = FlowVI.load(path, model)
    assert torch.equal(loaded.get_samples(5)["mu"], vi.get_samples(5)["mu"])
    assert loaded.guide.warm_start == "init" and not loaded._default_guide


def test_a_fit_whose_guide_cannot_be_described_has_to_be_given_it(path):
    def flow(dim):
        return Chain([Unregistered(dim, factor=2.0)])

    vi = fit(groups, Y, guide=AutoCouplingFlow(groups, flow))
    with pytest.warns(UserWarning, match=r"guide is made of is not stored .*Unregistered is not registered"):
        vi.save(path)
    with pytest.raises(ValueError, match="fitted with a guide of your own: pass a fresh one"):
        FlowVI.load(path, groups)
    loaded = FlowVI.load(path, groups, guide=AutoCouplingFlow(groups, flow))
    assert torch.equal(loaded.get_samples(5)["mu"], vi.get_samples(5)["mu"])


def test_a_fit_of_the_first_version_still_loads(path):
    """It did not say what its guide is made of."""
    vi = fit(normal_mean, Y)
    vi.save(path)
    tensors, metadata = read_safetensors(path, "pyro_coupling.FlowVI", 1)
    state = json.loads(metadata["state"])
    del state["guide"]
    write_safetensors(path, tensors, metadata | {"state": json.dumps(state)})
    assert torch.equal(FlowVI.load(path, normal_mean).get_samples(5)["mu"], vi.get_samples(5)["mu"])


def test_a_fit_of_the_latents_in_another_order_is_refused(path):
    fit(location_scale, Y).save(path)
    with pytest.raises(ValueError, match="does not fit the model: it has the latent sites"):
        FlowVI.load(path, reordered)


def test_the_package_offers_them():
    assert {"save", "load", "register"} <= set(pyro_coupling.__all__)
