"""Maps weights between architectures: which tensors of one model make which of another, and how."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_wsl.mapper.layers import IntermediateLayerGetter as IntermediateLayerGetter
    from lit_wsl.mapper.load import extract_state_dict as extract_state_dict
    from lit_wsl.mapper.load import load_checkpoint_as_dict as load_checkpoint_as_dict
    from lit_wsl.mapper.mapper import WeightMapper as WeightMapper
    from lit_wsl.mapper.renamer import WeightRenamer as WeightRenamer
    from lit_wsl.mapper.renamer import rename_checkpoint_keys as rename_checkpoint_keys
    from lit_wsl.mapper.result import MappingResult as MappingResult
    from lit_wsl.mapper.units import ScoreBreakdown as ScoreBreakdown
    from lit_wsl.state.remap import WeightMap as WeightMap

_HOME = {
    "IntermediateLayerGetter": "mapper.layers",
    "MappingResult": "mapper.result",
    "ScoreBreakdown": "mapper.units",
    "WeightMap": "state.remap",
    "WeightMapper": "mapper.mapper",
    "WeightRenamer": "mapper.renamer",
    "extract_state_dict": "mapper.load",
    "load_checkpoint_as_dict": "mapper.load",
    "rename_checkpoint_keys": "mapper.renamer",
}

__all__ = [
    "IntermediateLayerGetter",
    "MappingResult",
    "ScoreBreakdown",
    "WeightMap",
    "WeightMapper",
    "WeightRenamer",
    "extract_state_dict",
    "load_checkpoint_as_dict",
    "rename_checkpoint_keys",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: renaming keys needs no matching."""
    if name in _HOME:
        return getattr(import_module(f"lit_wsl.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lit_wsl.mapper' has no attribute {name!r}")
