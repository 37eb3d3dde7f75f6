"""Containers around a state dict, and the files beside the weights."""

import pytest
import torch

from lit_wsl.errors import CheckpointError
from lit_wsl.state.formats import CONTAINER_KEYS, carry_files, read_object, unwrap

STATE = {"w": torch.ones(2), "epoch": 3}


@pytest.mark.parametrize("key", CONTAINER_KEYS)
def test_every_container_gives_its_tensors_alone(key):
    assert unwrap({key: STATE, "other": {"v": torch.ones(1)}}, "x").keys() == {"w"}
    assert unwrap(STATE, "x").keys() == {"w"}


@pytest.mark.parametrize("content", [{}, [], {"state_dict": {"epoch": 3}}, {3: torch.ones(1)}, torch.ones(1)], ids=str)
def test_what_holds_no_tensor_by_name_is_refused(content):
    with pytest.raises(CheckpointError, match="x holds no state dict"):
        unwrap(content, "x")


def test_a_name_with_a_wrapper_and_without_is_one_too_many():
    with pytest.raises(CheckpointError, match="'a.w' twice"):
        unwrap({"a.w": torch.ones(1), "a._fsdp_wrapped_module.w": torch.ones(1)}, "x")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="config.json is no JSON"):
        read_object(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"'])
def test_json_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="no JSON object"):
        read_object(tmp_path / "config.json")


def test_what_belongs_to_the_model_is_carried_and_what_belongs_to_the_file_is_not(tmp_path):
    carried = ["config.json", "tokenizer.model", "1_Pooling/config.json", "LICENSE.txt"]
    left = ["model.safetensors.index.json", "adapter_config.json", "model.safetensors", "other/config.json"]
    for name in carried + left:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    (tmp_path / "in" / "folder.json").mkdir()
    (tmp_path / "out").mkdir()
    assert carry_files(tmp_path / "in", tmp_path / "out") == sorted(carried)
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == sorted(carried)
    assert all((tmp_path / "out" / name).read_text() == name for name in carried)
