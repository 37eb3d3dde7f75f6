"""The merge that a learner had reached when a checkpoint was kept."""

from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.learning.options import make_learner
from lit_wsl.learning.params import FreeParams, LearnerParams
from lit_wsl.learning.run import CHECKPOINTS, learner_of, run_directory, with_own_folder
from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs.layout import RunLayout
from lit_wsl.state.reader import read_torch_file


def at_checkpoint(config: MergeConfig, checkpoint: Path) -> MergeConfig:
    """The merge by the coefficients of a checkpoint.

    Args:
        config: The merge that was learned, with its optimizer.
        checkpoint: Written by Lightning.

    Raises:
        CheckpointError: If the file is damaged, or holds the coefficients of another merge.
    """
    kind, params = _single(config)
    learner = make_learner(kind, config, params)
    content = read_torch_file(checkpoint)
    state: Any = content.get("state_dict", {}) if isinstance(content, dict) else {}
    wanted = {name: tensor.shape for name, tensor in learner.state_dict().items()}
    if {name: getattr(tensor, "shape", None) for name, tensor in state.items()} != wanted:
        raise CheckpointError(
            f"{checkpoint} holds no coefficients of this merge ({len(learner.coefficients.rows.names)} rows of "
            f"{learner.coefficients.sources}); give the configuration that the checkpoint was made with."
        )
    learner.load_state_dict(state)
    return learner.learned()


def _single(config: MergeConfig) -> tuple[str, LearnerParams]:
    """Name and parameters of an optimizer that learns one merge.

    Raises:
        ConfigError: If it learns a tree.
    """
    kind, params = learner_of(config)
    if isinstance(params, FreeParams) and params.tree is not None:
        raise ConfigError("A tree keeps checkpoints of every merge in it; replay goes with single merges.")
    return kind, params


def kept_checkpoint(config: MergeConfig, updates: int, layout: RunLayout) -> Path:
    """The checkpoint that the run of a configuration kept after so many updates.

    Raises:
        ConfigError: If it kept none.
    """
    kind, params = _single(config)
    home = run_directory(config, kind, params, layout)
    params = with_own_folder(params, home)
    folder = Path(params.checkpoint_dir).expanduser() if params.checkpoint_dir else home / CHECKPOINTS
    found = folder / f"update-{updates}.ckpt"
    if not found.is_file():
        names = (file.stem.removeprefix("update-") for file in folder.glob("update-*.ckpt"))
        kept = sorted(int(name) for name in names if name.isdecimal())
        known = f"those after {', '.join(map(str, kept))} updates are there" if kept else "it kept none"
        raise ConfigError(
            f"{folder} has no checkpoint after {updates} updates; {known}. They are written with "
            "`optimizer.params.checkpoint_on_heldout_eval`."
        )
    return found
