"""A merge whose coefficients are learned first, and one as a learner left it at a checkpoint."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lit_wsl.errors import WrongUsage
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.settings import LEARNERS


def learned_merge(config: MergeConfig, artifacts: str) -> MergeConfig:
    """Learn, say where everything lies, and give the merge by what was learned."""
    from lit_wsl.cli.checkpoints import quiet_transformers
    from lit_wsl.learning.run import learn_merge
    from lit_wsl.runs.layout import RunLayout

    quiet_transformers()
    found = learn_merge(config, layout=RunLayout(Path(artifacts)))
    told = found.provenance
    if found.is_earlier:
        sys.stdout.write("Learned before. ")
    best = "" if told["best_mean"] is None else f", smallest mean of the objective {told['best_mean']:.5f}"
    sys.stdout.write(
        f"{told['optimizer']}: {told['optimizer_steps_completed']} updates in {told['elapsed_sec']:.0f} s{best}\n"
        f"{found.directory}\n"
    )
    if told["params"]["print_coefficients_pre_eval"]:
        _tell_coefficients(told)
    return found.config


def _tell_coefficients(told: Mapping[str, Any]) -> None:
    """A line for each row of coefficients."""
    for name, row in zip(told["rows"], told["final_coefficients"], strict=True):
        pairs = zip(told["sources"], row, strict=True)
        sys.stdout.write(f"{name}: {', '.join(f'{source} {value:.4f}' for source, value in pairs)}\n")


def configure_replay(parser: ArgumentParser) -> None:
    """Options of `evaluate-merged` for the state of a learner in the middle of its run."""
    parser.add_argument(
        "--checkpoint", type=str | None, default=None, help="Take the coefficients of this checkpoint of the optimizer."
    )
    parser.add_argument(
        "--optimizer_steps", type=int | None, default=None, help="Take those that were kept after so many updates."
    )


def replayed(config: MergeConfig, options: Namespace) -> MergeConfig:
    """The merge that `evaluate-merged` measures: as it is, or by coefficients that are learned or were kept.

    Raises:
        ConfigError: If there is no such checkpoint.
        WrongUsage: If one is asked for and nothing learns.
    """
    learns = config.optimizer is not None and config.optimizer.type in LEARNERS
    asked = options.checkpoint is not None or options.optimizer_steps is not None
    if not learns:
        if asked:
            raise WrongUsage("`--checkpoint` and `--optimizer_steps` go with a configuration whose optimizer learns.")
        return config
    if not asked:
        return learned_merge(config, options.artifacts_dir)
    from lit_wsl.learning.replay import at_checkpoint, kept_checkpoint
    from lit_wsl.runs.layout import RunLayout

    if options.checkpoint is not None:
        return at_checkpoint(config, Path(options.checkpoint).expanduser())
    return at_checkpoint(
        config, kept_checkpoint(config, options.optimizer_steps, RunLayout(Path(options.artifacts_dir)))
    )
