"""Run by two processes: `torchrun --nproc_per_node 2 -m tests.training.distributed FOLDER`."""

import json
import os
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import lit_wsl
from lit_wsl.callbacks.save_adapter import SaveAdapter
from lit_wsl.errors import CheckpointError
from lit_wsl.models.lora_spec import LoraSpec
from lit_wsl.training.causal_lm import CausalLMModule
from lit_wsl.training.parallel import UniversalModelParallelStrategy
from tests.models.universal.build import llama, logits
from tests.training.build import Universal

SAVED = {"adapter": LoraSpec(rank=2), "whole": None}
"""Directory to the adapters of the module that is saved there."""


class Sharded(Universal):
    """The module with each block of its model spread over the processes."""

    def configure_model(self):
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if self.device_mesh is None or isinstance(self.model, FSDPModule):
            return
        for block in self.model.model.layers:
            fully_shard(block, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


def strategy(kind):
    if kind == "ddp":
        return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    return UniversalModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=kind == "sharded"
    )


def trainer(folder, kind, epochs, **settings):
    return lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy(kind),
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def data():
    return DataLoader((torch.arange(16 * 8).reshape(16, 8) * 5) % 256, batch_size=2, shuffle=True)


def run(folder, kind, name, epochs, ckpt_path=None, save=None):
    """Fit a configuration; returns the module and its logits before the first step."""
    torch.manual_seed(0)
    module, seen = Sharded(name), []

    def look():
        seen.append(logits(module.model))
        seen.append(len(module.optimizers().optimizer.state))
        seen.append([group["lr"] for group in module.optimizers().param_groups][0])

    module.on_train_start = look
    runner = trainer(folder, kind, epochs)
    runner.fit(module, data(), ckpt_path=ckpt_path)
    if save:
        runner.save_checkpoint(save)
    return module, *seen


class Rows(CausalLMModule):
    """A language model of ours that takes bare rows of tokens."""

    def training_step(self, batch, batch_idx):
        return super().training_step({"input_ids": batch, "labels": batch}, batch_idx)


def save_at_the_end(folder, name, lora, **settings):
    """Fit a sharded module with the callback that saves it, and leave its logits; returns the words of an error."""
    torch.manual_seed(0)
    module = Rows(str(folder / "base"), lora)
    runner = trainer(folder, "sharded", 1, callbacks=[SaveAdapter(folder / name)])
    try:
        runner.fit(module, data(), **settings)
    except CheckpointError as error:
        return str(error)
    if not settings:
        runner.save_checkpoint(folder / f"{name}.ckpt")
    out = logits(module.model)
    if runner.is_global_zero:
        torch.save(out, folder / f"{name}.pt")
    return ""


def main():
    folder, kinds = Path(sys.argv[1]), ("ddp", "full", "sharded")
    results = {}
    for kind in kinds:
        path = folder / f"{kind}.ckpt"
        whole = run(folder, kind, "r16", 2)[0]
        first = run(folder, kind, "r16", 1, save=path)[0]
        expected = logits(first.model)
        for name in ("r16", "r32", "standard"):
            module, before, moments, rate = run(folder, kind, name, 2, ckpt_path=path)
            error = (before - expected).abs().max().item()
            results[f"{kind} {name}"] = {"error": error, "steps": len(module.losses), "moments": moments, "lr": rate}
            if name == "r16":
                results[f"{kind} exact"] = module.losses == whole.losses[4:]
        state = lit_wsl.get_merged_state_dict(path / "model.safetensors" if kind == "sharded" else path)
        plain = llama()
        plain.load_state_dict({key.removeprefix("model."): tensor for key, tensor in state.items()}, strict=True)
        results[f"{kind} plain"] = (logits(plain) - expected).abs().max().item()
        run(folder, kind, "fewer", 1, save=path)  # over the earlier one
        results[f"{kind} partial"] = run(folder, kind, "r16", 2, ckpt_path=path)[2]
    for source in kinds:
        for kind in kinds:
            module, _, moments, _ = run(folder, kind, "fewer", 2, ckpt_path=folder / f"{source}.ckpt")
            results[f"{source} to {kind}"] = {"moments": moments, "losses": module.losses}
    results["saved"] = [save_at_the_end(folder, name, lora) for name, lora in SAVED.items()]
    earlier = {"ckpt_path": folder / "adapter.ckpt"}
    results["same rank"] = save_at_the_end(folder, "again", SAVED["adapter"], **earlier)
    results["another rank"] = save_at_the_end(folder, "other", LoraSpec(rank=4), **earlier)
    (folder / f"results{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
