"""Outputs of a base under an adapter against those of a fine-tuned model."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from lit_wsl.errors import CheckpointError
from lit_wsl.models.equivalence import compare_outputs
from tests.comparing.fine_tuned import extract, load, merged_lora, save
from tests.comparing.test_adapter_output import bert, llama, noise


@pytest.fixture(scope="module")
def tuned_pair(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pair")
    base = save(llama(tie_word_embeddings=False), root / "base")
    tuned = save(merged_lora(load(AutoModelForCausalLM, base), r=4, target_modules=["q_proj"]), root / "tuned")
    extract(base, tuned, root / "out")
    return base, tuned, root / "out" / "adapter"


def test_an_exact_adapter_agrees(tuned_pair):
    agreement = compare_outputs(*tuned_pair)
    assert agreement.compared == "logits"
    assert agreement.relative_error < 1e-5
    assert agreement.top1_agreement == 1.0
    assert agreement.base_error > 1000 * agreement.relative_error
    assert agreement.positions == 4 * 32 - 16
    assert "logits at 112 positions differ by" in agreement.sentence()
    assert compare_outputs(*tuned_pair) == agreement


def test_a_truncated_adapter_agrees_less(tuned_pair, tmp_path):
    base, tuned, _ = tuned_pair
    extract(base, tuned, tmp_path / "out", extraction="always", rank="2")
    agreement = compare_outputs(base, tuned, tmp_path / "out" / "adapter")
    assert 1e-3 < agreement.relative_error < agreement.base_error


def test_an_adapter_against_an_adapter(tuned_pair):
    base, _, adapter = tuned_pair
    assert compare_outputs(base, adapter, adapter).relative_error == 0.0


def test_an_encoder_is_compared_by_its_last_hidden_states(tmp_path):
    base = save(bert(), tmp_path / "base")
    tuned = save(merged_lora(load(AutoModel, base), r=2, target_modules=["value"]), tmp_path / "tuned")
    extract(base, tuned, tmp_path / "out")
    agreement = compare_outputs(base, tuned, tmp_path / "out" / "adapter", length=100)
    assert agreement.compared == "last hidden states"
    assert agreement.relative_error < 1e-5


def test_a_resized_vocabulary_is_compared_on_what_the_base_has(tmp_path):
    base = save(llama(tie_word_embeddings=True), tmp_path / "base")
    tuned = merged_lora(load(AutoModelForCausalLM, base), r=2, target_modules=["q_proj"])
    tuned.resize_token_embeddings(43, mean_resizing=False)
    noise(tuned.get_input_embeddings().weight)
    tuned = save(tuned, tmp_path / "tuned")
    extract(base, tuned, tmp_path / "out")
    assert compare_outputs(base, tuned, tmp_path / "out" / "adapter").relative_error < 1e-5


def test_large_models_and_others_are_refused_in_one_line(tuned_pair, tmp_path):
    with pytest.raises(CheckpointError, match="at most 0.0 GB may be used") as caught:
        compare_outputs(*tuned_pair, max_bytes=1000)
    assert "\n" not in str(caught.value)
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError):
        compare_outputs(tmp_path / "none", tuned_pair[1], tuned_pair[2])
