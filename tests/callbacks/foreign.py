"""A user's own module in the layout of timm, and checkpoints of the same function in the layout of transformers."""

import lightning
import torch
from safetensors.torch import save_file
from torch.nn import functional
from torch.utils.data import DataLoader

from tests.mapper.pairs.pair import randomise
from tests.mapper.pairs.vision_pairs import vit_hf, vit_timm


class Classifier(lightning.LightningModule):
    """Classifies images by any model."""

    def __init__(self, build=vit_timm):
        super().__init__()
        self.model = build(True)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return functional.cross_entropy(self.model(images), labels)

    def test_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        rows = [(torch.randn(3, 24, 24, generator=generator), number % 7) for number in range(8)]
        return DataLoader(rows, batch_size=4)

    test_dataloader = train_dataloader


def write(path, build=vit_hf, **changes):
    """A checkpoint of random weights; returns its model."""
    model = build(True).eval()
    randomise(model)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()} | changes
    save_file(state, path) if path.suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    return model


def trainer(folder, *callbacks, **settings):
    """A plain trainer without output."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **(quiet | settings),
    )
