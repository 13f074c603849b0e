"""A registered class remembers its arguments, and is changed in nothing else."""

import copy
import importlib
import inspect
import io
import pickle
import pkgutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import pyro_coupling
from pyro_coupling import AutoCouplingFlow
from pyro_coupling.boltzmann.coordinates import Cluster
from pyro_coupling.registry import arguments_of, construct, name_of, named, register
from pyro_coupling.transforms import Bijection, Elementwise, Scale
from pyro_coupling.transforms.linear import AlongDim


@register
class Net(nn.Module):
    """Any module of a user."""

    def __init__(self, first, *rest, size=3, **more):
        super().__init__()
        self.children_given = nn.ModuleList(part for part in (first, *rest) if isinstance(part, nn.Module))


@register(name="tests.Wide")
class Wide(Net):
    def __init__(self, width):
        super().__init__(nn.Linear(width, width))


class Unregistered(Wide):
    pass


@register
class Inherits(Wide):
    pass


@register(name="tests.Settings")
@dataclass(frozen=True)
class Settings:
    number: int = 2
    text: str = "a"


@register
def function(x):
    return x


def test_register_gives_back_what_it_was_given():
    class Local:
        pass

    assert register(Local) is Local
    assert register(Local, name="tests.other_name") is Local
    assert register(function) is function


def test_a_name_is_chosen_or_says_where_the_class_is():
    assert name_of(Wide) == "tests.Wide" and named("tests.Wide") is Wide
    assert name_of(Net) == f"{__name__}.Net"
    assert name_of(function) == f"{__name__}.function" and named(f"{__name__}.function") is function


def test_the_packages_own_names_are_plain():
    assert name_of(pyro_coupling.transforms.Chain) == "Chain"


def test_a_name_is_given_once():
    class Other:
        pass

    with pytest.raises(ValueError, match=r"register: the name 'tests\.Wide' belongs to .*Wide, choose one for .*Other"):
        register(Other, name="tests.Wide")
    assert named("tests.Wide") is Wide
    with pytest.raises(TypeError, match="Other is not registered"):
        name_of(Other)


def test_a_class_defined_anew_takes_the_place_of_the_former():
    def define(value):
        @register(name="tests.Again")
        class Again:
            number = value

        return Again

    first, second = define(1), define(2)
    assert named("tests.Again") is second
    with pytest.raises(TypeError, match="Again is not registered"):
        name_of(first)


def test_a_renamed_class_is_found_under_both_names_and_written_under_the_first():
    @register(name="tests.New")
    class New:
        def __init__(self, x):
            pass

    register(New, name="tests.Old")
    assert named("tests.Old") is named("tests.New") is New
    assert name_of(New) == "tests.New"
    assert arguments_of(New(3)) == {"x": 3}


@pytest.mark.parametrize("target", [3, "name", nn.Tanh()], ids=repr)
def test_what_is_neither_class_nor_function(target):
    with pytest.raises(TypeError, match="register: expected a class or a function, got"):
        register(target)


@pytest.mark.parametrize("name", [3, "", b"x"])
def test_a_name_is_a_string(name):
    with pytest.raises(TypeError, match="register: name must be a string"):
        register(Net, name=name)


def test_unknown_names_and_classes_say_what_to_do():
    with pytest.raises(ValueError, match=r"'nowhere\.Foo' is no class that is known here; import the module"):
        named("nowhere.Foo")
    with pytest.raises(TypeError, match=r"Unregistered is not registered: put @pyro_coupling\.register above"):
        arguments_of(Unregistered(2))


def test_arguments_come_by_name_and_with_defaults():
    a, b = nn.Tanh(), nn.ReLU()
    assert arguments_of(Net(a)) == {"first": a, "rest": (), "size": 3, "more": {}}
    assert arguments_of(Net(a, b, size=4, extra=1)) == {"first": a, "rest": (b,), "size": 4, "more": {"extra": 1}}
    assert arguments_of(Net(first=a)) == arguments_of(Net(a))
    assert arguments_of(Settings(text="b")) == {"number": 2, "text": "b"}


def test_a_subclass_has_its_own_arguments():
    assert arguments_of(Wide(4)) == {"width": 4}
    assert arguments_of(Inherits(5)) == {"width": 5}


def test_what_is_changed_later_does_not_change_what_is_remembered():
    numbers, tensor, array = [1, [2]], torch.ones(2), np.ones(2)
    net = Net({"a": numbers}, tensor, array)
    numbers[1].append(3)
    tensor.zero_()
    array[:] = 0
    first, rest = arguments_of(net)["first"], arguments_of(net)["rest"]
    assert first == {"a": [1, [2]]}
    assert rest[0].tolist() == rest[1].tolist() == [1, 1]


def test_an_iterator_is_read_once_for_both():
    net = Net(part for part in (1, 2))
    assert arguments_of(net)["first"] == [1, 2]
    assert len(pyro_coupling.transforms.Chain(p for p in [pyro_coupling.transforms.Permutation([1, 0])])) == 1


def test_a_tensor_of_a_graph_is_remembered_without_it():
    leaf = torch.ones(2, requires_grad=True)
    net = Net(leaf * 2)
    assert not arguments_of(net)["first"].requires_grad
    copy.deepcopy(net)


def test_arguments_are_no_children():
    net = Net(nn.Linear(2, 2), [nn.Linear(3, 3)])
    assert [name for name, _ in net.named_modules()] == ["", "children_given", "children_given.0"]
    assert list(net.state_dict()) == ["children_given.0.weight", "children_given.0.bias"]
    assert "Linear(in_features=3" not in repr(net)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_remembers_and_its_arguments_are_its_own_children(copier):
    copied = copier(Net(nn.Linear(2, 2)))
    assert arguments_of(copied)["first"] is copied.children_given[0]


def test_a_moved_module_remembers_its_moved_children():
    net = Net(nn.Linear(2, 2)).double()
    assert arguments_of(net)["first"] is net.children_given[0]
    assert arguments_of(net)["first"].weight.dtype == torch.float64


def test_torch_save_still_works():
    file = io.BytesIO()
    torch.save(Net(nn.Linear(2, 2)), file)
    file.seek(0)
    assert isinstance(torch.load(file, weights_only=False), Net)


def test_a_class_looks_as_before():
    assert list(inspect.signature(Net).parameters) == ["first", "rest", "size", "more"]
    assert Net.__doc__ == "Any module of a user." and Net.__init__.__name__ == "__init__"


def test_classes_of_torch_are_left_as_they_are():
    assert nn.Linear.__init__.__code__.co_filename.endswith("linear.py")
    assert "_constructed_with" not in vars(nn.Linear(2, 2))
    register(nn.Bilinear)
    assert arguments_of(nn.Bilinear(1, 2, 3, bias=False)) == {
        "in1_features": 1,
        "in2_features": 2,
        "out_features": 3,
        "bias": False,
    }


def test_an_instance_older_than_the_registration_says_so():
    class Late:
        pass

    late = Late()
    register(Late)
    with pytest.raises(TypeError, match="this Late is older than the registration of its class"):
        arguments_of(late)


def test_arguments_can_be_read_off_by_a_function_of_ones_own():
    @register(name="tests.Counted", arguments=lambda counted: {"number": counted.n})
    class Counted:
        def __init__(self, number):
            self.n = number

    counted = Counted(3)
    counted.n = 4
    assert arguments_of(counted) == {"number": 4}


TORCH = [
    nn.AvgPool1d(2), nn.AvgPool2d(2, stride=1), nn.BatchNorm1d(2), nn.BatchNorm2d(2, affine=False), nn.CELU(0.5),
    nn.Conv1d(2, 4, 3, padding=2, dilation=2),
    nn.Conv2d(2, 4, (3, 1), padding="same", groups=2, bias=False, padding_mode="circular"), nn.Conv3d(1, 2, 3),
    nn.ConvTranspose1d(2, 2, 3, stride=2, output_padding=1), nn.ConvTranspose2d(2, 2, 3), nn.Dropout(0.3),
    nn.ELU(0.5), nn.Embedding(3, 2, padding_idx=0), nn.Flatten(2), nn.GELU("tanh"), nn.GLU(-2),
    nn.GroupNorm(2, 4, affine=False), nn.Hardswish(), nn.Identity(), nn.LayerNorm((2, 3), 1e-3),
    nn.LayerNorm(3, elementwise_affine=False), nn.LayerNorm(3, bias=False), nn.LeakyReLU(0.3), nn.Linear(2, 3),
    nn.Linear(2, 3, bias=False), nn.LogSigmoid(), nn.Mish(), nn.PReLU(3, 0.1), nn.ReLU(inplace=True), nn.ReLU6(),
    nn.SELU(), nn.SiLU(), nn.Sigmoid(), nn.Softmax(-1), nn.Softplus(2.0), nn.Softsign(), nn.Tanh(),
    nn.Unflatten(1, (2, 3)), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Sequential(nn.Linear(1, 2), nn.Tanh()),
    nn.Sequential(), nn.ModuleList([nn.Tanh()]), nn.ModuleDict({"a": nn.Tanh()}),
]  # fmt: skip


@pytest.mark.parametrize("module", TORCH, ids=repr)
def test_modules_of_torch_are_built_again_from_their_attributes(module):
    again = construct(type(module), arguments_of(module))
    assert repr(again) == repr(module)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


def test_every_registered_class_of_torch_is_in_the_table_above():
    from pyro_coupling.registry import _targets

    names = {name for name in _targets if name.startswith("torch.nn.") and name.count(".") == 2}
    assert names == {f"torch.nn.{type(module).__name__}" for module in TORCH}


def parts_of_the_package():
    """Every class of the package that can be a part of a flow; bases that only others are made from are none."""
    for module in pkgutil.walk_packages(pyro_coupling.__path__, "pyro_coupling."):
        importlib.import_module(module.name)
    found, todo = set(), [nn.Module, Elementwise, Scale]
    while todo:
        todo += (subclasses := todo.pop().__subclasses__())
        found.update(cls for cls in subclasses if cls.__module__.startswith("pyro_coupling."))
    # energies and what coordinates are made of are modules, but no parts of flows
    found = {cls for cls in found if issubclass(cls, Bijection) or ".boltzmann." not in cls.__module__}
    bases = {Bijection, AlongDim, AutoCouplingFlow, Cluster}
    return sorted(
        (cls for cls in found - bases if not inspect.isabstract(cls) and not cls.__name__.startswith("_")),
        key=lambda cls: cls.__name__,
    )


@pytest.mark.parametrize("cls", parts_of_the_package(), ids=lambda cls: cls.__name__)
def test_every_part_of_the_package_is_registered_under_its_name(cls):
    assert name_of(cls) == cls.__name__ and named(cls.__name__) is cls


def test_the_parts_are_those_that_one_expects():
    names = {cls.__name__ for cls in parts_of_the_package()}
    assert {"Affine", "TanhScale", "Coupling", "Partition", "MLP", "Inverse", "ActNorm", "SetAttention"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"), [({"width": 2, "depth": 3}, "takes no argument 'depth'"), ({}, "width")]
)
def test_arguments_that_a_class_does_not_take(arguments, message):
    with pytest.raises(TypeError, match=message):
        construct(Wide, arguments)
