"""lit_wsl trains, checkpoints, compares, maps and merges model weights on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_wsl.merging import MergeReport as MergeReport
    from lit_wsl.merging import MergeSpec as MergeSpec
    from lit_wsl.merging import merge as merge
    from lit_wsl.models.universal import get_merged_state_dict as get_merged_state_dict
    from lit_wsl.models.universal import load_universal as load_universal
    from lit_wsl.state import open_state as open_state

__version__ = "0.1.0"

_HOME = {
    "MergeReport": "lit_wsl.merging",
    "MergeSpec": "lit_wsl.merging",
    "get_merged_state_dict": "lit_wsl.models.universal",
    "load_universal": "lit_wsl.models.universal",
    "merge": "lit_wsl.merging",
    "open_state": "lit_wsl.state",
}

__all__ = ["MergeReport", "MergeSpec", "get_merged_state_dict", "load_universal", "merge", "open_state"]


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use, so that ``import lit_wsl`` stays instant."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lit_wsl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
