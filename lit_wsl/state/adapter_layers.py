"""What an adapter must know of a model's modules: where each stored tensor goes, and what kind of layer holds it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["linear", "turned", "embedding", "convolution", "other"]
"""``turned`` is a linear layer that stores its weight as ``(d_in, d_out)``."""
_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "shared", "tok_embeddings")


@dataclass(frozen=True)
class ExpertPart:
    """One matrix of a file that transformers stacks with those of other experts when it loads the model."""

    parameter: str
    """The stacked parameter."""
    expert: int
    slot: int
    """Place among the matrices whose rows are joined, such as gate before up."""


@dataclass(frozen=True)
class ModelLayers:
    """The modules of a model as it is loaded."""

    kinds: Mapping[str, Kind]
    """Every module by its path."""
    tensors: Mapping[str, tuple[str, ...]]
    """Full names of the tensors in every module that holds some, those of inner modules included."""
    names: Mapping[str, str]
    """Name in the files to the name in the loaded model, where they differ."""
    ties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a tensor to the other names that share it."""
    parts: Mapping[str, ExpertPart] = field(default_factory=dict)
    """Names in the files of what becomes part of a stacked parameter."""
    lost: frozenset[str] = frozenset()
    """Names in the files of what transformers computes into others in a way that no adapter follows."""
    stacks_turned: frozenset[str] = frozenset()
    """Modules that keep their stacks of matrices as ``(experts, d_in, d_out)``."""
    task_type: str | None = None
    is_known: bool = True
    """Whether the model's class says all this; False where names and shapes do."""

    def kind(self, module: str) -> Kind:
        """Kind of a module; ``other`` for one that is not known."""
        return self.kinds.get(module, "other")


def guess_layers(shapes: Mapping[str, tuple[int, ...]]) -> ModelLayers:
    """The modules of a model of which only names and shapes are known: matrices are those of linear layers."""
    kinds: dict[str, Kind] = {}
    tensors: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        for path in _containers(module):
            kinds.setdefault(path, "other")
            tensors.setdefault(path, []).append(name)
        if leaf == "weight" and len(shape) > 1:
            kinds[module] = _guess_kind(module, len(shape))
    return ModelLayers(kinds, {path: tuple(names) for path, names in tensors.items()}, {}, is_known=False)


def _guess_kind(module: str, dimensions: int) -> Kind:
    last = module.rpartition(".")[2]
    if dimensions > 2:
        return "convolution"
    return "embedding" if last in _EMBEDDINGS or last.endswith("_embeddings") else "linear"


def _containers(module: str) -> list[str]:
    """``a.b`` gives ``a``, ``a.b``."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def module_targets(layers: Iterable[str], modules: Iterable[str]) -> list[str] | str:
    """``target_modules`` for PEFT that match exactly these layers: short ends of paths, else one pattern.

    Args:
        layers: Paths of the layers.
        modules: Paths of all modules.
    """
    chosen = set(layers)
    ends = shortest_ends(chosen, (name for name in modules if name not in chosen))
    if None in ends.values():
        return "|".join(re.escape(name) for name in sorted(chosen))
    return sorted({end for end in ends.values() if end is not None})


def rank_patterns(layers: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The usual rank, and PEFT's ``rank_pattern`` for the layers with another."""
    usual = Counter(layers.values()).most_common(1)[0][0]
    patterns: dict[str, int] = {}
    for rank in sorted(set(layers.values()) - {usual}):
        ends = shortest_ends(
            [name for name in layers if layers[name] == rank], [name for name in layers if layers[name] != rank]
        )
        patterns |= {f"^{re.escape(name)}" if end is None else re.escape(end): rank for name, end in ends.items()}
    return usual, patterns


def shortest_ends(names: Iterable[str], others: Iterable[str]) -> dict[str, str | None]:
    """For every name the shortest end of its path that ends none of the others; None if each does."""
    taken = {end for name in others for end in path_ends(name)}
    return {name: next((end for end in path_ends(name) if end not in taken), None) for name in names}


def path_ends(name: str) -> list[str]:
    """``a.b.c`` gives ``c``, ``b.c``, ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
