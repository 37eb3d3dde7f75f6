"""What our LightningModules share: a transformers backbone, trained whole or through LoRA."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.adapter_base import check_live_base, trained_base
from lit_wsl.models.adapter_start import start_from_adapter
from lit_wsl.models.architecture import tied_names
from lit_wsl.models.lora import LoraSpec, active_spec, check_saveable, inject_lora, save_adapter
from lit_wsl.models.sharded import gathered, is_spread
from lit_wsl.state.adapters import HEAD_FILE
from lit_wsl.state.locate import model_dir
from lit_wsl.state.publish import published_directory
from lit_wsl.state.writer import write_tensors
from lit_wsl.training.tokenizer import has_tokenizer, read_tokenizer
from lit_wsl.training.universal import UniversalCheckpoint


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-3."""
    return torch.optim.AdamW(parameters, lr=1e-3)


class BackboneModule(UniversalCheckpoint):
    """A transformers model under the attribute ``backbone_name``, with or without adapters.

    A subclass builds its backbone after ``super().__init__`` and then calls :meth:`_adapt`.

    Args:
        base_model: Where the backbone's base is; None if it has none on disk.
        lora: Adapters to train; without it, or if it adapts nothing, the whole backbone trains.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes a schedule from the optimizer, stepped every epoch.
    """

    backbone_name: ClassVar[str]
    """Attribute that holds the backbone."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of layers in the backbone that no output depends on."""

    def __init__(
        self,
        base_model: str | None,
        lora: LoraSpec | Mapping[str, Any] | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__()
        self.base_model = base_model
        self.lora = active_spec(lora)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    @property
    def backbone(self) -> PreTrainedModel:
        """The transformers model that adapters go into and checkpoints describe."""
        return getattr(self, self.backbone_name)

    def _adapt(self, adapter: Path | None) -> None:
        """Put adapters into the backbone, with the trained factors of a directory if one is given."""
        if adapter is not None:
            self.lora = start_from_adapter(self.backbone, self.lora, Path(adapter))
            self.hparams["lora"] = asdict(self.lora)  # a checkpoint makes the same adapters without the directory
        elif self.lora is not None:
            inject_lora(self.backbone, self.lora)

    def configure_model(self) -> None:
        """Under a device mesh, shard each block of the backbone, the backbone, and what else trains, once.

        Raises:
            ConfigError: If the mesh asks for tensor parallelism.
        """
        mesh = self.device_mesh
        if mesh is None:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(self.backbone, FSDPModule):  # Lightning calls this for every stage
            return
        if "tensor_parallel" in (mesh.mesh_dim_names or ()) and mesh["tensor_parallel"].size() > 1:
            raise ConfigError(
                f"`tensor_parallel_size = 1` must hold, got {mesh['tensor_parallel'].size()}; "
                "raise `data_parallel_size` instead."
            )
        others = [module for module in self.children() if module is not self.backbone and _is_trained(module)]
        for module in (*_blocks(self.backbone), self.backbone, *others):
            fully_shard(module, mesh=mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the named trainable parameters, with its schedule if there is one."""
        optimizer = self.optimizer([(n, p) for n, p in self.named_parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler: Any = self.lr_scheduler(optimizer)
        monitor = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}

    def check_saveable(self) -> None:
        """Refuse adapters that :meth:`save_pretrained` could not save, before any work is done.

        Raises:
            CheckpointError: If they fit no base on disk.
        """
        if self.lora is None:
            return
        check_saveable(self.lora)
        if self.base_model is None:
            raise CheckpointError(
                "The base of these adapters is a configuration with random weights, so no adapter can be saved; "
                "keep a checkpoint and run `lit-wsl export CKPT --format hf`."
            )

    def check_base(self) -> None:
        """Refuse adapters on other weights than their base's, which :meth:`save_adapter` could not save.

        A checkpoint brings such weights along, for instance one of another rank, whose update is then part of them.
        Where the weights are sharded every process must call it.

        Raises:
            CheckpointError: If a tensor under the adapters is not the base's, or trains.
        """
        if self.lora is None:
            return
        self.check_saveable()
        trained = trained_base(self.backbone)
        if trained:
            raise CheckpointError(
                f"{len(trained)} tensors under the adapters train too, first {trained[0]!r}, and an adapter cannot "
                "hold them; freeze them, or keep a checkpoint and run `lit-wsl export CKPT --format hf`."
            )
        check_live_base(self.backbone, str(self.base_model), self.unread)

    def save_adapter(self, directory: Path) -> None:
        """Write the adapters as a PEFT directory, with the head, if there is one, in ``head.safetensors``.

        Where the weights are sharded every process must call it; the first one writes.

        Raises:
            ConfigError: If the module trains without LoRA.
            CheckpointError: If the adapters fit no base on disk, or the directory cannot be written.
        """
        if self.lora is None:
            raise ConfigError("No adapter to save: the module trains without `lora`; use `save_pretrained`.")
        self.check_saveable()
        assert self.base_model is not None
        save_adapter(
            self.backbone,
            self.lora,
            directory,
            self.base_model,
            self._head_state(),
            self._head_metadata(),
            unread=self.unread,
            write=self.global_rank == 0,
        )

    def save_pretrained(self, directory: Path) -> None:
        """Write what was trained: a PEFT directory with LoRA, else backbone and tokenizer in HF's layout.

        Where the weights are sharded every process must call it; the first one writes.

        Raises:
            CheckpointError: If the adapters fit no base on disk, or the directory cannot be written.
        """
        if self.lora is not None:
            self.save_adapter(directory)
            return
        write = self.global_rank == 0
        head = self._head_state()
        head = None if head is None else gathered(head, keep=write)
        state = _shards_in_one(self.backbone, keep=write)
        if not write:
            return
        with published_directory(Path(directory), overwrite=True) as scratch:
            self.backbone.save_pretrained(scratch, state_dict=state)
            self._save_tokenizer(scratch)
            if head is not None:
                write_tensors(scratch / HEAD_FILE, head, self._head_metadata())

    def _save_tokenizer(self, directory: Path) -> None:
        """Write the base's tokenizer, if it has one."""
        if self.base_model is None:
            return
        base = model_dir(self.base_model)
        if has_tokenizer(base):
            read_tokenizer(base).save_pretrained(directory)

    def _head_state(self) -> Mapping[str, Tensor] | None:
        """Tensors of a task head that the backbone has no place for."""
        return None

    def _head_metadata(self) -> Mapping[str, str] | None:
        """What a reader must know of that head."""
        return None


class MeasuredModule(BackboneModule):
    """A backbone with metrics for ``val`` and ``test``, of all processes, empty at the start of each epoch.

    A subclass makes them by :meth:`_make_metrics` and takes a batch in by :meth:`_update`.
    """

    metrics: nn.ModuleDict

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log every metric as ``val/NAME``."""
        self._measure("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log every metric as ``test/NAME``."""
        self._measure("test", batch)

    def on_validation_epoch_start(self) -> None:
        """Empty the metrics."""
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        """Empty the metrics."""
        self._reset("test")

    def _make_metrics(self) -> dict[str, Metric]:
        """Empty metrics by their names."""
        raise NotImplementedError

    def _update(self, metrics: Any, batch: Any) -> None:
        """Take a batch into the metrics."""
        raise NotImplementedError

    def _metrics_by_stage(self) -> nn.ModuleDict:
        return nn.ModuleDict({stage: nn.ModuleDict(self._make_metrics()) for stage in ("val", "test")})

    def _measure(self, stage: Literal["val", "test"], batch: Any) -> None:
        metrics: Any = self.metrics[stage]
        self._update(metrics, batch)
        for name, metric in metrics.items():
            self.log(f"{stage}/{name}", metric, prog_bar=True, batch_size=len(batch["labels"]))

    def _reset(self, stage: Literal["val", "test"]) -> None:
        # What Lightning resets at the end of `validate` are inference tensors, which `fit` cannot add to.
        metrics: Any = self.metrics[stage]
        for metric in metrics.values():
            metric.reset()


def _shards_in_one(backbone: PreTrainedModel, *, keep: bool) -> dict[str, Tensor] | None:
    """The weights of a sharded backbone in one piece, tied ones once; None for one that is not sharded."""
    duplicates, state = tied_names(backbone), backbone.state_dict()
    if not any(is_spread(tensor) for tensor in state.values()):
        return None
    return gathered({name: tensor for name, tensor in state.items() if name not in duplicates}, keep=keep)


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """Entries of the module list with the most parameters."""
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in blocks.parameters()) for blocks in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
