"""The folder that a page runs in: everything that it names, small and real."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from lit_wsl.cli.main import run
from lit_wsl.training.figures import figure_model, write_figures
from tests.docs.blocks import ROOT
from tests.docs.shell import captured, quick
from tests.docs.stand_ins import MODEL, TASKS, train_adapter, write_package, write_tasks
from tests.mapper.pairs.pair import randomise
from tests.mapper.pairs.vision_pairs import vit_hf
from tests.merging.build import folded, save_adapter, save_tuned
from tests.tiny_bert import write_tiny_bert
from tests.tiny_llama import write_untied_llama


def _lora_checkpoint(path: Path) -> None:
    _written("BASE")
    settings = ["--ckpt_path=null", "--model.model=BASE", "--trainer.max_epochs=1"]
    folder = f"--trainer.callbacks.dirpath={path.parent}"
    words = ["fit", "--config", "lora_rank_16", *settings, folder]
    code, _, told = captured(lambda: run(quick(words)), Path())
    assert code == 0, told


def _tuned_llama(path: Path) -> None:
    _written("BASE")
    model = save_adapter(Path("BASE"), Path("adapter"), 3, load=AutoModelForCausalLM.from_pretrained, **_ATTENTION)
    weights = folded(model)
    tuned = AutoModelForCausalLM.from_pretrained("BASE")
    tuned.load_state_dict(weights, strict=False)
    tuned.save_pretrained(path)


_ATTENTION = {"target_modules": ["q_proj", "v_proj"]}


def _deep_llama(path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 32}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=24)).save_pretrained(path)


def _demo_adapter(path: Path) -> None:
    train_adapter(path.name, path)


def _adapter(path: Path) -> None:
    _written("DIR")
    save_adapter(Path("DIR"), path, "ABC".index(path.name))


def _tuned(path: Path) -> None:
    _written("DIR")
    save_tuned(Path("DIR"), path, int(path.name[-1]))


def _image_text(path: Path) -> None:
    values = figure_model("alternating" if path.name == "llava" else path.name)
    if path.name == "llava":
        from transformers import LlavaOnevisionConfig

        text = _plain(values["text_config"]) | {"model_type": "qwen2"}
        config = LlavaOnevisionConfig.from_dict(values | {"model_type": "llava_onevision", "text_config": text})
    else:
        from lit_wsl.models.alternating import LlavaOnevisionAlternatingConfig

        config = LlavaOnevisionAlternatingConfig(**values)
    AutoModelForImageTextToText.from_config(config).save_pretrained(path)
    _written("data")
    shutil.copytree("data/tokenizer", path, dirs_exist_ok=True)


def _plain(text: dict) -> dict:
    return {name: value for name, value in text.items() if not name.startswith("a")}


def _qwen(path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    text = _plain(figure_model("alternating")["text_config"])
    text.pop("model_type")
    Qwen2ForCausalLM(Qwen2Config(**text)).save_pretrained(path)


def _figures(path: Path) -> None:
    write_figures(path, rows=8, evaluation_rows=4)
    for split in ("train", "validation"):
        shutil.copytree(path / split, path / "images" / split)
    lines = (path / "train.jsonl").read_text()
    (path / "rows.jsonl").write_text(lines)
    (path / "rows.json").write_text(json.dumps([json.loads(line) for line in lines.splitlines()]))


def _vit(path: Path) -> None:
    model = vit_hf(True).eval()
    randomise(model, seed=1)
    model.save_pretrained(path)


def _linear(path: Path) -> None:
    tensors = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": {f"fc.{name}": tensor for name, tensor in tensors.items()}}, path)
    elif path.suffix:
        save_file({f"model.fc.{name}": tensor for name, tensor in tensors.items()}, path)
    else:
        path.mkdir()
        for number, (name, tensor) in enumerate(tensors.items(), 1):
            save_file({f"fc.{name}": tensor}, path / f"model-0000{number}-of-00002.safetensors")
        files = {f"fc.{name}": f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(tensors, 1)}
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def _text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content)


_OWN_MODELS = "from tests.mapper.pairs.vision_pairs import vit_timm\n\n\ndef ViT():\n    return vit_timm(True)\n"
_LEARN = f"""
adapters: [intent, tweets]
tasks: configs/merge/tasks.yaml
base: {MODEL}
method: weighted_delta_n
optimizer: {{type: adamerging, params: {{steps: 2, progress_bar: false}}}}
"""
BUILDERS: dict[str, Callable[[Path], object]] = {
    "DIR": write_tiny_bert,
    **dict.fromkeys("ABC", _adapter),
    **dict.fromkeys(("TUNED_1", "TUNED_2"), _tuned),
    "BASE": write_untied_llama,
    "FINETUNED": _tuned_llama,
    **{f"artifacts/demo/adapters/{task}": _demo_adapter for task in TASKS},
    **dict.fromkeys(("models/a", "models/b"), _deep_llama),
    **dict.fromkeys(("models/alternating", "models/alternating_cross", "models/llava"), _image_text),
    "models/qwen2": _qwen,
    "data": _figures,
    "last.ckpt": _lora_checkpoint,
    **dict.fromkeys(("linear", "linear.ckpt", "linear.safetensors"), _linear),
    "hf_vit": _vit,
    "my_models.py": _text(_OWN_MODELS),
    "mergekit.yml": _text(
        "{merge_method: linear, models: [{model: TUNED_1}, {model: TUNED_2}], parameters: {weight: 1}}"
    ),
    "merge.yaml": _text("{models: [TUNED_1, TUNED_2], base: DIR, method: ties, output_format: model}"),
    "learn.yaml": _text(_LEARN),
}
"""How each thing is made that a page may take as given."""

DEMO = tuple(f"artifacts/demo/adapters/{task}" for task in TASKS)
GIVEN: dict[str, tuple[str, ...]] = {
    "README.md": (
        *("DIR", "A", "B", "C", "TUNED_1", "TUNED_2", "BASE", "FINETUNED", *DEMO, "last.ckpt"),
        *("CONFIG=models/alternating", "LANGUAGE_MODEL=models/qwen2", "rows.jsonl=data/rows.jsonl"),
        *("train=data/train", "mergekit.yml", "merge.yaml", "learn.yaml", "artifacts/figures=data"),
    ),
    "docs/coming_from.md": ("DIR", "TUNED_1", "TUNED_2", "A", "B"),
    "docs/recipes/deploy_lora.md": ("BASE", "runs/last.ckpt=last.ckpt", "DIR", "A"),
    "docs/recipes/recover_adapter.md": ("base=BASE", "finetuned=FINETUNED"),
    "docs/recipes/port_weights.md": ("hf_vit", "my_models.py"),
    "docs/recipes/merge_tasks.md": DEMO,
    "docs/recipes/learn_coefficients.md": DEMO,
    "docs/recipes/many_gpus.md": ("DIR", "TUNED_1", "TUNED_2", *DEMO),
    "docs/checkpoints.md": ("BASE", "runs/last.ckpt=last.ckpt"),
    "docs/comparing.md": ("base=BASE", "finetuned=FINETUNED"),
    "docs/evaluation.md": DEMO,
    "docs/image_text.md": ("models/alternating", "data"),
    "docs/inspecting.md": (
        *("models/alternating", "models/alternating_cross", "models/llava", "models/qwen2"),
        *("data", "artifacts/figures=data"),
    ),
    "docs/learning.md": DEMO,
    "docs/mapping.md": ("hf_vit", "my_models.py"),
    "docs/merge_config.md": DEMO,
    "docs/mergekit.md": ("models/a", "models/b", "DIR", "TUNED_1", "TUNED_2"),
    "docs/merging.md": DEMO,
    "docs/merging_with_data.md": DEMO,
    "docs/renaming.md": ("model.safetensors=linear.safetensors", "last.ckpt=linear.ckpt", "sharded=linear"),
    "docs/runs.md": DEMO,
    "docs/sweeps.md": DEMO,
}
"""What each page takes as given; ``NAME=OTHER`` gives one thing under the name of the page."""


class Store:
    """Makes what pages take as given, each thing once, and lays it out for a page."""

    def __init__(self, root: Path) -> None:
        self.packages, self.cache, self._root = root / "packages", root / "cache", root / "made"
        self._root.mkdir()
        shutil.copytree(ROOT / "configs", self._root / "configs")
        _text_files(self._root)
        write_package(self.packages)
        write_tasks(self.cache)

    def lay_out(self, page: str, folder: Path) -> None:
        """Fill the folder of a page."""
        for entry in ("configs", "docs", "README.md", *GIVEN.get(page, ())):
            name, _, source = entry.partition("=")
            with chdir(self._root):
                _written(source or name)
            _copy(self._root / (source or name), folder / name)


def _written(name: str) -> None:
    if not Path(name).exists():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        BUILDERS[name](Path(name))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def _text_files(folder: Path) -> None:
    """What the tiny language models read."""
    (folder / "docs").mkdir()
    (folder / "README.md").write_text("Merge adapters and models. " * 60)
    (folder / "docs/page.md").write_text("Every byte is a token here. " * 60)
