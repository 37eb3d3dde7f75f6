"""Adapters of layers that share the weight of an embedding: PEFT stores their update twice, and it counts once."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.state.adapters import PREFIX, Adapter

A, B = torch.randn(2, 4), torch.randn(9, 2)
EMBEDDING = {"embed.lora_embedding_A": B.T.contiguous(), "embed.lora_embedding_B": A.T.contiguous()}


def sites(tmp_path, tensors, *, tied=True):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "ensure_weight_tying": tied}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    return sorted(Adapter(tmp_path).sites)


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_repeats_the_embedding_counts_once(tmp_path, tied):
    """Its factors are those of the embedding, turned."""
    head = {
        "head.lora_A.weight": A,
        "head.lora_B.weight": B,
        "q.lora_A.weight": A + 1,
        "q.lora_B.weight": torch.ones(4, 2),
    }
    found = sites(tmp_path, EMBEDDING | head, tied=tied)
    assert found == (["embed.weight", "q.weight"] if tied else ["embed.weight", "head.weight", "q.weight"])


@pytest.mark.parametrize(
    "head",
    [
        {"head.lora_A.weight": A + 1, "head.lora_B.weight": B},
        {"head.lora_A.weight": A, "head.lora_B.weight": B + 1},
        {"head.lora_A.weight": A[:, :3].contiguous(), "head.lora_B.weight": B},
        {"head.lora_A.weight": A, "head.lora_B.weight": B[:8].contiguous()},
    ],
    ids=["other A", "other B", "narrower", "shorter"],
)
def test_a_head_of_its_own_stays(tmp_path, head):
    assert sites(tmp_path, EMBEDDING | head) == ["embed.weight", "head.weight"]


def test_equal_values_of_a_shared_weight_count_once(tmp_path):
    whole = torch.randn(9, 4)
    tied = {"embed.modules_to_save.weight": whole, "head.modules_to_save.weight": whole.clone()}
    assert sites(tmp_path, tied) == ["embed.weight"]
    assert sites(tmp_path, tied, tied=False) == ["embed.weight", "head.weight"]
    other = {**tied, "head.modules_to_save.weight": whole + 1, "small.modules_to_save.weight": whole[:2].clone()}
    assert sites(tmp_path, other) == ["embed.weight", "head.weight", "small.weight"]
    biases = {"a.modules_to_save.bias": torch.ones(3), "b.modules_to_save.bias": torch.ones(3)}
    assert sites(tmp_path, biases) == ["a.bias", "b.bias"]
