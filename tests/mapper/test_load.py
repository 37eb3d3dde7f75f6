"""Checkpoints as dictionaries: every container, tensors alone, nothing executed."""

import os

import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.errors import CheckpointError
from lit_wsl.mapper.load import extract_state_dict, load_checkpoint_as_dict


@pytest.fixture
def state():
    return {"net.weight": torch.randn(3, 2), "net.bias": torch.randn(3).bfloat16()}


def same(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module", None])
def test_containers(tmp_path, state, key):
    content = state if key is None else {key: state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(content, tmp_path / "a.pt")
    found = load_checkpoint_as_dict(tmp_path / "a.pt")
    assert set(found) == set(content)
    same(extract_state_dict(found), state)
    same(extract_state_dict(tmp_path / "a.pt"), state)


def test_safetensors_and_directories(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = load_checkpoint_as_dict(path)
        assert set(found) == set(state)
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_another_key(state):
    content = {"model": {"x": torch.ones(1)}, "ema": {"shadow": state}, "a.b": state}
    same(extract_state_dict(content, "ema.shadow"), state)
    same(extract_state_dict(content, "a.b"), state)
    with pytest.raises(CheckpointError, match=r"has no 'emma'\. Did you mean 'ema'"):
        extract_state_dict(content, "emma")
    with pytest.raises(CheckpointError, match="has a Tensor under 'model.x', no state dict"):
        extract_state_dict(content, "model.x")


def test_a_prefix(state):
    same(
        extract_state_dict({"state_dict": state | {"step": torch.ones(1)}}, prefix="net."),
        {
            "weight": state["net.weight"],
            "bias": state["net.bias"],
        },
    )
    with pytest.raises(CheckpointError, match=r"no name with the prefix 'nte\.'\. Did you mean 'net\.'"):
        extract_state_dict(state, prefix="nte.")


def test_wrappers_leave_the_names(state):
    compiled = torch.compile(torch.nn.Linear(2, 3)).state_dict()
    assert list(compiled) == ["_orig_mod.weight", "_orig_mod.bias"]
    assert list(extract_state_dict({"model": compiled})) == ["weight", "bias"]
    with pytest.raises(CheckpointError, match="holds 'w' twice"):
        extract_state_dict({"_orig_mod.w": torch.ones(1), "w": torch.zeros(1)})


def test_what_is_no_tensor_is_left_out(state):
    content = state | {"net._extra_state": None, "step": 3, 7: torch.ones(1)}
    same(extract_state_dict(content), state)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"state_dict": {"a": 1}}])
def test_no_state_dict_is_one_line(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt holds no state dict") as caught:
        extract_state_dict(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": {"w": torch.ones(1)}, "x": Hostile()}, tmp_path / "hostile.ckpt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "list.pt").read_bytes()[:-200])
    for name, message in (
        ("hostile.ckpt", "would run code"),
        ("list.pt", "holds a list, no dictionary"),
        ("cut.pt", "cannot be read"),
        ("none.pt", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint_as_dict(tmp_path / name)
    assert not (tmp_path / "ran").exists()
