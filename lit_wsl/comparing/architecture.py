"""Which tensors both models have, and which differ in shape or dtype."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lit_wsl.comparing.models import ComparedModel
from lit_wsl.errors import CheckpointError


@dataclass(frozen=True)
class Architecture:
    """Names on both sides, and what differs before a single entry is read."""

    common_keys: list[str]
    only_in_base: list[str]
    only_in_finetuned: list[str]
    lora_keys: list[str]
    """Names in either model that are factors of an adapter which was not folded."""
    shape_mismatch: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    dtype_mismatch: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Tensors that could not be read or compared, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def comparable(self) -> list[str]:
        """Common names whose tensors have the same shape, or differ in their number of rows only."""
        return [name for name in self.common_keys if name not in self.shape_mismatch or self._is_longer(name)]

    def resized(self) -> list[str]:
        """Common names of tensors that differ in their number of rows only."""
        return [name for name in self.shape_mismatch if self._is_longer(name)]

    def _is_longer(self, name: str) -> bool:
        one, two = self.shape_mismatch[name].values()
        return len(one) == len(two) > 0 and one[1:] == two[1:] and min(one[0], two[0]) > 0


def architecture_of(base: ComparedModel, tuned: ComparedModel) -> Architecture:
    """Compare names, shapes and dtypes.

    Raises:
        CheckpointError: If the models have no name in common.
    """
    left, right = base.infos(), tuned.infos()
    failed = {**base.failed, **tuned.failed}
    common = [name for name in left if name in right]
    if not common:
        first = f"{next(iter(left), 'nothing')!r} in {base.where}, {next(iter(right), 'nothing')!r} in {tuned.where}"
        raise CheckpointError(
            f"The models have no tensor name in common (first {first}); "
            "run `lit-wsl map BASE FINETUNED --save map.json` and pass `--weight-map map.json`."
        )
    shapes = {n: (list(left[n].shape), list(right[n].shape)) for n in common if left[n].shape != right[n].shape}
    dtypes = {n: (left[n].dtype, right[n].dtype) for n in common if left[n].dtype != right[n].dtype}
    return Architecture(
        common_keys=common,
        only_in_base=[name for name in left if name not in right and name not in failed],
        only_in_finetuned=[name for name in right if name not in left and name not in failed],
        lora_keys=sorted(name for name in left.keys() | right.keys() if "lora_" in name),
        shape_mismatch={n: {"base": one, "finetuned": two} for n, (one, two) in shapes.items()},
        dtype_mismatch={n: {"base": _plain(one), "finetuned": _plain(two)} for n, (one, two) in dtypes.items()},
        failed=failed,
    )


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
