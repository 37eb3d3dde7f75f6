"""Names, shapes and dtypes of two models, before an entry is read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.comparing.architecture import architecture_of
from lit_wsl.comparing.models import open_base, open_tuned
from lit_wsl.errors import CheckpointError

BASE = {
    "embed.weight": torch.zeros(9, 4),
    "a.weight": torch.zeros(4, 4),
    "b.weight": torch.zeros(4, 6),
    "c.weight": torch.zeros(3),
    "scalar": torch.zeros(()),
    "gone": torch.zeros(2),
}
TUNED = {
    "new": torch.zeros(2),
    "scalar": torch.zeros(1),
    "c.weight": torch.zeros(3).bfloat16(),
    "b.weight": torch.zeros(6, 4),
    "a.weight": torch.zeros(4, 4),
    "embed.weight": torch.zeros(11, 4),
    "a.lora_A.weight": torch.zeros(2, 4),
}


def architecture(tmp_path, base, tuned):
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    opened = open_base(tmp_path / "base.safetensors")
    return opened, architecture_of(opened, open_tuned(tmp_path / "tuned.safetensors", opened))


def test_every_kind_of_difference(tmp_path):
    base, found = architecture(tmp_path, BASE, TUNED)
    assert found.common_keys == [name for name in base.infos() if name != "gone"]
    assert found.only_in_base == ["gone"]
    assert set(found.only_in_finetuned) == {"new", "a.lora_A.weight"}
    assert found.lora_keys == ["a.lora_A.weight"]
    assert found.shape_mismatch == {
        "b.weight": {"base": [4, 6], "finetuned": [6, 4]},
        "embed.weight": {"base": [9, 4], "finetuned": [11, 4]},
        "scalar": {"base": [], "finetuned": [1]},
    }
    assert found.dtype_mismatch == {"c.weight": {"base": "float32", "finetuned": "bfloat16"}}
    assert found.failed == {}
    assert set(found.comparable()) == {"a.weight", "c.weight", "embed.weight"}
    assert found.resized() == ["embed.weight"]
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_a_tensor_without_rows_has_none_in_common(tmp_path):
    _, found = architecture(
        tmp_path, {"a": torch.zeros(0, 3), "b": torch.zeros(1)}, {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    )
    assert found.comparable() == ["b"]
    assert found.resized() == []


def test_models_without_a_common_name_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no tensor name in common \(first 'a' in .*, 'b' in .*lit-wsl map"
    ) as caught:
        architecture(tmp_path, {"a": torch.zeros(2)}, {"b": torch.zeros(2)})
    assert "\n" not in str(caught.value)
