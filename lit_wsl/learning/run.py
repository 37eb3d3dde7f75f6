"""Learn the coefficients of a merge, as ``optimizer: {type: adamerging}`` of a configuration asks for."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerStatus

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.evaluation.content import digest_of
from lit_wsl.evaluation.split_loader import row_count, split_loader
from lit_wsl.evaluation.tasks import load_tasks
from lit_wsl.learning.heldout.selection import HeldOutSelection
from lit_wsl.learning.heldout.settings import read_heldout
from lit_wsl.learning.hierarchy.tree import learn_tree
from lit_wsl.learning.history import LearningHistory
from lit_wsl.learning.learner import CoefficientLearner, task_names
from lit_wsl.learning.options import EmptyCache, make_data, make_learner, make_plateau, tf32, trainer_options
from lit_wsl.learning.params import FreeParams, LearnerParams, read_params
from lit_wsl.learning.saving import MERGE, PROVENANCE, origin_of, write_learned
from lit_wsl.learning.stopping import Plateau
from lit_wsl.merging.config import MergeConfig, config_of
from lit_wsl.merging.parameters import spelled
from lit_wsl.runs.identity import content_hash, hash_inputs
from lit_wsl.runs.layout import RunLayout
from lit_wsl.runs.strict import read_mapping
from lit_wsl.state.publish import locked
from lit_wsl.state.yaml_text import read_yaml
from lit_wsl.training.quiet import quiet_trainer
from lit_wsl.training.text import TextClassificationData

logger = logging.getLogger(__name__)

METHOD = "weighted_delta_n"
HISTORY, CHECKPOINT = "history.jsonl", "last.ckpt"
"""What a run leaves besides what was learned: every update, and a checkpoint to go on from."""
CHECKPOINTS = "checkpoints"
"""Folder of those that held-out measurements keep."""
_DECISIVE = ("transforms", "include", "exclude", "merge_mode", "mismatch")
"""Fields that coefficients depend on, besides sources, base, rows and the optimizer."""
_UNDECISIVE = frozenset(
    {
        *("progress_bar", "logging_steps", "print_coefficients_pre_eval", "save_metadata_pre_eval"),
        *(
            "entropy_debug_stats",
            "entropy_debug_steps",
            "empty_cache_interval",
            "checkpoint_every",
            "resume_checkpoint",
        ),
        *("dataloader_num_workers", "dataloader_pin_memory", "non_blocking_transfer"),
    }
)
"""Parameters of optimizers that no coefficient depends on: with other values it is the same run, which goes on."""


@dataclass(frozen=True)
class Learned:
    """A merge whose coefficients were learned."""

    config: MergeConfig
    """The merge, without an optimizer."""
    directory: Path
    """Files of the run."""
    provenance: dict[str, Any]
    """What was done, in plain values."""
    is_earlier: bool = False
    """Whether an earlier run had learned them already."""


def learn_merge(
    config: MergeConfig, *, layout: RunLayout | None = None, directory: Path | None = None, wait: bool = False
) -> Learned:
    """Learn the coefficients that a configuration's optimizer stands for.

    The same call takes up a finished run, and goes on with one that was killed. What is learned of a tree
    (``optimizer.params.hierarchical``) is the merge at its root, whose sources lie in the directory of the run.

    Args:
        config: Sources, base, tasks and an optimizer that learns.
        layout: Where runs lie; default below ``artifacts``.
        directory: Files of this run; default by method, tasks and content.
        wait: Whether to wait for another process that learns the same, and take up what it finds.

    Raises:
        ConfigError: If the optimizer or one of its parameters is unknown, or tasks are missing.
        LitWslError: If the merge or its data cannot be learned on.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
    """
    kind, params = learner_of(config)
    home = directory or run_directory(config, kind, params, layout or RunLayout())
    params = with_own_folder(params, home)
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "run", wait=wait):
        learn = _Run(kind, layout or RunLayout())
        if isinstance(params, FreeParams) and params.tree is not None:
            found = learn_tree(config, kind, params, home, learn)
        else:
            found = learn(config, params, home)
    return replace(found, config=replace(found.config, learned_from=origin_of(kind, asdict(params), home)))


def learner_of(config: MergeConfig) -> tuple[str, LearnerParams]:
    """Name and parameters of a configuration's optimizer.

    Raises:
        ConfigError: If it does not learn, or a parameter is wrong.
    """
    kind = "none" if config.optimizer is None else config.optimizer.type
    if config.optimizer is None or kind in ("none", "bayes"):
        raise ConfigError(f"`optimizer: {kind}` learns no coefficients; name `adamerging`, for instance.")
    if config.method not in (METHOD, "uniform"):
        raise ConfigError(
            f"`optimizer: {kind}` learns coefficients of `method: {METHOD}`, not of {config.method!r}; leave one out."
        )
    return kind, read_params(kind, config.optimizer.params)


@dataclass(frozen=True)
class _Run:
    """Learns one merge, or takes up what was learned in its directory."""

    kind: str
    layout: RunLayout

    def __call__(
        self, config: MergeConfig, params: LearnerParams, home: Path, source_tasks: list[list[str]] | None = None
    ) -> Learned:
        home.mkdir(parents=True, exist_ok=True)
        if (home / PROVENANCE).is_file() and (home / MERGE).is_file():
            logger.info("These coefficients are learned already: %s.", home)
            return Learned(_restored(config, home), home, read_mapping(home / PROVENANCE), is_earlier=True)
        return _learn(config, self.kind, params, home, self.layout, source_tasks)


def _learn(
    config: MergeConfig,
    kind: str,
    params: LearnerParams,
    home: Path,
    layout: RunLayout,
    source_tasks: list[list[str]] | None,
) -> Learned:
    from lit_wsl.learning.drawing import save  # matplotlib takes a while to import
    from lit_wsl.learning.plots import history_plot

    seed_everything(params.seed, verbose=False)
    learner = make_learner(kind, config, params, source_tasks)
    data = make_data(learner, params)
    plateau, history = make_plateau(params), _history(params, home)
    heldout = _heldout(params, home, layout)
    callbacks: list[Callback] = [plateau, history, *([heldout] if heldout else []), *_others(params, home)]
    resumed = _checkpoint(params, home)
    with tf32(allowed=params.allow_tf32), quiet_trainer():
        trainer = Trainer(**trainer_options(params), default_root_dir=home, callbacks=callbacks)
        _fit(trainer, learner, data, resumed)
    provenance = {
        **_found(plateau, history, heldout),
        "params": asdict(params),
        "optimizer_steps_completed": trainer.global_step,
        "resumed_from": None if resumed is None else str(resumed),
    }
    save(history_plot(home / HISTORY), home / "history.png")
    write_learned(learner, provenance, home)
    return Learned(learner.learned(), home, read_mapping(home / PROVENANCE))


def _fit(trainer: Trainer, learner: CoefficientLearner, data: Any, resumed: Path | None) -> None:
    """Run the Trainer, which on Ctrl-C exits the process in a way of its own, and after an error leaves all open."""
    try:
        trainer.fit(learner, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SystemExit as error:
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            raise KeyboardInterrupt from error
        raise
    finally:
        learner.live.close()
    if trainer.state.status == TrainerStatus.INTERRUPTED:
        raise KeyboardInterrupt


def _found(plateau: Plateau, history: LearningHistory, heldout: HeldOutSelection | None) -> dict[str, Any]:
    """What the callbacks found."""
    return {
        **history.summary(),
        "best_mean": plateau.best,
        "best_mean_update": plateau.best_update,
        "stopped_early_at": plateau.stopped_at,
        "heldout": None if heldout is None else heldout.summary(),
    }


def _history(params: LearnerParams, home: Path) -> LearningHistory:
    return LearningHistory(
        home / HISTORY,
        log_coefficients=params.log_coefficients_during_training,
        log_layer_coefficients=params.log_layer_coefficients_full,
        log_gradients=params.log_alpha_grad_stats,
        log_labels=params.log_label_token_stats,
    )


def _heldout(params: LearnerParams, home: Path, layout: RunLayout) -> HeldOutSelection | None:
    settings = read_heldout(params.heldout_eval)
    if settings is None:
        return None
    kept = Path(params.checkpoint_dir).expanduser() if params.checkpoint_dir else home / CHECKPOINTS
    return HeldOutSelection(
        settings, home, layout=layout, checkpoint_dir=kept if params.checkpoint_on_heldout_eval else None
    )


def _others(params: LearnerParams, home: Path) -> list[Callback]:
    found: list[Callback] = []
    if params.empty_cache_interval:
        found.append(EmptyCache(params.empty_cache_interval))
    if params.logging_steps:
        found.append(_Told(params.logging_steps))
    if params.checkpoint_every:
        kept = Path(params.checkpoint_dir).expanduser() if params.checkpoint_dir else home
        found.append(
            ModelCheckpoint(
                kept,
                filename=Path(CHECKPOINT).stem,
                every_n_train_steps=params.checkpoint_every,
                enable_version_counter=False,
                save_top_k=1,
                monitor=None,
            )
        )
    return found


class _Told(Callback):
    """A line about the objective after every so many updates."""

    def __init__(self, every: int) -> None:
        self._every, self._last = every, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        update = trainer.global_step
        if update == self._last or update % self._every or not isinstance(pl_module, CoefficientLearner):
            return
        self._last, latest = update, pl_module.latest
        if latest is not None:
            losses = ", ".join(f"{task} {loss:.4f}" for task, loss in latest.losses.items())
            logger.info("update %d: objective %.5f; %s", update, latest.objective, losses)


def _checkpoint(params: LearnerParams, home: Path) -> Path | None:
    """What to go on from."""
    if params.resume_checkpoint is not None:
        given = Path(params.resume_checkpoint).expanduser()
        if not given.is_file():
            raise ConfigError(f"`resume_checkpoint` {given} is no file; leave it out to start anew.")
        return given
    last = (Path(params.checkpoint_dir).expanduser() if params.checkpoint_dir else home) / CHECKPOINT
    return last if last.is_file() else None


def run_directory(config: MergeConfig, kind: str, params: LearnerParams, layout: RunLayout) -> Path:
    """Where the run of this content lies: sources, base, rows and all that the outcome depends on."""
    names = task_names(config, params.tasks)
    tasks = load_tasks(config.registry, base=config.origin, names=names)
    rows = {name: [task.description, str(task.head), _rows_digest(task, params.split)] for name, task in tasks.items()}
    spec = config.to_merge_spec()
    sources = hash_inputs([*spec.sources, *filter(None, [spec.base])])
    content = {key: value for key, value in config.to_dict().items() if key in _DECISIVE}
    given = config.optimizer.params if config.optimizer is not None else {}
    decisive = {name: value for name, value in given.items() if spelled(name) not in _UNDECISIVE}
    content["optimizer"] = {"type": kind, "params": decisive}
    identity = content_hash([content, list(sources.values()), rows])[:12]
    home = layout.home(METHOD, config.source_tasks)
    if config.output_dir is not None:
        home = Path(config.output_dir).expanduser()
    return home / "learning" / f"{kind}_{identity}"


def with_own_folder(params: LearnerParams, home: Path) -> LearnerParams:
    """The parameters of one run: in a folder that is given for checkpoints each run has one of its own name."""
    if params.checkpoint_dir is None:
        return params
    return replace(params, checkpoint_dir=str(Path(params.checkpoint_dir) / home.name))


def _rows_digest(task: Any, split: Any) -> str:
    """Hash of the rows where they can be told, else their number."""
    loader = split_loader(task, split)
    if isinstance(task.data, TextClassificationData):
        return digest_of(list(task.data.examples(split)))
    return digest_of(task.description, row_count(loader))


def _restored(config: MergeConfig, home: Path) -> MergeConfig:
    """The merge that an earlier run learned, measured and written as this configuration says."""
    try:
        learned = config_of(read_yaml((home / MERGE).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ConfigError) as error:
        raise MergeError(
            f"{home / MERGE} is damaged ({' '.join(str(error).split())}); remove {home} to learn anew."
        ) from error
    found = ("method", "method_params", "rules", "transforms")
    return replace(config, **{name: getattr(learned, name) for name in found}, optimizer=None, lambda_policy=None)
