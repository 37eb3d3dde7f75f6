"""Run by two processes: `torchrun --nproc_per_node 2 -m tests.callbacks.weight_map_processes FOLDER`."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from lit_wsl.callbacks.weight_map_init import WeightMapInit
from tests.callbacks.foreign import Classifier, trainer


def main():
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    torch.manual_seed(int(rank))  # each process begins with other weights
    module, init = Classifier(), WeightMapInit(checkpoint=folder / "hf.safetensors", module="model")
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer(folder, init, devices=2, strategy=strategy, limit_train_batches=0).fit(module)
    torch.save(module.model.state_dict(), folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
