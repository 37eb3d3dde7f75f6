"""A small language model that trains with LoRA, dropout and shuffled data in any configuration."""

import lightning
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_wsl.training.universal import UniversalCheckpoint
from tests.models.universal.build import CONFIGURATIONS, adapted


def settings_of(name):
    """The named configuration with dropout on the adapters."""
    settings = CONFIGURATIONS[name]
    dora_or_none = settings is None or "embed_tokens" in settings["target_modules"]
    return settings if dora_or_none else {**settings, "lora_dropout": 0.1}


class Plain(lightning.LightningModule):
    """A module that knows nothing of universal checkpoints; ``losses`` grows with every step."""

    def __init__(self, name="standard", lr=1e-2, interval="step"):
        super().__init__()
        self.model = adapted(settings_of(name))
        self.dropout = torch.nn.Dropout(0.1)
        self.lr, self.interval = lr, interval
        self.losses = []

    def training_step(self, batch, _):
        logits = self.dropout(self.model(input_ids=batch).logits)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, _):
        self.log("val/loss", self.model(input_ids=batch, labels=batch).loss)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW([(n, p) for n, p in self.named_parameters() if p.requires_grad], lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


class Universal(UniversalCheckpoint, Plain):
    """The same with universal checkpoints."""


def batches(rows=10, size=2):
    """Shuffled rows of tokens."""
    return DataLoader((torch.arange(rows * 8).reshape(rows, 8) * 5) % 256, batch_size=size, shuffle=True)


def trainer(folder, **settings):
    """A quiet trainer on the CPU."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, enable_model_summary=False, **(quiet | settings)
    )


def train(folder, module, epochs, ckpt_path=None, **settings):
    """Fit, and save to ``last.ckpt``."""
    runner = trainer(folder, max_epochs=epochs, **settings)
    runner.fit(module, batches(), ckpt_path=ckpt_path)
    runner.save_checkpoint(folder / "last.ckpt")
    return runner
