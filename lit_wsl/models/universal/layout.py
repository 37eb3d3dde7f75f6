"""Where the adapters of a model stand in its state dict, whatever library put them there.

A *raw* key is a key of the adapted model without the components of wrappers; a *plain* key is the key that the
same tensor has in the model without adapters.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lit_wsl.tensors.lora import LoraFactors, RowUpdate


def join(*parts: str) -> str:
    """Path of components, of which the empty ones are left out."""
    return ".".join(part for part in parts if part)


@dataclass(frozen=True)
class LowRankPart:
    """One update ``scale * B @ A`` of a weight, or of some of its rows; tensors by their raw keys."""

    A: str
    """Down projection ``(r, d_in)``; ``(d_in, r)`` when ``A_turned``."""
    B: str
    """Up projection ``(d_out, r)``."""
    rank: int
    scale: float
    A_turned: bool = False
    A_rows: tuple[int, int] | None = None
    """Rows of ``A`` that belong to this part; None takes all."""
    B_rows: tuple[int, int] | None = None
    """Rows of ``B`` that belong to this part; None takes all."""
    start: int = 0
    """First row of the weight that changes."""
    shift: str = ""
    """Bias of the up projection, whose ``scale``-fold is added to the layer's bias."""

    def update(self, state: Mapping[str, Tensor], shape: tuple[int, ...], *, transposed: bool) -> RowUpdate:
        """The factors from ``state`` for a weight of ``shape``."""
        A, B = state[self.A].detach(), state[self.B].detach()
        A = A.T if self.A_turned else A.reshape(A.shape[0], -1)
        B = B.reshape(B.shape[0], -1)
        A = A if self.A_rows is None else A[slice(*self.A_rows)]
        B = B if self.B_rows is None else B[slice(*self.B_rows)]
        rows = shape[0] if transposed else B.shape[0]
        return RowUpdate(LoraFactors(A, B, self.scale, (rows, *shape[1:]), transposed), self.start)


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer that carries adapters."""

    name: str
    """Path of the layer, without the components of wrappers; empty when it is the model itself."""
    base: str
    """Path of the plain layer inside the adapted one, such as ``base_layer``; empty when it is the layer itself."""
    own: tuple[str, ...] = ()
    """First path components of the tensors that the plain model lacks; all but those under ``base`` when empty."""
    parts: tuple[LowRankPart, ...] = ()
    """Active updates; none when they are already folded in, or when the layer was copied to be trained whole."""
    magnitude: str = ""
    """Raw key of DoRA's row lengths."""
    transposed: bool = False
    """The weight is stored as ``(d_in, d_out)``."""

    @property
    def weight(self) -> str:
        """Raw key of the weight that the updates belong to."""
        return join(self.name, self.base, "weight")

    @property
    def bias(self) -> str:
        """Raw key of the bias that stands beside the weight."""
        return self.weight.removesuffix("weight") + "bias"

    def plain(self, rest: str) -> str | None:
        """Plain key of the raw key ``name.rest``, or None for a tensor that the plain model lacks."""
        if self.base:
            inner = rest.removeprefix(self.base + ".")
            return join(self.name, inner) if inner != rest else None
        return None if rest.partition(".")[0] in self.own else join(self.name, rest)

    def tensors(self) -> list[str]:
        """Raw keys of all that the merged weight and bias are made from."""
        factors = [key for part in self.parts for key in (part.A, part.B, part.shift) if key]
        bias = [self.bias] if any(part.shift for part in self.parts) else []
        return [self.weight, *bias, *factors, *([self.magnitude] if self.magnitude else [])]

    def updates(self, state: Mapping[str, Tensor], shape: tuple[int, ...]) -> list[RowUpdate]:
        """The active updates from ``state`` for a weight of ``shape``."""
        return [part.update(state, shape, transposed=self.transposed) for part in self.parts]

    def signature(self) -> str:
        """Text that two layers share only if the tensors of one mean the same in the other."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_signature(cls, text: str) -> "AdaptedLayer":
        """The layer that :meth:`signature` describes."""
        values = json.loads(text)
        parts = tuple(LowRankPart(**{k: _tuple(v) for k, v in part.items()}) for part in values.pop("parts"))
        return cls(**{key: _tuple(value) for key, value in values.items()}, parts=parts)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Layout:
    """The adapted layers of a model, and the plain key of every raw one.

    Args:
        layers: The adapted layers.
        containers: Path of a module to the path inside it, of which the plain model knows nothing.
    """

    def __init__(self, layers: Iterable[AdaptedLayer] = (), containers: Mapping[str, str] | None = None) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.containers = dict(containers or {})

    def __bool__(self) -> bool:
        return bool(self.layers)

    def __iter__(self) -> Iterator[AdaptedLayer]:
        return iter(self.layers.values())

    def owner(self, key: str) -> AdaptedLayer | None:
        """The layer that a raw key stands in."""
        path = key
        while path:
            path = path.rpartition(".")[0]
            if path in self.layers:
                return self.layers[path]
        return None

    def plain(self, key: str) -> str | None:
        """Plain key of a raw key; None for a tensor that only the adapter has."""
        layer = self.owner(key)
        plain = key if layer is None else layer.plain(key[len(join(layer.name, " ")) - 1 :])
        for path, inner in self.containers.items():
            held = join(path, inner) + "."
            if plain is not None and plain.startswith(held):
                plain = join(path, plain.removeprefix(held))
        return plain
