"""What was learned, as files: the merge to repeat, its provenance, the coefficients as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

import lit_wsl
from lit_wsl.errors import ConfigError
from lit_wsl.learning.learner import CoefficientLearner
from lit_wsl.runs.strict import write_json, write_text
from lit_wsl.state.publish import check_writable

MERGE, PROVENANCE, PICTURE = "merge.yaml", "learning.json", "coefficients.png"


def origin_of(kind: str, params: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """What a merge says of the run that learned it, and by which its own runs are named.

    Args:
        kind: Name of the optimizer.
        params: Its parameters.
        directory: Files of the run.
    """
    named = {name: params[name] for name in ("variant", "plus_plus") if params.get(name)}
    return {"optimizer": {"type": kind, "params": named}, "run": str(directory)}


def write_learned(learner: CoefficientLearner, provenance: Mapping[str, Any], directory: Path) -> None:
    """Write the merge by the present coefficients; the provenance comes last, by which a run is known as finished.

    Args:
        learner: Its coefficients are those to keep.
        provenance: What was done, beyond what the learner tells.
        directory: Where the files go.
    """
    from lit_wsl.learning.drawing import save  # matplotlib takes a while to import
    from lit_wsl.learning.plots import coefficient_plot

    module = learner.coefficients
    told = {
        "optimizer": learner.name,
        "status": "complete",
        "tasks": learner.tasks,
        "sources": learner.merge.source_tasks,
        "parameters": len(module.rows.of),
        "granularity": module.rows.granularity,
        "rows": list(module.rows.names),
        "final_coefficients": module.values(),
        "prepared": learner.prepared(),
        **provenance,
        "versions": {"lit_wsl": lit_wsl.__version__, "torch": torch.__version__, "lightning": lightning.__version__},
    }
    save(coefficient_plot(module.rows, learner.merge.source_tasks, module.values()), directory / PICTURE)
    origin = origin_of(learner.name, provenance.get("params") or {}, directory)
    merge = {**learner.learned().to_dict(), "learned_from": origin}
    write_text(directory / MERGE, yaml.safe_dump(merge, sort_keys=False, allow_unicode=True))
    write_json(directory / PROVENANCE, told)


class SaveCoefficients(Callback):
    """Writes what was learned when training ends: ``merge.yaml`` for ``lit-wsl merge --config``, and how it was found.

    What other callbacks restore in the end is what it writes, whatever their order is.

    Args:
        directory: Where the files go.
    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory).expanduser()
        self._has_ended = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse other modules, and a directory that cannot be written, before any work is done.

        Raises:
            ConfigError: If the module learns no coefficients.
        """
        if not isinstance(pl_module, CoefficientLearner):
            raise ConfigError(f"`SaveCoefficients` keeps coefficients of a merge, not a {type(pl_module).__name__}.")
        if stage == "fit":
            check_writable(self.directory)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that training came to its end, at which other callbacks may still restore coefficients."""
        self._has_ended = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write them, on one process."""
        assert isinstance(pl_module, CoefficientLearner)
        has_ended, self._has_ended = self._has_ended, False
        if has_ended and trainer.is_global_zero:
            done = {"optimizer_steps_completed": trainer.global_step}
            write_learned(pl_module, done, self.directory)
