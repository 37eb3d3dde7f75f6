"""Universal checkpoints of small transformers models, made without a Trainer."""

import torch
from lightning.pytorch import LightningModule
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lit_wsl.training.universal import UniversalCheckpoint, make_universal
from tests.models.universal.build import shake

TOKENS = torch.arange(24).reshape(2, 12) * 7 % 16


class Module(UniversalCheckpoint, LightningModule):
    """A language model under `model`, that remembers where its base is."""

    def __init__(self, model, **others):
        super().__init__()
        self.save_hyperparameters({"model": str(model)})
        self.model = AutoModelForCausalLM.from_pretrained(model)
        for name, value in others.items():
            setattr(self, name, value)


class Classifier(UniversalCheckpoint, LightningModule):
    """A BERT under `encoder`, and a linear head."""

    def __init__(self, model):
        super().__init__()
        self.save_hyperparameters({"model": str(model), "head": "linear", "labels": ["no", "yes"]})
        self.encoder = AutoModel.from_pretrained(model)
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)


def write_gpt2(directory):
    """Weights and configuration of a tiny GPT-2, which has Conv1D layers and tied embeddings."""
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    return directory


def adapt(model, **settings):
    """Inject PEFT adapters whose factors are not zero."""
    return shake(inject_adapter_in_model(LoraConfig(**settings), model))


def save(module, path, sidecar="exact", merged_dtype="auto"):
    """What a Trainer would save, without optimizers."""
    content = {
        "state_dict": module.state_dict(),
        "pytorch-lightning_version": "2.6.6",
        "epoch": 3,
        "global_step": 40,
        "hyper_parameters": dict(module.hparams),
    }
    make_universal(module, content, sidecar, merged_dtype)
    torch.save(content, path)
    return path


@torch.no_grad()
def output(model):
    """Logits, or hidden states of a model without a head, in evaluation mode."""
    out = model.eval()(input_ids=TOKENS)
    return out.logits if "logits" in out else out.last_hidden_state
