"""lit_wsl trains, checkpoints, compares, maps and merges model weights on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_wsl.callbacks.backbone_init import BackboneInit as BackboneInit
    from lit_wsl.callbacks.throughput import ThroughputLogger as ThroughputLogger
    from lit_wsl.callbacks.universal_checkpoint import UniversalCheckpointCallback as UniversalCheckpointCallback
    from lit_wsl.callbacks.weight_map_init import WeightMapInit as WeightMapInit
    from lit_wsl.comparing.api import compare as compare
    from lit_wsl.comparing.api import extract_lora as extract_lora
    from lit_wsl.comparing.run import Comparison as Comparison
    from lit_wsl.comparing.settings import CompareSettings as CompareSettings
    from lit_wsl.learning.run import learn_merge as learn_merge
    from lit_wsl.mapper.mapper import WeightMapper as WeightMapper
    from lit_wsl.merging import MergeConfig as MergeConfig
    from lit_wsl.merging import MergeReport as MergeReport
    from lit_wsl.merging import MergeSpec as MergeSpec
    from lit_wsl.merging import load_merge_config as load_merge_config
    from lit_wsl.merging import merge as merge
    from lit_wsl.merging import merge_state_dict as merge_state_dict
    from lit_wsl.models.export import export_checkpoint as export_checkpoint
    from lit_wsl.models.lora_spec import LoraSpec as LoraSpec
    from lit_wsl.models.universal.api import get_merged_state_dict as get_merged_state_dict
    from lit_wsl.models.universal.api import load_universal as load_universal
    from lit_wsl.state import open_state as open_state
    from lit_wsl.state.remap import WeightMap as WeightMap
    from lit_wsl.training.quiet import quiet as quiet
    from lit_wsl.training.universal import UniversalCheckpoint as UniversalCheckpoint

__version__ = "0.1.0"

_STABLE = {
    "BackboneInit": "lit_wsl.callbacks.backbone_init",
    "CompareSettings": "lit_wsl.comparing.settings",
    "Comparison": "lit_wsl.comparing.run",
    "LoraSpec": "lit_wsl.models.lora_spec",
    "MergeConfig": "lit_wsl.merging",
    "MergeReport": "lit_wsl.merging",
    "MergeSpec": "lit_wsl.merging",
    "ThroughputLogger": "lit_wsl.callbacks.throughput",
    "UniversalCheckpoint": "lit_wsl.training.universal",
    "UniversalCheckpointCallback": "lit_wsl.callbacks.universal_checkpoint",
    "WeightMap": "lit_wsl.state.remap",
    "compare": "lit_wsl.comparing.api",
    "export_checkpoint": "lit_wsl.models.export",
    "extract_lora": "lit_wsl.comparing.api",
    "get_merged_state_dict": "lit_wsl.models.universal.api",
    "load_merge_config": "lit_wsl.merging",
    "load_universal": "lit_wsl.models.universal.api",
    "merge": "lit_wsl.merging",
    "merge_state_dict": "lit_wsl.merging",
    "open_state": "lit_wsl.state",
}
"""Names that keep their meaning until they were deprecated for a release, and the rooms that they come from."""
_PROVISIONAL = {
    "WeightMapInit": "lit_wsl.callbacks.weight_map_init",
    "WeightMapper": "lit_wsl.mapper.mapper",
    "learn_merge": "lit_wsl.learning.run",
    "quiet": "lit_wsl.training.quiet",
}
"""Names that any release may change, with a line in the changelog."""
_HOME = _STABLE | _PROVISIONAL

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use, so that ``import lit_wsl`` stays instant."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lit_wsl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
