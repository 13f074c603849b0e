"""What is encoded comes back as it was; what can't be stored, and what no one encoded, is told in a sentence."""

import functools
import json
import math
import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from pyro_coupling.codec import decode, encode
from pyro_coupling.registry import register

Point = namedtuple("Point", "x y")


@register(name="tests.Box")
class Box(nn.Module):
    """A module that keeps whatever it is given."""

    def __init__(self, *content):
        super().__init__()
        self.content = content
        self.parts = nn.ModuleList(part for part in content if isinstance(part, nn.Module))


@register(name="tests.Greedy")
class Greedy(nn.Module):
    def __init__(self, how, size):
        super().__init__()
        {
            "empty": lambda: torch.empty(size, size),
            "normal": lambda: torch.randn(size),
            "order": lambda: torch.randperm(size, generator=torch.Generator().manual_seed(0)),
            "range": lambda: torch.arange(size),
            "identity": lambda: torch.eye(size),
            "new": lambda: torch.zeros(1).new_zeros(size, size),
            "linear": lambda: nn.Linear(size, size),
            "view": lambda: torch.zeros(4).expand(size, size, 4).contiguous(),
            "layers": lambda: [nn.Linear(1, 1) for _ in range(size)],
        }[how]()


def there_and_back(value):
    tensors = {}
    node = json.loads(json.dumps(encode(value, tensors), allow_nan=False))
    back = decode(node, tensors)
    assert not tensors  # all were taken out
    return back


VALUES = [
    None, True, 0, -3, 10**30, 2.5, 1e-320, -0.0, "", "ünï\n\x00", [], (), [1, (2.0, [None])], {}, {"a": {"b": [1]}},
    {"class": 1, "arguments": 2}, OrderedDict(b=1, a=2), torch.Size([2, 3]), torch.float64, torch.bool, nn.SiLU,
    (math.inf, -math.inf),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_back(value):
    back = there_and_back(value)
    assert back == value and type(back) is type(value) and repr(back) == repr(value)


def test_nan_comes_back_in_json_that_all_can_read():
    assert math.isnan(there_and_back(math.nan))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3),
        torch.tensor(1.5).double(),
        torch.tensor([True]),
        torch.empty(0, 2).half(),
        torch.arange(6)[::2],
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_tensors_come_back(tensor):
    back = there_and_back([tensor, (tensor, 1)])
    assert torch.equal(back[0], tensor) and torch.equal(back[1][0], tensor) and back[0].dtype == tensor.dtype


def test_arrays_come_back_as_arrays():
    back = there_and_back(np.arange(4.0)[::-1])
    assert isinstance(back, np.ndarray) and back.tolist() == [3, 2, 1, 0]


def test_a_partial_of_a_registered_class_comes_back():
    back = there_and_back(functools.partial(nn.LeakyReLU, 0.3, inplace=True))
    assert repr(back()) == repr(nn.LeakyReLU(0.3, inplace=True))


def test_a_module_that_occurs_twice_is_one_module_again():
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    back = there_and_back(Box(net, Box(other, net), nn.Sequential(other)))
    first, inner, last = back.content
    assert inner.content[1] is first and last[0] is inner.content[0] and last[0] is not first


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Point(1, 2), r"test_codec\.Point is not registered"),
        ({1: 2}, "no way to store a dict whose keys are not strings"),
        ({1, 2}, r"builtins\.set is not registered"),
        (lambda x: x, r"<lambda> is not registered"),
        (nn.GRU, r"torch\.nn\.modules\.rnn\.GRU is not registered: put @pyro_coupling\.register above"),
        ([nn.Linear(1, 1)], "no way to store a Linear, which is a module, outside another"),
        (Box(nn.GRU(1, 1)), r"Box\.content: torch\.nn\.modules\.rnn\.GRU is not registered"),
        (Box(Box({1: 2})), r"Box\.content: no way to store a dict"),
        (np.array(["a"]), "numpy"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_says_why(value, message):
    with pytest.raises(TypeError, match=message):
        encode(value, {})


def nested(levels):
    node = {"plain": 1}
    for _ in range(levels):
        node = {"list": [node]}
    return node


def repeated(levels):
    """Boxes of two boxes each, of few nodes and 2**levels modules."""
    node = {"class": "tests.Box", "arguments": {"content": {"tuple": []}}}
    for level in range(levels):
        node = {"class": "tests.Box", "arguments": {"content": {"tuple": [node, {"again": level}]}}}
    return node


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (3, "has a int where a node should be"),
        ({}, "a node that is none"),
        ({"plain": 1, "list": []}, "a node that is none: plain, list"),
        ({"plain": [1]}, "a node that is none"),
        ({"code": "import os"}, "a node that is none: code"),
        ({"_tensors": "x"}, "a node that is none"),
        ({"list": {"a": 1}}, "a node that is none"),
        ({"tuple": "abc"}, "a node that is none"),
        ({"tensor": "argument.0"}, r"tensor 'argument\.0' is missing"),
        ({"dtype": "torch.nn"}, r"dtype 'torch\.nn'"),
        ({"float": "much"}, "could not convert"),
        ({"name": "os.system"}, r"'os\.system' is no class that is known here"),
        ({"again": 0}, "repeats module 0, of 0"),
        ({"again": -1}, "repeats module -1"),
        ({"Size": [{"plain": "a"}]}, "can't be followed: .*Size"),
        ({"partial": []}, "values to unpack"),
        ({"partial": [{"plain": 1}, {"tuple": []}, {"dict": {}}]}, "callable"),
        ({"class": "os.system", "arguments": {}}, r"'os\.system' is no class that is known here"),
        ({"class": ["tests.Box"], "arguments": {}}, "without a class or without arguments"),
        ({"class": "tests.Box", "arguments": []}, "without a class or without arguments"),
        ({"class": "pyro.init_to_median", "arguments": {}}, "without a class"),
        ({"class": "torch.nn.Linear", "arguments": {"in_features": {"plain": "a"}}}, "Linear can't be made"),
        ({"class": "torch.nn.Linear", "arguments": {"size": {"plain": 1}}}, "takes no argument 'size'"),
        ({"class": "torch.nn.Linear", "arguments": {"in_features": {"plain": -1}, "out_features": {"plain": 1}}}, "-1"),
        (nested(101), "nested deeper than 100 levels"),
        (repeated(40), "unfolds to more than 100000 modules"),
    ],
)  # fmt: skip
def test_nodes_that_no_one_encoded_are_refused(node, message):
    with pytest.raises(ValueError, match=message):
        decode(node, {})


def test_what_is_nested_and_repeated_within_reason_is_read():
    decode(nested(99), {})
    assert sum(1 for _ in decode(repeated(10), {}).modules()) == 22


@pytest.mark.parametrize("how", ["empty", "normal", "order", "range", "identity", "new", "linear", "view", "layers"])
@pytest.mark.parametrize("size", [10**5, 10**9])
def test_a_description_cannot_ask_for_a_terabyte_or_for_ever(how, size):
    """10**5 asks for little where it is one vector, and is refused where it is a matrix or the layers."""
    node = {"class": "tests.Greedy", "arguments": {"how": {"plain": how}, "size": {"plain": size}}}
    if size == 10**5 and how in ("normal", "order", "range"):
        decode(node, {})
        return
    with pytest.raises(ValueError, match="Greedy can't be made: it asks for far more numbers than there are"):
        decode(node, {})


@pytest.mark.parametrize("how", ["empty", "identity", "linear"])
@pytest.mark.parametrize("size", [10**12, 10**30, -1])
def test_sizes_that_there_cannot_be(how, size):
    node = {"class": "tests.Greedy", "arguments": {"how": {"plain": how}, "size": {"plain": size}}}
    with pytest.raises(ValueError, match="Greedy can't be made: "):
        decode(node, {})


def test_a_file_of_many_numbers_may_ask_for_as_many():
    node = {"class": "tests.Greedy", "arguments": {"how": {"plain": "empty"}, "size": {"plain": 10_000}}}
    with pytest.raises(ValueError, match="far more numbers"):
        decode(node, {})
    decode(node, {"x": torch.empty(1).expand(10_000, 10_000)})


def states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@register(name="tests.Random")
class Random(nn.Module):
    def __init__(self, fail=False):
        super().__init__()
        self.numbers = torch.rand(1).item(), random.random(), np.random.rand()
        if fail:
            raise ArithmeticError("on purpose")


def test_the_random_state_is_left_as_it_was():
    before = states()
    decode({"class": "tests.Random", "arguments": {}}, {})
    with pytest.raises(ValueError, match="Random can't be made: on purpose"):
        decode({"class": "tests.Random", "arguments": {"fail": {"plain": True}}}, {})
    assert states() == before


def test_nothing_of_the_surroundings_matters():
    with torch.device("meta"):
        assert decode(encode(nn.Linear(2, 2), {}), {}).weight.device.type == "cpu"
