import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_wsl.errors import ConfigError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.causal_lm import CausalLMModule
from lit_wsl.training.classification import SequenceClassificationModule


@pytest.fixture
def mesh():
    """A device mesh of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    dist.destroy_process_group()


def _language(llama_dir, **settings):
    mode = "lora" if settings.get("untie_embeddings") else "standard"  # tied embeddings cannot be adapted
    return CausalLMModule(str(llama_dir), LoraSpec(rank=2, embedding_mode=mode), **settings)


def _classifier(bert_dir):
    return SequenceClassificationModule(str(bert_dir), LoraSpec(rank=2), "linear", labels=["a", "b"])


def _batch():
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def test_the_backbone_has_one_name(bert_dir, llama_dir):
    language, classifier = _language(llama_dir), _classifier(bert_dir)
    assert language.backbone is language.model
    assert classifier.backbone is classifier.encoder


def test_without_a_mesh_nothing_is_sharded(llama_dir):
    module = _language(llama_dir)
    module.configure_model()
    assert not any(isinstance(part, FSDPModule) for part in module.modules())


@pytest.mark.parametrize("untie", [False, True])
def test_shards_compute_what_the_whole_computes(llama_dir, mesh, untie):
    whole, sharded = (_language(llama_dir, untie_embeddings=untie) for _ in range(2))
    sharded.load_state_dict(whole.state_dict())
    sharded._device_mesh = mesh
    sharded.configure_model()
    sharded.configure_model()  # Lightning asks again for every stage
    assert {name for name, part in sharded.named_modules() if isinstance(part, FSDPModule)} == {
        "model",
        "model.model.layers.0",
        "model.model.layers.1",
    }
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    losses = [module.training_step(_batch(), 0) for module in (whole, sharded)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters() if parameter.requires_grad}
    for name, parameter in sharded.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad.full_tensor(), expected[name])


def test_a_trained_head_is_sharded_too(bert_dir, mesh):
    module = _classifier(bert_dir)
    module._device_mesh = mesh
    module.configure_model()
    assert isinstance(module.head, FSDPModule)
    module.training_step(_batch() | {"labels": torch.tensor([1])}, 0).backward()
    assert all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)


def test_tensor_parallelism_is_refused(llama_dir):
    class Mesh:
        mesh_dim_names = ("data_parallel", "tensor_parallel")

        def __getitem__(self, name):
            return self

        def size(self):
            return 2

    module = _language(llama_dir)
    module._device_mesh = Mesh()
    with pytest.raises(ConfigError, match="`tensor_parallel_size = 1` must hold, got 2"):
        module.configure_model()
