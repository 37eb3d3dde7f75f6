"""Universal checkpoints of models whose weights are spread over processes (FSDP2)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_wsl.models.sharded import EXPORT_FILE, is_sharded_checkpoint, read_metadata
from lit_wsl.models.universal.api import find_layout, remap_state
from lit_wsl.models.universal.fold import MergedDtype, dtype_of_merged, fold_state
from lit_wsl.models.universal.layout import AdaptedLayer, Layout
from lit_wsl.models.universal.sidecar import describe_layers, unpack
from lit_wsl.state.formats import strip_wrappers
from lit_wsl.state.safetensors import TensorInfo
from lit_wsl.state.writer import ShardedWriter
from lit_wsl.training.checkpoint_io import read_checkpoint
from lit_wsl.training.resume import MatchedState
from lit_wsl.training.shard_index import check_runs_no_code, told_as_damage
from lit_wsl.training.universal import RESUME_KEY, Resume


class UniversalModelParallelStrategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` (FSDP2), whose checkpoints load into any adapter configuration.

    A full checkpoint (``save_distributed_checkpoint=False``) is a universal one like any other. A sharded one
    keeps the raw shards, from which every configuration resumes, and beside them the merged weights in
    ``model.safetensors``, gathered one layer at a time, for everything else that reads weights. Either kind is written
    beside the earlier one and takes its place when it is whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; every process must call it."""
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        state = checkpoint["state_dict"]
        partial, replaced = (path.with_name(path.name + end) for end in (".partial", ".replaced"))
        if self.is_global_zero:
            rmtree(partial, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, partial)
        assert self.lightning_module is not None
        merged_dtype: MergedDtype = getattr(self.lightning_module, "merged_dtype", "auto")
        layout = find_layout(self.lightning_module)
        export_sharded(state, layout, partial if self.is_global_zero else None, merged_dtype)
        self.barrier()
        if self.is_global_zero:
            rmtree(replaced, ignore_errors=True)
            if path.exists():
                path.rename(replaced)
            partial.rename(path)
            rmtree(replaced, ignore_errors=True)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: FBT001
        """Load weights and optimizers of any checkpoint into the sharded model; every process must call it.

        Args:
            checkpoint_path: A checkpoint of any strategy.
            weights_only: False trusts the shards and lets them run code.

        Returns:
            The rest of the checkpoint.

        Raises:
            CheckpointError: If a file is damaged or would run code, or the weights do not fit the model.
        """
        path = Path(self.broadcast(checkpoint_path))
        module = self.lightning_module
        assert module is not None
        layout = find_layout(module)
        if is_sharded_checkpoint(path):
            content = read_metadata(path)
            if unpack(content).signatures == describe_layers(layout)["signatures"]:
                if weights_only is not False:
                    check_runs_no_code(path)
                with told_as_damage(path):
                    super().load_checkpoint(path, weights_only=True)
                content[RESUME_KEY] = _everything_restored(content, len(self.optimizers))
                return content
        content = read_checkpoint(path)
        content[RESUME_KEY] = self._load_full(module, layout, content, str(path))
        return content

    def _load_full(self, module: LightningModule, layout: Layout, content: dict[str, Any], where: str) -> Resume:
        """Cut full weights and optimizer states, which are taken out of ``content``, into this process's shards."""
        current = {key: _shape_or_values(key, tensor, layout) for key, tensor in module.state_dict().items()}
        strict, saved = module.strict_loading, unpack(content)
        unfolded = remap_state(module, content.pop("state_dict"), saved, current=current, strict=strict, where=where)
        known: dict[str, Any] = {key: tensor for key, tensor in unfolded.state.items() if not tensor.is_meta}
        set_model_state_dict(module, known, options=StateDictOptions(full_state_dict=True, strict=strict))
        resume = Resume(content, unfolded.fresh)
        states = content.pop("optimizer_states", [])
        for number, (optimizer, state) in enumerate(zip(self.optimizers, states, strict=False)):
            matched = resume.match(module, number, optimizer, state, place=like_parameter)
            optimizer.load_state_dict(matched.state)
        return resume


def _everything_restored(content: dict[str, Any], optimizers: int) -> Resume:
    resume = Resume(content, frozenset())
    resume.matched = {number: MatchedState({}, [], 0, same_groups=True) for number in range(optimizers)}
    return resume


def like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor of optimizer state, cut into the shards of its parameter; scalars stay whole."""
    if not isinstance(parameter, DTensor) or value.ndim == 0:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def export_sharded(
    state: Mapping[str, Tensor], layout: Layout, directory: Path | None, merged_dtype: MergedDtype = "auto"
) -> None:
    """Write the merged weights of a sharded state dict, holding one layer in full at a time.

    Args:
        state: Sharded state dict; every process passes its own.
        layout: The adapted layers.
        directory: Gets ``model.safetensors``; None on the processes that only contribute their shards.
        merged_dtype: Dtype of merged weights.

    Raises:
        CheckpointError: If a merged weight is not finite.
    """
    state = {strip_wrappers(key): tensor for key, tensor in state.items()}
    if directory is None:
        for _, part in _by_layer(state, layout):
            _gathered(part)
        return
    infos = _planned(state, layout, merged_dtype)
    with ShardedWriter(directory, infos, stem=Path(EXPORT_FILE).stem, shard_bytes=1 << 62) as writer:
        for layer, part in _by_layer(state, layout):
            alone = Layout([layer] if layer else [], layout.containers)
            plain = fold_state(_gathered(part), alone, merged_dtype=merged_dtype).state
            for key, tensor in plain.items():
                writer.write(key, tensor)
                writer.finish(key)


def _by_layer(state: Mapping[str, Tensor], layout: Layout) -> Iterator[tuple[AdaptedLayer | None, dict[str, Tensor]]]:
    """The tensors of each adapted layer together, every other one by itself; in one order on all processes."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer = layout.owner(key)
        groups.setdefault(layer.name if layer else key, {})[key] = tensor
    for name, part in groups.items():
        yield layout.layers.get(name), part


def _gathered(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: t.full_tensor() if isinstance(t, DTensor) else t for key, t in part.items()}


def _planned(state: Mapping[str, Tensor], layout: Layout, merged_dtype: MergedDtype) -> dict[str, TensorInfo]:
    infos = {}
    for key, tensor in state.items():
        plain, layer = layout.plain(key), layout.owner(key)
        if plain is None:
            continue
        changed = layer is not None and layer.parts and key in (layer.weight, layer.bias if _shifts(layer) else "")
        dtype = dtype_of_merged(tensor.dtype, merged_dtype) if changed else tensor.dtype
        infos[plain] = TensorInfo(tuple(tensor.shape), dtype)
    return infos


def _shifts(layer: AdaptedLayer) -> bool:
    return any(part.shift for part in layer.parts)


def _shape_or_values(key: str, tensor: Tensor, layout: Layout) -> Tensor:
    """The values of an adapter's own tensor, the mere shape of any other."""
    if layout.plain(strip_wrappers(key)) is None:
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
