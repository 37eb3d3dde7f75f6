"""What to merge, how, and where to: the one description behind the command line, YAML and Python."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.merging.field_types import check_fields
from lit_wsl.merging.parameters import is_number
from lit_wsl.merging.settings import LambdaPolicySpec, ParameterRule, TransformSpec, read_part
from lit_wsl.merging.slice_spec import SliceSpec, check_slices, columns
from lit_wsl.state.sizes import read_size


@dataclass(frozen=True)
class MergeSpec:
    """A merge, complete enough to be repeated.

    Raises:
        ConfigError: If a field has the wrong type, or fields contradict each other.
    """

    adapters: list[str] = field(default_factory=list)
    """LoRA adapter directories in PEFT layout."""
    models: list[str] = field(default_factory=list)
    """Full fine-tuned models: directories or weight files, on the same base."""
    deltas: list[str] = field(default_factory=list)
    """Saved task vectors: outputs of a merge with `--output_format delta`, or files of dense updates."""
    slices: list[SliceSpec] = field(default_factory=list)
    """Instead of whole models: layers of models, stacked one slice after another and merged within each."""
    statistics: list[str] = field(default_factory=list)
    """For methods that use data: one file of gathered statistics per source, in their order."""
    base: str | None = None
    """The base model: a directory or weight file. Needed for `model` output, full models and DoRA."""
    method: str = "uniform"
    """Merge method; `lit-wsl merge --list_methods` shows all."""
    method_params: dict[str, Any] = field(default_factory=dict)
    """Parameters of the method, for instance `--method_params.k 20`."""
    lambda_policy: LambdaPolicySpec | None = None
    """One lambda for all layers, or one per layer, for a method that has one."""
    rules: list[ParameterRule] = field(default_factory=list)
    """Parameters of the method for some parameters of the model; the first that matches decides."""
    transforms: list[TransformSpec] = field(default_factory=list)
    """Changes of the task vectors before they are merged, in order."""
    include: list[str] = field(default_factory=list)
    """Merge only parameters that one of these patterns matches (globs, dotted parts, `re:` and a regex)."""
    exclude: list[str] = field(default_factory=list)
    """Leave parameters that one of these patterns matches as they are in the base."""
    merge_mode: Literal["common", "strict", "union"] = "common"
    """`common` merges the parameters that all sources have and reports the rest; `union` merges all, and a source
    without one has no update there; `strict` refuses a difference."""
    mismatch: Literal["error", "skip", "copy_base", "common_rows"] = "error"
    """Shapes that differ from the base's: refuse; `skip` the update of that source; `copy_base` for that parameter; or
    merge the `common_rows` of a resized vocabulary."""
    output_format: Literal["adapter", "delta", "model"] | None = None
    """What to write; default `adapter` for adapters alone, otherwise `model`."""
    output: str | None = None
    """Directory to write."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Stored dtype; `auto` keeps the base's for a model and float32 for a delta."""
    compute_dtype: Literal["float32", "float64"] = "float32"
    """Dtype that is computed in; rounded once, at the end."""
    rank: int | None = None
    """Rank of an adapter output; default the sum of the sources' ranks, which is exact for linear methods."""
    energy: float = 1.0
    """Share of the squared norm that an adapter output must hold; below 1 it lowers the rank."""
    heads: Literal["per_task", "merge", "drop"] = "per_task"
    """Task heads: kept beside the merged weights, one file a task; merged into their mean; or dropped."""
    tokenizer: str | None = None
    """Model whose tokenizer a model output carries; default that of the base."""
    shard_size: str = "5GB"
    """Largest file of a model output, for instance 500MB."""
    check_bases: bool = True
    """Refuse adapters whose configurations name different base models."""
    tally: bool = False
    """Count what the method kept (``dare``, ``ties``) in a pass of its own, for the metadata."""
    verify: bool = False
    """Read the output back and compare it with what was computed."""
    threads: int = 0
    """Parameters merged at once; 0 takes one per free core. The result does not depend on it."""
    overwrite: bool = False
    """Replace an earlier output."""

    def __post_init__(self) -> None:
        check_fields(type(self), {one.name: getattr(self, one.name) for one in fields(self)})
        self._read_parts()
        self._check_choices()
        if not self.adapters and not self.models and not self.deltas and not self.slices:
            raise ConfigError("Nothing to merge: name sources with `--adapters A B`, `--models A B` or `--deltas A B`.")
        if self.slices and (self.adapters or self.models or self.deltas):
            raise ConfigError("`slices` name their models themselves; merge adapters and deltas into models first.")
        check_slices(self.slices, self.base)
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"`rank >= 1` must hold, got {self.rank}.")
        if self.threads < 0:
            raise ConfigError(f"`threads >= 0` must hold, got {self.threads}.")
        if not 0.0 < self.energy <= 1.0:
            raise ConfigError(f"`0 < energy <= 1` must hold, got {self.energy}; for 95 % write 0.95.")
        if self.format == "adapter" and (self.models or self.deltas or self.slices):
            raise ConfigError("Full models have no low-rank factors, nor do deltas; write `--output_format model`.")
        if self.format == "model" and self.origin is None:
            raise ConfigError("A model output needs the base model: pass `--base DIR`.")
        self.shard_bytes  # noqa: B018  # an unreadable size must show before the work

    def _read_parts(self) -> None:
        """Turn the mappings of a file into records."""
        parts: list[tuple[str, type[Any]]] = [
            ("rules", ParameterRule),
            ("transforms", TransformSpec),
            ("slices", SliceSpec),
        ]
        for name, cls in parts:
            read = [read_part(cls, one, f"{name}[{i}]") for i, one in enumerate(getattr(self, name))]
            object.__setattr__(self, name, read)
        if self.lambda_policy is not None:
            object.__setattr__(self, "lambda_policy", read_part(LambdaPolicySpec, self.lambda_policy, "lambda_policy"))

    def _check_choices(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, options = getattr(self, name), _options(hint)
            if options and value is not None and value not in options:
                raise ConfigError(f"`{name}` cannot be {value!r}. {did_you_mean(str(value), options)}")
            if hint in (str, str | None) and value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"`{name}` must be a non-empty text, got {value!r}.")

    @property
    def format(self) -> Literal["adapter", "delta", "model"]:
        """The output format with its default filled in."""
        return self.output_format or ("model" if self.models or self.slices else "adapter")

    @property
    def sources(self) -> list[str]:
        """All sources in the order in which methods see them: paths of adapters, models, deltas; or names of stacks."""
        stacked = [column.label for column in columns(self.slices, self.base)[0]] if self.slices else []
        return [*self.adapters, *self.models, *self.deltas, *stacked]

    @property
    def origin(self) -> str | None:
        """The model whose parameters stand in for a base, and whose configuration is carried over."""
        first = self.models or [source.model for one in self.slices[:1] for source in one.sources]
        return self.base or next(iter(first), None)

    @property
    def policy(self) -> LambdaPolicySpec | None:
        """The lambda policy; that of a plain lambda in [0, 1] is ``scalar``, and None where there is no such lambda."""
        lam = self.method_params.get("lambda")
        if self.lambda_policy is None and is_number(lam) and 0.0 <= float(lam or 0.0) <= 1.0:
            return LambdaPolicySpec(value=lam)
        return self.lambda_policy

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's parameters under the lambda policy."""
        params = dict(self.method_params)
        if self.lambda_policy is not None:
            params["lambda"] = self.lambda_policy.lam(params.get("lambda"))
        return params

    @property
    def shard_bytes(self) -> int:
        """``shard_size`` in bytes."""
        return read_size(self.shard_size)

    def to_merge_spec(self) -> "MergeSpec":
        """The merge alone, for those who are given more."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping of all fields, for a configuration file or metadata."""
        return asdict(self)


def _options(hint: Any) -> tuple[str, ...]:
    """Choices of a ``Literal`` annotation, optional or not; empty for any other."""
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    return tuple(get_args(literals[0])) if literals else ()
