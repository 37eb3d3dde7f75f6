"""Names and bytes on disk: read, write and publish tensors without holding a model in memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_wsl.state.publish import published_directory as published_directory
    from lit_wsl.state.reader import StateReader as StateReader
    from lit_wsl.state.reader import TensorInfo as TensorInfo
    from lit_wsl.state.reader import open_state as open_state
    from lit_wsl.state.writer import ShardedWriter as ShardedWriter

_HOME = {
    "ShardedWriter": "writer",
    "StateReader": "reader",
    "TensorInfo": "reader",
    "open_state": "reader",
    "published_directory": "publish",
}

__all__ = ["ShardedWriter", "StateReader", "TensorInfo", "open_state", "published_directory"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: reading a size or a name needs no torch."""
    if name in _HOME:
        return getattr(import_module(f"lit_wsl.state.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lit_wsl.state' has no attribute {name!r}")
