"""Checkpoints with plain keys and merged weights, which resume in any adapter configuration."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lit_wsl.models.sharded import is_spread
from lit_wsl.models.universal.api import check_adapters, find_layout, remap_state
from lit_wsl.models.universal.fold import MergedDtype, fold_state, tied_groups
from lit_wsl.models.universal.layout import Layout
from lit_wsl.models.universal.sidecar import SIDECAR_KEY, VERSION, Kind, describe_layers, pack, unpack
from lit_wsl.state.formats import strip_wrappers
from lit_wsl.state.publish import check_writable
from lit_wsl.training.checkpoint_io import is_remote, use_atomic_io
from lit_wsl.training.configuration import make_plain, run_configuration
from lit_wsl.training.resumable import enter_next_epoch, loader_states, mark_position
from lit_wsl.training.resume import (
    MatchedState,
    continue_schedule,
    describe,
    gather_random_states,
    match_state,
    names_in_sidecar,
    names_in_state,
    parameter_names,
    set_random_state,
)

STATE_KEYS = ("state_dict", "current_model_state")
"""State dicts in a checkpoint; the second is that of Lightning's weight averaging callbacks."""

_AVERAGE = "average_model_state"
"""Where Lightning's stochastic weight averaging keeps its state dict."""
RESUME_KEY = "_resume"
"""Entry of a checkpoint in memory: what a strategy that loads weights itself has already restored."""

_FRESH_OPTIMIZER = (
    "Could not load all optimizer state from the checkpoint: {kept} of {total} parameters fit by name and shape.\n"
    "   This is expected when switching between LoRA and non-LoRA models, or between ranks.\n"
    "   The rest will start fresh with the configured learning rate."
)


class UniversalCheckpoint(LightningModule):
    """Mixin for a LightningModule whose checkpoints load into any adapter configuration.

    ``state_dict`` in every checkpoint has plain keys and merged weights, so it loads into the model without
    adapters; a side-car restores the same configuration exactly. Put it in front of the base class:
    ``class MyModule(UniversalCheckpoint, LightningModule)``. A subclass that overrides one of these hooks must call
    ``super()``.
    """

    sidecar: Kind = "exact"
    """``exact`` restores the same configuration bit by bit at the cost of one copy of the adapted weights,
    ``factors`` up to rounding without that copy, ``none`` keeps merged weights only."""
    merged_dtype: MergedDtype = "auto"
    """Dtype of merged weights; see :func:`lit_wsl.get_merged_state_dict`."""

    def setup(self, stage: str) -> None:
        """Refuse adapters that no plain checkpoint can hold, before any training."""
        super().setup(stage)
        prepare(self, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fold the adapters into the checkpoint's weights; the model stays as it is."""
        super().on_save_checkpoint(checkpoint)
        make_universal(self, checkpoint, self.sidecar, self.merged_dtype)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the weights of any checkpoint the keys of this module, and let the run go on from there."""
        super().on_load_checkpoint(checkpoint)
        fit_to_module(self, checkpoint)


def prepare(module: LightningModule, trainer: Trainer) -> None:
    """Check the adapters of a module and the folders of checkpoints, and let the trainer write these atomically.

    Raises:
        CheckpointError: If no plain checkpoint can hold the adapters, or a checkpoint would have no place.
    """
    check_adapters(module)
    if trainer.state.fn == TrainerFn.FITTING and not getattr(trainer, "fast_dev_run", False):
        folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
        for folder in (folder for folder in folders if folder and not is_remote(folder)):
            check_writable(Path(folder))
    use_atomic_io(trainer)


def make_universal(
    module: LightningModule, checkpoint: dict[str, Any], sidecar: Kind, merged_dtype: MergedDtype
) -> None:
    """Turn a checkpoint that Lightning made into a universal one, in place.

    Every process must call it. Those that hold no full state dict add nothing.

    Raises:
        CheckpointError: If a merged weight is not finite, or tied weights would differ.
    """
    trainer = module._trainer
    random_states = gather_random_states()
    if trainer is not None:
        mark_position(trainer, checkpoint)
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        if key in checkpoint:
            checkpoint[key] = make_plain(checkpoint[key], key)
    if not checkpoint["state_dict"] or (trainer is not None and not trainer.is_global_zero):
        return  # this process writes nothing
    layout = find_layout(module)
    meta: dict[str, Any] = {
        "version": VERSION,
        "sidecar": sidecar,
        "configuration": json.dumps(run_configuration(module, layout)),
        "random": random_states,
        "layers": {},
    }
    if trainer is not None and "optimizer_states" in checkpoint:
        names = [parameter_names(module, layout, optimizer) for optimizer in trainer.optimizers]
        meta["optimizers"] = json.dumps([asdict(group) for group in names])
    if any(map(is_spread, checkpoint["state_dict"].values())):
        meta["layers"]["state_dict"] = describe_layers(layout)
    else:
        for holder, key, name in _states(checkpoint):
            folded = fold_state(holder[key], layout, tied_groups(module), merged_dtype)
            holder[key], meta["layers"][name] = folded.state, pack(folded, layout, sidecar)
    checkpoint[SIDECAR_KEY] = meta


def _states(checkpoint: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every state dict of the module in a checkpoint: what holds it, its key there, and its name in the side-car."""
    for key in STATE_KEYS:
        if key in checkpoint:
            yield checkpoint, key, key
    for name, state in (checkpoint.get("callbacks") or {}).items():
        if isinstance(state, dict) and isinstance(state.get(_AVERAGE), Mapping):
            yield state, _AVERAGE, f"callbacks.{name}"


def fit_to_module(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint the keys of a module, in place, and arrange for the rest of its state.

    Raises:
        CheckpointError: If the weights do not fit the module's architecture.
    """
    resume = checkpoint.pop(RESUME_KEY, None)
    fresh: frozenset[str] = frozenset() if resume is None else resume.fresh
    trainer: Any = module._trainer
    where = str((trainer and trainer.ckpt_path) or "The checkpoint")
    for holder, key, name in _states(checkpoint):
        saved = unpack(checkpoint, name)
        unfolded = remap_state(module, holder[key], saved, strict=module.strict_loading, where=where)
        holder[key], fresh = unfolded.state, unfolded.fresh
        if unfolded.missing:
            rank_zero_warn(f"{len(unfolded.missing)} keys are not in {where}: {list(unfolded.missing)[:20]}")
    if fresh:
        rank_zero_info(f"Universal checkpoint: the adapters of {len(fresh)} layers start fresh on merged weights.")
    checkpoint.setdefault("optimizer_states", [])
    checkpoint.setdefault("lr_schedulers", [])
    if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
        resume = resume or Resume(checkpoint, fresh)
        checkpoint["lr_schedulers"] = []  # restored at the start of training, when the optimizers are
        trainer.callbacks = [*(c for c in trainer.callbacks if not isinstance(c, Resume)), resume]
        if trainer.strategy.restore_checkpoint_after_setup:  # `on_fit_start` is over by then
            resume.restore_random(trainer)


class Resume(Callback):
    """Restores optimizers, schedules and random numbers of one run, then takes itself off the trainer.

    Args:
        checkpoint: A universal checkpoint, or any other.
        fresh: Layers whose adapters start anew, and with them their optimizer state.
    """

    def __init__(self, checkpoint: Mapping[str, Any], fresh: frozenset[str]) -> None:
        meta = checkpoint.get(SIDECAR_KEY, {})
        self._names = names_in_sidecar(meta)
        self._random = meta.get("random", [])
        self._schedules = checkpoint["lr_schedulers"]
        self._loaders = loader_states(dict(checkpoint))
        self.fresh = fresh
        self._hooks: list[Any] = []
        self.matched: dict[int, MatchedState] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore random numbers before the first draw, and stand between the optimizers and their saved state."""
        self.restore_random(trainer)
        for number, optimizer in enumerate(trainer.optimizers):

            def match(optimizer: Optimizer, saved: dict[str, Any], number: int = number) -> dict[str, Any]:
                return self.match(pl_module, number, optimizer, saved).state

            self._hooks.append(optimizer.register_load_state_dict_pre_hook(match))

    def restore_random(self, trainer: Trainer) -> None:
        """Put this process's random generators where they were, if the run has as many processes as before."""
        if len(self._random) == trainer.world_size:
            set_random_state(self._random[trainer.global_rank])

    def match(
        self, module: LightningModule, number: int, optimizer: Optimizer, saved: dict[str, Any], **options: Any
    ) -> MatchedState:
        """What fits of the saved state of the optimizer of that number; see :func:`match_state`."""
        layout = find_layout(module)
        theirs = self._names[number] if number < len(self._names) else names_in_state(saved, layout)
        ours = parameter_names(module, layout, optimizer)
        matched = match_state(optimizer, saved, theirs, ours, self._anew(module, layout), **options)
        self.matched[number] = matched
        rank_zero_info(describe(matched.kept, matched.total))
        if not matched.complete:
            rank_zero_warn(_FRESH_OPTIMIZER.format(kept=len(matched.kept), total=matched.total))
        return matched

    def _anew(self, module: LightningModule, layout: Layout) -> set[str]:
        """Raw names of the parameters of adapters that start anew."""
        raw = (strip_wrappers(name) for name, _ in module.named_parameters())
        owned = ((name, layout.owner(name)) for name in raw if layout.plain(name) is None)
        return {name for name, layer in owned if layer is not None and layer.name in self.fresh}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the schedules, now that the optimizers are, and the order of a new epoch."""
        enter_next_epoch(trainer, self._loaders)
        self._finish(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The same for a run that was over when it was resumed, and never started."""
        self._finish(trainer)

    def _finish(self, trainer: Any) -> None:
        """Restore the schedules; then leave the trainer as it was."""
        for config, saved in zip(trainer.lr_scheduler_configs, self._schedules, strict=False):
            optimizer = getattr(config.scheduler, "optimizer", None)
            number = next((i for i, known in enumerate(trainer.optimizers) if known is optimizer), -1)
            matched = self.matched.get(number)
            if matched is not None and matched.same_groups:
                config.scheduler.load_state_dict(saved)
            else:
                known = self._names[number].rate if 0 <= number < len(self._names) else 0.0
                continue_schedule(config.scheduler, saved, known)
        for hook in self._hooks:
            hook.remove()
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]
