"""The tokenizer that a model output carries."""

import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.errors import CheckpointError
from lit_wsl.merging import MergeSpec, merge
from lit_wsl.merging.preview import preview


@pytest.fixture
def base(tmp_path):
    """A model with a tokenizer."""
    (tmp_path / "base").mkdir()
    save_file({"w": torch.ones(2, 2)}, tmp_path / "base/model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "base" / name).write_text('{"from": "base"}')
    return tmp_path / "base"


@pytest.fixture
def other(tmp_path):
    """A tokenizer, and a folder that is named like one."""
    (tmp_path / "other/tokenizer").mkdir(parents=True)
    (tmp_path / "other/tokenizer.json").write_text('{"from": "other"}')
    return tmp_path / "other"


def test_the_files_of_a_tokenizer_are_carried_and_not_its_folders(tmp_path, base, other):
    fields = {"models": [{"w": torch.zeros(2, 2)}], "method": "passthrough", "base": str(base)}
    merge(**fields, tokenizer=str(other), output=tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == '{"from": "other"}'
    assert not (tmp_path / "out/tokenizer").exists()


def test_a_base_in_memory_takes_the_tokenizer_that_is_named(tmp_path, other):
    state = {"w": torch.ones(2, 2)}
    merge(base=state, models=[state], method="passthrough", tokenizer=str(other), output=tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == '{"from": "other"}'


@pytest.mark.parametrize("make", [True, False], ids=["no tokenizer", "nothing"])
def test_a_tokenizer_that_is_not_there_shows_before_the_work(tmp_path, base, make):
    if make:
        (tmp_path / "empty").mkdir()
    spec = MergeSpec(models=[str(base)], base=str(base), method="passthrough", tokenizer=str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="has no tokenizer" if make else "does not exist"):
        preview(spec)
