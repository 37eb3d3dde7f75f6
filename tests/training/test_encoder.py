import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from lit_wsl.errors import CheckpointError
from lit_wsl.training.encoder import PromptHead, class_prototypes, embed, load_head, mean_pool


def test_prompt_head_is_the_scaled_cosine():
    embeddings, prototypes = torch.randn(5, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    e, p = embeddings.numpy(), prototypes.numpy()
    norms = np.linalg.norm(e, axis=1)[:, None] * np.linalg.norm(p, axis=1)[None, :]
    expected = torch.from_numpy(20 * (e @ p.T) / norms)
    torch.testing.assert_close(PromptHead(prototypes)(embeddings), expected)


def test_prompt_head_trains_nothing_but_is_saved():
    head = PromptHead(torch.eye(3))
    assert not list(head.parameters())
    assert set(head.state_dict()) == {"prototypes"}


def test_mean_pool_ignores_padding():
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    torch.testing.assert_close(mean_pool(hidden, mask), expected)


def test_mean_pool_of_no_token_is_zero():
    assert mean_pool(torch.randn(1, 4, 3), torch.zeros(1, 4)).eq(0).all()


def test_embeddings_are_unit_length_and_independent_of_padding(bert_dir):
    encoder = AutoModel.from_pretrained(bert_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(bert_dir)
    together = embed(encoder, tokenizer(["a film", "this is a great song"], padding=True, return_tensors="pt"))
    alone = embed(encoder, tokenizer(["a film"], return_tensors="pt"))
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(together[:1], alone)


def test_prototypes_keep_the_encoder_in_its_mode(bert_dir):
    encoder = AutoModel.from_pretrained(bert_dir).train()
    tokenizer = AutoTokenizer.from_pretrained(bert_dir)
    first = class_prototypes(encoder, tokenizer, ["good film", "bad film"])
    torch.testing.assert_close(first, class_prototypes(encoder, tokenizer, ["good film", "bad film"]))
    assert encoder.training
    assert not first.requires_grad


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(3), "bias": torch.zeros(3)},
        {"weight": torch.zeros(3, 4), "bias": torch.zeros(2)},
        {"prototypes": torch.zeros(3)},
        {"other": torch.zeros(3)},
    ],
)
def test_a_file_that_is_no_head_is_one_line(tmp_path, tensors):
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.safetensors holds no head"):
        load_head(tmp_path / "head.safetensors")
