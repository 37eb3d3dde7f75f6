"""The ways to keep a merged model live, by the names of ``merge_impl``: all give the same outputs and derivatives."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_wsl.errors import ConfigError, MergeError, did_you_mean
from lit_wsl.learning.live.deltas import ParameterDeltas
from lit_wsl.learning.live.engine import Entry, MergeEngine
from lit_wsl.learning.live.functions import Merged, StandIn, merge_into

MOST_NAMED = 8
"""Parameters that a refusal names."""


class MergeOnce(MergeEngine):
    """Weights are merged in place when the coefficients are others than before: once an update.

    Linear layers get the derivative from inputs and factors, other parameters and dense updates from the weight's own.
    A copy of the base's weights is kept on their device.
    """

    name = "merge_once"

    def __init__(
        self,
        model: nn.Module,
        deltas: Mapping[str, ParameterDeltas],
        rows: Mapping[str, int],
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, deltas, rows, compute)
        stored = {entry.name: entry.live.parameter.detach() for entry in self.entries}
        self._base = {name: one.clone() for name, one in stored.items()}
        self._merged: Tensor | None = None

    @torch.no_grad()
    def update(self, coefficients: Tensor) -> None:
        """Merge, if the numbers have changed."""
        if self._merged is not None and torch.equal(self._merged, coefficients):
            return
        for entry in self.entries:
            row, base = coefficients[entry.row], self._base[entry.name]
            merge_into(entry.live.parameter, base, row, entry.deltas, self.compute)
        self._merged = coefficients.detach().clone()

    def weight(self, entry: Entry, stored: Tensor) -> Tensor:
        """The live weight, which is merged."""
        return StandIn.apply(stored, self.coefficients(entry), entry.deltas)

    def linear(self, entry: Entry) -> bool | None:
        """Linear layers whose updates are all of low rank."""
        return True if entry.live.is_linear and not entry.deltas.dense else None

    def merged(self, entry: Entry) -> Tensor:
        """The live weight."""
        return entry.live.parameter

    @torch.no_grad()
    def release(self) -> None:
        """Give the model back with the base's weights."""
        for entry in self.entries:
            entry.live.parameter.copy_(self._base[entry.name])
        super().release()
        self._base, self._merged = {}, None


class StreamingParametrize(MergeEngine):
    """Each weight is merged anew whenever a module asks for it."""

    name = "streaming_parametrize"

    def weight(self, entry: Entry, stored: Tensor) -> Tensor:
        """Base plus updates, added one after another."""
        return Merged.apply(stored, self.coefficients(entry), entry.deltas, self.compute)


class FunctionalCloneLegacy(MergeEngine):
    """All weights are merged by plain differentiable sums before each forward pass, which keep every update."""

    name = "functional_clone_legacy"

    def update(self, coefficients: Tensor) -> None:
        """Make a clone of every weight."""
        self._clones = {entry.name: self._clone(entry, coefficients[entry.row]) for entry in self.entries}

    def _clone(self, entry: Entry, row: Tensor) -> Tensor:
        stored = entry.live.parameter
        wide = torch.promote_types(stored.dtype, torch.float32) if self.compute is None else self.compute
        total = stored.detach().to(wide)
        for source in range(entry.deltas.sources):
            update = entry.deltas.whole(source, stored.device, wide)
            if update is not None:
                total = total + row[source].to(wide) * update
        return total.to(stored.dtype)

    def weight(self, entry: Entry, stored: Tensor) -> Tensor:
        """Its clone."""
        self.coefficients(entry)
        return self._clones[entry.name]


class FusedLinear(StreamingParametrize):
    """Linear layers keep the base's weight and add every update's outputs; all else is merged when asked for."""

    name = "fused_linear"

    def linear(self, entry: Entry) -> bool | None:
        """Every linear layer."""
        return False if entry.live.is_linear else None


class FusedLoraLinear(FusedLinear):
    """The same for adapters of linear layers alone, which are never multiplied out."""

    name = "fused_lora_linear"

    def check(self) -> None:
        """Refuse dense updates, and whatever is no weight of a linear layer."""
        faults = [
            f"{entry.name!r} ({'no linear layer' if not entry.live.is_linear else 'a dense update'})"
            for entry in self.entries
            if entry.deltas.dense or not entry.live.is_linear
        ]
        if faults:
            named = ", ".join(faults[:MOST_NAMED])
            more = f" and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
            raise MergeError(
                f"`fused_lora_linear` takes factors of linear layers alone, not {named}{more}; "
                "`exclude` them, or take `merge_impl: merge_once`."
            )


ENGINES: dict[str, type[MergeEngine]] = {
    engine.name: engine
    for engine in (MergeOnce, StreamingParametrize, FunctionalCloneLegacy, FusedLinear, FusedLoraLinear)
}
"""By the name of ``merge_impl``; the first is the default."""


def engine_class(name: str) -> type[MergeEngine]:
    """The engine of a name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in ENGINES:
        raise ConfigError(f"Unknown `merge_impl` {name!r}. {did_you_mean(name, ENGINES)}")
    return ENGINES[name]
