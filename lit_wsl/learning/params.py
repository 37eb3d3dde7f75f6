"""``optimizer.params`` of every learner: names, defaults and ranges; what they mean for a run stands in ``options``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lit_wsl.errors import ConfigError
from lit_wsl.learning.hierarchy.shape import TreeSettings, read_tree
from lit_wsl.merging.parameters import build_from
from lit_wsl.merging.settings import renamed
from lit_wsl.training.tasks import Split

VARIANTS = {
    "task_wise": ("task", False),
    "layer_wise": ("layer", False),
    "tensor_wise": ("tensor", False),
    "groups": ("groups", False),
    "plusplus": ("task", True),
    "plus_plus": ("task", True),
}
"""Granularity of a ``variant``, and whether task vectors are prepared as in AdaMerging++."""
_PLUS_PLUS = "_plus_plus"


@dataclass(frozen=True)
class LearnerParams:
    """What all learners have.

    Raises:
        ConfigError: If a value is out of range.
    """

    alternative_names: ClassVar[Mapping[str, str]] = {"optimizer_steps": "steps"}
    """Other names of parameters; where both are given, the parameter's own holds."""

    tasks: list[str] | None = None
    """Tasks to learn on; default those of the sources."""
    steps: int = 500
    """Batches of every task; with accumulation they are more than updates."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """Its decay rates."""
    batch_size: int = 2
    """Rows of each task in a batch."""
    split: Split = "validation"
    """Rows to learn on."""
    seed: int = 0
    """Seed of the order of rows."""
    merge_impl: str = "merge_once"
    """How the merged model is kept live."""
    delta_residency: Literal["cpu_stream", "gpu_cache"] = "cpu_stream"
    """Updates stay as they were read, or beside the weights."""
    dtype_compute: str = "auto"
    """Dtype that weights are summed in."""
    task_vector_dtype: str = "auto"
    """Dtype that updates are rounded to."""
    model_dtype: str = "auto"
    """Dtype of the backbone."""
    force_cpu: bool = False
    """Learn on the CPU in float32."""
    use_autocast: bool = True
    """Activations in bfloat16 on CUDA."""
    allow_tf32: bool = True
    """Products in TF32 on CUDA, while it learns."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass: less memory, a third more time."""
    zero_dropout: bool = True
    """No dropout."""
    empty_cache_interval: int = 0
    """Empty CUDA's cache after so many steps; 0 never."""
    logging_steps: int = 0
    """Tell of progress after so many updates; 0 never."""
    progress_bar: bool = True
    """Show one."""
    dataloader_num_workers: int = 0
    """Processes that load batches, for each task."""
    dataloader_pin_memory: bool = True
    """Load into memory that a GPU reads fast."""
    non_blocking_transfer: bool = True
    """Copy to the GPU while it computes."""
    eval_subset: dict[str, Any] | None = None
    """Learn on some rows only: ``enabled``, ``max_samples``, ``per_task``, ``shuffle``, ``seed``."""
    sampling: dict[str, Any] | None = None
    """How rows are drawn: ``default`` and ``per_task`` with ``enabled`` and ``strategy``."""
    rolling_window: int = 10
    """Updates that the monitored mean of the objective is taken over."""
    restore_best_checkpoint: bool = False
    """End with the coefficients of the smallest monitored mean."""
    log_alpha_grad_stats: bool = True
    """Keep the gradient's norms."""
    log_label_token_stats: bool = True
    """Keep how many labels a batch has."""
    log_coefficients_during_training: bool = True
    """Keep the coefficients of every update."""
    log_layer_coefficients_full: bool = False
    """Of every row, not their mean alone."""
    save_metadata_pre_eval: bool = False
    """Write what was learned before anything is evaluated."""
    print_coefficients_pre_eval: bool = False
    """Print it."""
    heldout_eval: dict[str, Any] | None = None
    """Choose by rows that are not learned from."""
    checkpoint_dir: str | None = None
    """Where checkpoints go, those of each run into a folder of its name; default beside what is learned."""
    checkpoint_on_heldout_eval: bool = False
    """Keep a checkpoint of every held-out evaluation."""
    checkpoint_every: int = 50
    """Updates between checkpoints that a killed run goes on from; 0 for none."""
    resume_checkpoint: str | None = None
    """Go on from this one; default the last of the same run."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "rolling_window": 1, "dataloader_num_workers": 0, "checkpoint_every": 0}
        least |= {"empty_cache_interval": 0, "logging_steps": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"`optimizer.params.{name} >= {low}` must hold, got {getattr(self, name)}.")
        if not self.lr > 0.0:
            raise ConfigError(f"`optimizer.params.lr > 0` must hold, got {self.lr}.")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"`optimizer.params.betas` are two numbers in [0, 1), got {list(self.betas)}.")


@dataclass(frozen=True)
class FreeParams(LearnerParams):
    """What learners of free coefficients have, one a task and row."""

    variant: str = "task_wise"
    """``task_wise``, ``layer_wise``, ``tensor_wise`` or ``groups``; with ``_plus_plus`` behind it, prepared as in
    AdaMerging++."""
    groups: list[str] | None = None
    """Patterns of ``variant: groups``."""
    plus_plus: bool = False
    """Keep of every task vector its largest entries, where they have the elected sign."""
    plus_plus_k: float = 20.0
    """How many of them, in percent."""
    plus_plus_lambda: float = 1.0
    """Factor on what is left."""
    task_scope: str = "classification"
    """Kind of the tasks; only recorded."""
    init_lambda: float = 0.3
    """First coefficients."""
    coefficient_parameterization: str = "projected_lambda"
    """How coefficients follow from free numbers."""
    project_coefficients: bool = True
    """Bring ``projected_lambda`` back into bounds after each update."""
    coefficient_min: float = 0.0
    """Smallest."""
    coefficient_max: float = 1.0
    """Largest."""
    normalize_coefficients: bool = False
    """Divide by their sum over the tasks."""
    gradient_accumulation_steps: int = 1
    """Steps of an update; what is left over at the end makes one, too."""
    early_stopping_patience: int = 0
    """Stop after so many updates without growth; 0 never."""
    early_stopping_threshold: float = 0.0
    """What counts as growth of the monitored mean."""
    min_optimizer_steps_before_early_stop: int = 0
    """Updates before it may stop."""
    early_stopping_warmup_steps: int = 0
    """Updates that patience does not count; the best is tracked."""
    hierarchical: dict[str, Any] | None = None
    """Learn a tree of merges: ``enabled``, ``arity``, ``order``."""

    scopes: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        super().__post_init__()
        granularity, is_prepared = self._read_variant()
        if self.task_scope not in self.scopes:
            raise ConfigError(f"`optimizer.params.task_scope` is {' or '.join(self.scopes)}, got {self.task_scope!r}.")
        if (granularity == "groups") != bool(self.groups):
            raise ConfigError(
                "`optimizer.params.groups` are patterns that go with `variant: groups`, and it with them."
            )
        if not 0.0 <= self.plus_plus_k <= 100.0:
            raise ConfigError(f"`0 <= optimizer.params.plus_plus_k <= 100` must hold, got {self.plus_plus_k}.")
        if is_prepared and self.merge_impl == "fused_lora_linear":
            raise ConfigError("`plus_plus` makes updates dense, which `merge_impl: fused_lora_linear` cannot merge.")
        least = {"gradient_accumulation_steps": 1, "early_stopping_patience": 0, "early_stopping_threshold": 0.0}
        least |= {"min_optimizer_steps_before_early_stop": 0, "early_stopping_warmup_steps": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"`optimizer.params.{name} >= {low}` must hold, got {getattr(self, name)}.")

        self.tree  # noqa: B018  # a wrong tree must show before the work

    @property
    def tree(self) -> TreeSettings | None:
        """How a tree of merges is learned; None for one merge of all sources."""
        return read_tree(self.hierarchical)

    @property
    def granularity(self) -> str:
        """What has a coefficient of its own."""
        return self._read_variant()[0]

    @property
    def is_prepared(self) -> bool:
        """Whether task vectors are prepared as in AdaMerging++."""
        return self._read_variant()[1]

    def _read_variant(self) -> tuple[str, bool]:
        name = self.variant.strip().lower()
        plain = name.removesuffix(_PLUS_PLUS) if name != "plus_plus" else name
        if plain not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ConfigError(f"Unknown `optimizer.params.variant` {self.variant!r}; it is one of {known}.")
        granularity, own = VARIANTS[plain]
        return granularity, own or self.plus_plus or name != plain


@dataclass(frozen=True)
class AdaMergingParams(FreeParams):
    """Of ``adamerging``."""

    alternative_names: ClassVar[Mapping[str, str]] = {
        **FreeParams.alternative_names,
        "entropy_rolling_window": "rolling_window",
    }

    split: Split = "test"
    """Rows to learn on, without their labels; the paper's are those of the test."""
    entropy_temperature: float = 1.0
    """Logits are divided by it."""
    entropy_chunk_size: int = 4096
    """Classes worked on at once; 0 for all."""
    diversity: float = 0.0
    """How much the entropy of the mean prediction over a batch is made larger, against one class for every row."""
    entropy_debug_stats: bool = False
    """Log how entropies are spread."""
    entropy_debug_steps: int | None = None
    """How often; default as ``logging_steps``."""
    require_valid_label_mask: bool = True
    """Refuse logits of positions without labels that tell which of them count."""


@dataclass(frozen=True)
class GradientParams(FreeParams):
    """Of ``gradient``."""

    min_optimizer_steps_before_early_stop: int = 20
    early_stopping_warmup_steps: int = 20
    ce_use_model_loss: bool = True
    """Take the loss that the model gives, if it gives one."""
    ce_task_weighting: Literal["baseline_normalized", "equal", "manual"] = "baseline_normalized"
    """How much a task counts."""
    ce_manual_task_weights: dict[str, Any] | None = None
    """Weights by task, of ``manual``."""
    ce_baseline_source: Literal["single_task_eval", "file"] = "single_task_eval"
    """Baselines are measured, or read."""
    ce_baseline_file: str | None = None
    """From there."""
    ce_baseline_batches: int = 32
    """Batches that they are measured on."""
    ce_baseline_floor: float = 1e-6
    """Smallest that is divided by."""
    ce_multiplier_cap: float | None = None
    """Largest weight."""
    ce_ignore_index: int = -100
    """Label that does not count."""
    ce_label_smoothing: float = 0.0
    """In [0, 1)."""
    ce_reduction: Literal["mean", "sum"] = "mean"
    """Over the labels of a batch."""
    enforce_validation_only_selection: bool = True
    """Refuse another split than ``validation``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.enforce_validation_only_selection and self.split != "validation":
            raise ConfigError(
                f"Labels of {self.split} rows are not to be learned from: set `split: validation`, or "
                "`enforce_validation_only_selection: false`."
            )


@dataclass(frozen=True)
class SuperMergeParams(GradientParams):
    """Of ``supermerge``."""

    task_scope: str = "all"
    coefficient_parameterization: str = "tanh_alpha"
    coefficient_min: float = -1.0
    ce_task_weighting: Literal["baseline_normalized", "equal", "manual"] = "equal"
    magnitude_scope: Literal["global", "per_layer", "per_task"] = "per_layer"
    """Magnitudes of ``simplex_softmax_scaled``."""
    magnitude_init: float = 1.0
    """Their first value."""
    learn_magnitude: bool = True
    """Whether they learn."""

    scopes: ClassVar[tuple[str, ...]] = ("all", "classification")


@dataclass(frozen=True)
class RegretParams(LearnerParams):
    """Of ``regret_smoothmax``."""

    lr: float = 3e-4
    batch_size: int = 1
    logging_steps: int = 10
    restore_best_checkpoint: bool = True
    tau: float = 0.1
    """How smooth the maximum is."""
    regret_eps: float = 1e-4
    """Added to what a source gains."""
    baseline_batches: int = 64
    """Batches that base and sources are measured on."""
    init_mode: Literal["uniform", "from_lambda"] = "uniform"
    """First shares are equal, or given."""
    init_lambda_values: list[float] | None = None
    """They, one a source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split != "validation":
            raise ConfigError(f"`regret_smoothmax` learns on `split: validation`, got {self.split!r}.")
        if (self.init_lambda_values is not None) != (self.init_mode == "from_lambda"):
            raise ConfigError("`init_lambda_values` go with `init_mode: from_lambda`, and it with them.")
        values = self.init_lambda_values or [1.0]
        if min(values) < 0.0 or not sum(values) > 0.0:
            raise ConfigError(f"`init_lambda_values` must not be negative nor all zero, got {values}.")


PARAMS: dict[str, type[LearnerParams]] = {
    "adamerging": AdaMergingParams,
    "gradient": GradientParams,
    "supermerge": SuperMergeParams,
    "regret_smoothmax": RegretParams,
}
"""By the name of the optimizer."""


def read_params(kind: str, given: Mapping[str, Any]) -> LearnerParams:
    """The parameters of an optimizer, checked.

    Raises:
        ConfigError: If one is unknown, has the wrong type, or is out of range.
    """
    cls = PARAMS[kind]
    if "hierarchical" in given and not issubclass(cls, FreeParams):
        raise ConfigError(
            f"`{kind}` learns shares against single sources, which a tree has not; leave `hierarchical` out, or learn "
            "by `adamerging`, `gradient` or `supermerge`."
        )
    return build_from(cls, "Optimizer", kind, renamed(given, cls.alternative_names))
