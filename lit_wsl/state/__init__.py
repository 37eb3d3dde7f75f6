"""Names and bytes on disk: read, write and publish tensors without holding a model in memory."""

from lit_wsl.state.publish import published_directory as published_directory
from lit_wsl.state.reader import StateReader as StateReader
from lit_wsl.state.reader import TensorInfo as TensorInfo
from lit_wsl.state.reader import open_state as open_state
from lit_wsl.state.writer import ShardedWriter as ShardedWriter
