"""Whether a base under an adapter computes what the fine-tuned model computes, on random inputs."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lit_wsl.errors import CheckpointError
from lit_wsl.state.adapters import PREFIX
from lit_wsl.state.locate import model_dir
from lit_wsl.state.reader import open_state

_SHARE = 4
"""Part of the free memory that two models may fill by default."""


@dataclass(frozen=True)
class OutputAgreement:
    """How far the outputs of two models agree."""

    compared: str
    """``logits`` or ``last hidden states``."""
    relative_error: float
    """Norm of the difference over that of the fine-tuned model's outputs."""
    base_error: float
    """The same of the base without the adapter, to compare with."""
    top1_agreement: float
    """Share of positions whose largest output is the same."""
    positions: int

    def sentence(self) -> str:
        """The result in one sentence."""
        return (
            f"Base and adapter against the fine-tuned model: {self.compared} at {self.positions} positions differ by "
            f"{self.relative_error:.2g} (the base alone: {self.base_error:.2g}), the largest is the same at "
            f"{self.top1_agreement:.1%}."
        )


@torch.no_grad()
def compare_outputs(
    base: str | Path,
    finetuned: str | Path,
    adapter: str | Path,
    *,
    sequences: int = 4,
    length: int = 32,
    seed: int = 0,
    max_bytes: int | None = None,
) -> OutputAgreement:
    """Run a base under an adapter, and the fine-tuned model, on the same random token ids.

    Both compute in float32. The last sequence is padded by half.

    Args:
        base: Directory of the base.
        finetuned: Directory of the fine-tuned model, or of an adapter on the base.
        adapter: PEFT directory.
        sequences: Number of inputs.
        length: Tokens of each, at most what the model has positions for.
        seed: Of the ids.
        max_bytes: Largest size in float32 of both models together; a quarter of the free memory by default.

    Raises:
        CheckpointError: If the models are larger than that, or are no text models that transformers loads.
    """
    before, after = model_dir(str(base)), model_dir(str(finetuned))
    _check_size(before, after, max_bytes)
    inputs = _inputs(before, sequences, length, seed)
    is_adapter = (after / "adapter_config.json").is_file()
    expected, kind = _outputs(_adapted(_load(before), after) if is_adapter else _load(after), inputs)
    model = _load(before)
    alone, _ = _outputs(model, inputs)
    found, _ = _outputs(_adapted(model, Path(adapter)), inputs)
    width = min(found.shape[-1], expected.shape[-1], alone.shape[-1])
    size = expected[..., :width].norm()
    same = found[..., :width].argmax(-1) == expected[..., :width].argmax(-1)
    return OutputAgreement(
        compared=kind,
        relative_error=float((found[..., :width] - expected[..., :width]).norm() / size),
        base_error=float((alone[..., :width] - expected[..., :width]).norm() / size),
        top1_agreement=float(same.float().mean()),
        positions=same.numel(),
    )


def _adapted(model: PreTrainedModel, adapter: Path) -> nn.Module:
    """The model under an adapter, with as many embeddings as the adapter has."""
    rows = _rows(model, adapter)
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", message=r"fan_in_fan_out is set to")
        return PeftModel.from_pretrained(model, str(adapter)).eval()


def _rows(model: PreTrainedModel, adapter: Path) -> int | None:
    """Rows of the input embedding that an adapter holds whole."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    state, key = open_state(adapter), f"{PREFIX}{name}.weight"
    return state.info(key).shape[0] if key in state else None


def _check_size(before: Path, after: Path, max_bytes: int | None) -> None:
    entries = 0
    for directory in (before, after):
        state = open_state(directory)
        entries += sum(state.info(name).numel for name in state.keys())
    limit = _free_memory() // _SHARE if max_bytes is None else max_bytes
    if 4 * entries > limit:
        raise CheckpointError(
            f"Both models take {4 * entries / 1e9:.1f} GB in float32, and at most {limit / 1e9:.1f} GB may be used: "
            "outputs are not compared."
        )


def _free_memory() -> int:
    """Bytes that are free or can be freed; none where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return sizes.get("MemAvailable", 0)


def _load(directory: Path) -> PreTrainedModel:
    """The model of a directory in float32, with the head that its configuration names."""
    try:
        config = AutoConfig.from_pretrained(directory)
        named = (config.architectures or [""])[0]
        is_causal = named == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        with _quiet():
            cls: Any = AutoModelForCausalLM if is_causal else _class(named)
            return cls.from_pretrained(directory, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"{directory} cannot be loaded by transformers ({line}): no outputs compared.") from error


def _class(name: str) -> Any:
    import transformers

    return getattr(transformers, name, AutoModel) if name else AutoModel


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _inputs(directory: Path, sequences: int, length: int, seed: int) -> dict[str, Tensor]:
    config = AutoConfig.from_pretrained(directory).get_text_config()
    vocabulary, positions = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
    if not vocabulary:
        raise CheckpointError(f"{directory} is no text model: no outputs compared.")
    length = min(length, positions or length)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (sequences, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -(length // 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _outputs(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, str]:
    """Logits or last hidden states of the positions that are no padding, shape ``(positions, width)``."""
    try:
        output = model(**inputs)
    except (TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"The model does not run on token ids alone ({line}): no outputs compared.") from error
    logits = getattr(output, "logits", None)
    kind = "logits" if logits is not None else "last hidden states"
    values = (logits if logits is not None else output.last_hidden_state).float()
    mask = inputs["attention_mask"].bool()
    return (values[mask] if values.shape[:2] == mask.shape else values.flatten(0, -2)), kind
