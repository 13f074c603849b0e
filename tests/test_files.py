"""Files are written in one stroke, read with suspicion, and never executed."""

import os
import pickle
import struct

import pytest
import torch

from pyro_coupling.files import read_safetensors, write_safetensors

META = {"format": "test", "version": "1"}


def read(path):
    return read_safetensors(path, "test", 1)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 2),
        torch.randn(3).double(),
        torch.tensor(1.5),
        torch.empty(0, 4),
        torch.arange(5),
        torch.tensor([True, False]),
        torch.randn(3, 4).T,
        torch.randn(10)[::2],
        torch.randn(2, requires_grad=True),
        torch.nn.Parameter(torch.ones(2)),
        torch.zeros(3).expand(2, 3),
    ],
)
def test_what_is_written_is_read(tmp_path, tensor):
    write_safetensors(tmp_path / "f", {"x": tensor}, META)
    tensors, metadata = read(tmp_path / "f")
    assert torch.equal(tensors["x"], tensor.detach())
    assert tensors["x"].dtype == tensor.dtype
    assert metadata == META


def test_tensors_that_share_memory(tmp_path):
    x = torch.arange(4.0)
    write_safetensors(tmp_path / "f", {"all": x, "part": x[1:]}, META)
    assert torch.equal(read(tmp_path / "f")[0]["part"], x[1:])


def test_strings_and_paths_of_any_kind(tmp_path):
    path = str(tmp_path / "fit ünïcode.safetensors")
    write_safetensors(path, {}, META | {"text": "Grüße\n\x00"})
    assert read(path)[1]["text"] == "Grüße\n\x00"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "f", {"x": torch.ones(1)}, META)

    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_safetensors(tmp_path / "f", {"x": torch.zeros(1)}, META)
    monkeypatch.undo()
    assert read(tmp_path / "f")[0]["x"].item() == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_safetensors(tmp_path / "nowhere" / "f", {}, META)


def test_a_file_has_the_permissions_of_a_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_safetensors(tmp_path / "f", {}, META)
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing"):
        read(tmp_path / "missing")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)


def written(path):
    write_safetensors(path, {"x": torch.arange(100.0)}, META)
    return path.read_bytes()


@pytest.mark.parametrize("length", [0, 1, 8, 30, 200])
def test_a_truncated_file(tmp_path, length):
    content = written(tmp_path / "f")
    (tmp_path / "f").write_bytes(content[:length])
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        read(tmp_path / "f")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04N.",
        b"not a file of ours",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 60) + b'{"x":{"dtype":"F32","shape":[999],"data_offsets":[0,4]}}    ' + b"0000",
    ],
)
def test_other_content(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        read(tmp_path / "f")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        read(tmp_path / "f")
    torch.save({"x": Harmful()}, tmp_path / "g")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        read(tmp_path / "g")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "other", "version": "1"}, "has the format 'other', expected 'test'"),
        ({"version": "1"}, "has the format None, expected 'test'"),
        ({"format": "test", "version": "2"}, "has version '2', newer than 1: update pyro-coupling"),
        ({"format": "test", "version": "one"}, "has version 'one'"),
        ({"format": "test", "version": "²"}, "has version '²'"),
        ({"format": "test", "version": "9" * 5000}, "has version '999"),
        ({"format": "test"}, "has version ''"),
    ],
)
def test_other_formats_and_versions(tmp_path, metadata, message):
    write_safetensors(tmp_path / "f", {}, metadata)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "f")
