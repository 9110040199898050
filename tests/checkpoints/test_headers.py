"""Weights on disk: what is there, what is not whole, and how that is told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.safetensors_headers import write_sharded_headers
from sememe.checkpoints.headers import (
    describe_names,
    list_missing_shards,
    list_weight_files,
    read_stored_tensors,
)
from sememe.checkpoints.tensor_files import iterate_stored
from sememe.errors import ModelError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / NAME)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_sharded_headers(tmp_path, {f"x{index}": (2, 3) for index in range(6)}, num_shards=3)
    return tmp_path


def one_line(caught: pytest.ExceptionInfo[ModelError]) -> None:
    assert "\n" not in str(caught.value)


def test_headers_tell_what_the_files_hold(single: Path) -> None:
    stored = read_stored_tensors(single)
    assert {key: (entry.shape, entry.dtype, entry.num_bytes) for key, entry in stored.items()} == {
        "a.weight": ((2, 3), "F32", 24),
        "b": ((4,), "BF16", 8),
    }
    read = dict(iterate_stored(stored))
    assert all(torch.equal(read[key], TENSORS[key]) for key in TENSORS)


def test_tensors_of_transformers_have_another_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert list_weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    with pytest.raises(ModelError, match="it has neither"):
        list_weight_files(tmp_path, ["diffusion_pytorch_model"])


def test_shards_are_those_of_the_index(sharded: Path) -> None:
    (sharded / NAME).write_bytes(b"an older file")
    assert len(list_weight_files(sharded)) == 3
    assert len(read_stored_tensors(sharded)) == 6
    assert list_missing_shards(sharded) == []


def test_a_shard_that_is_not_there_is_named(sharded: Path) -> None:
    lost = list_weight_files(sharded)[1]
    lost.unlink()
    assert list_missing_shards(sharded) == [lost.name]
    with pytest.raises(
        ModelError, match=rf"expected the 3 files .* 1 of them missing: {lost.name}; download"
    ) as caught:
        read_stored_tensors(sharded)
    one_line(caught)
    # What the hub's client leaves behind in a local folder.
    waiting = sharded.parent / ".cache" / "huggingface" / "download" / sharded.name
    waiting.mkdir(parents=True)
    (waiting / "x.abc.incomplete").touch()
    with pytest.raises(ModelError, match=r"unfinished download x\.abc\.incomplete"):
        read_stored_tensors(sharded)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (-1, r"is cut short: expected \d+ bytes, got \d+; download it again"),
        (20, "no safetensors file, or is damaged or cut short"),
        (4, "no safetensors file, or is damaged or cut short"),
        (0, "no safetensors file, or is damaged or cut short"),
    ],
)
def test_a_file_cut_short_is_named(single: Path, size: int, message: str) -> None:
    content = (single / NAME).read_bytes()
    (single / NAME).write_bytes(content[:size])
    with pytest.raises(ModelError, match=message) as caught:
        read_stored_tensors(single)
    assert NAME in str(caught.value)
    one_line(caught)


def test_other_damage_is_named(single: Path) -> None:
    content = (single / NAME).read_bytes()
    (single / NAME).write_bytes(content + b"more")
    with pytest.raises(ModelError, match="is too long"):
        read_stored_tensors(single)
    (single / NAME).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        read_stored_tensors(single)
    for header in (
        b"[1]",
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}',
        b"[" * 100_000,
    ):
        (single / NAME).write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ModelError, match="no safetensors file"):
            read_stored_tensors(single)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"pytorch_model{suffix}").touch()
    with pytest.raises(ModelError, match=rf"got pytorch_model{suffix}; such files are pickles, which can run code"):
        list_weight_files(tmp_path)
    (tmp_path / f"{NAME}.index.json").write_text(json.dumps({"weight_map": {"a": f"pytorch_model{suffix}"}}))
    with pytest.raises(ModelError, match="pickles"):
        list_weight_files(tmp_path)


def test_only_an_unfinished_download_is_named(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.incomplete").touch()
    with pytest.raises(ModelError, match=rf"got the unfinished download {NAME}\.incomplete"):
        list_weight_files(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b"}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{NAME}.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json") as caught:
        list_weight_files(tmp_path)
    one_line(caught)


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    first, second, _ = list_weight_files(sharded)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match=f"x0 is both in {first.name} and in .*{second.name}"):
        read_stored_tensors(sharded)


def test_names_are_told_in_few_words() -> None:
    names = [f"blocks.{index}.ffn.net.0.bias" for index in (0, 1, 2, 5, 12)] + ["proj_out.bias", "blocks.7.x.weight"]
    assert describe_names(names) == "blocks.{0-2,5,12}.ffn.net.0.bias, blocks.7.x.weight, proj_out.bias"
    assert describe_names([f"part{letter}" for letter in "abcdefghijklmnopqrstuvw"]).endswith("and 3 more like these")
