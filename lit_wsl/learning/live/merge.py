"""The merge that is learned, live: the backbone with its sources, and every task's way through it."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.evaluation.task import Task
from lit_wsl.learning.live.dense import Residency
from lit_wsl.learning.live.dtypes import delta_dtype, named_dtype
from lit_wsl.learning.live.engine import MergeEngine
from lit_wsl.learning.live.engines import MergeOnce, engine_class
from lit_wsl.learning.live.frugal import checkpointed, without_dropout
from lit_wsl.learning.live.reading import read_deltas
from lit_wsl.learning.live.task_model import Outputs, task_models
from lit_wsl.learning.rows import Rows
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.plan import MergePlan, make_plan
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.state.names import NameResolver


@dataclass(frozen=True)
class EngineSettings:
    """How the merged model is kept live.

    Raises:
        ConfigError: If an engine or a dtype is unknown.
    """

    merge_impl: str = MergeOnce.name
    """`merge_once`, `streaming_parametrize`, `functional_clone_legacy`, `fused_linear` or `fused_lora_linear`."""
    delta_residency: Residency = "cpu_stream"
    """Updates stay as they were read, or are kept beside the weights (`gpu_cache`)."""
    dtype_compute: str = "auto"
    """Dtype that weights are summed in; `auto` is float32 or wider."""
    task_vector_dtype: str = "auto"
    """Dtype that updates are rounded to; `auto` is bfloat16 on CUDA, else as they are."""
    model_dtype: str = "auto"
    """Dtype of the backbone; `auto` is bfloat16 on CUDA, else float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, for less memory."""
    zero_dropout: bool = True
    """No dropout."""

    def __post_init__(self) -> None:
        engine_class(self.merge_impl)
        for field in ("dtype_compute", "task_vector_dtype", "model_dtype"):
            named_dtype(field, getattr(self, field))


class LiveMerge:
    """Opens sources and base, and makes of them a model that follows its coefficients.

    Headers are read at once; weights when :meth:`open` is called.

    Args:
        config: The merge; its method is not used.
        tasks: What it is learned on.
        settings: How the model is kept live.

    Raises:
        LitWslError: If a source or the base cannot be merged.
    """

    def __init__(self, config: MergeConfig, tasks: Mapping[str, Task], settings: EngineSettings | None = None) -> None:
        if config.slices:
            raise ConfigError("Coefficients are learned for whole models; merge the `slices` into one first.")
        self.settings, self._tasks = settings or EngineSettings(), tasks
        self._origin = _origin(config)
        self.plan: MergePlan = make_plan(_summed(config.to_merge_spec()))
        self._engine: MergeEngine | None = None
        self._stack = ExitStack()

    @cached_property
    def _models(self) -> tuple[nn.Module, dict[str, Any]]:
        """The backbone and the tasks' models, made once."""
        return task_models(list(self._tasks.values()), self._origin)

    @property
    def backbone(self) -> nn.Module:
        """The live model."""
        return self._models[0]

    def open(self, rows: Rows, device: torch.device) -> None:
        """Move the model to a device and put its sources in; a second call does nothing.

        Raises:
            MergeError: If the model is not the base of the merge.
        """
        if self._engine is not None:
            return
        backbone, models = self._models
        self._check_base()
        dtype = named_dtype("model_dtype", self.settings.model_dtype)
        if dtype is None and device.type == "cuda":
            dtype = torch.bfloat16
        for module in (backbone, *(model.head for model in models.values() if model.head is not None)):
            module.to(device=device, dtype=dtype)
            if self.settings.zero_dropout:
                self._stack.enter_context(without_dropout(module))
        if self.settings.gradient_checkpointing:
            self._stack.enter_context(checkpointed(backbone))
        deltas = read_deltas(
            self.plan, self.settings.delta_residency, delta_dtype(self.settings.task_vector_dtype, device)
        )
        make = engine_class(self.settings.merge_impl)
        compute = named_dtype("dtype_compute", self.settings.dtype_compute)
        self._engine = self._stack.enter_context(make(backbone, deltas, rows.of, compute))

    def close(self) -> None:
        """Give the backbone its own weights, dropout and modes back; it stays on its device, in its dtype."""
        self._stack.close()
        self._engine = None

    def merge(self, coefficients: Tensor) -> None:
        """Make the model the merge by these coefficients, shape ``(rows, T)``.

        Raises:
            MergeError: If it is not open.
        """
        if self._engine is None:
            raise MergeError("The merge is not open; call `open` first.")
        self._engine.merge(coefficients)

    def __call__(self, task: str, batch: Any) -> Outputs:
        """What the merged model says of a batch of a task."""
        return self._models[1][task](batch)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """State dict of the merged backbone, under the names of the base, on the CPU.

        Raises:
            MergeError: If it is not open.
        """
        if self._engine is None:
            raise MergeError("The merge is not open; call `open` first.")
        return {name: tensor.cpu().clone() for name, tensor in self._engine.state(self.backbone).items()}

    def _check_base(self) -> None:
        """Refuse a model with other weights than the base of the merge has."""
        base = self.plan.base
        if base is None:
            return
        own = dict(self.backbone.named_parameters(remove_duplicate=False))
        found = NameResolver(list(own)).resolve(self.plan.merged)
        for name in self.plan.merged:
            if name in found and not _is_rounding(own[found[name]].detach().cpu(), base.read(name)):
                raise MergeError(
                    f"The model of the tasks is not the base of the merge: {name!r} differs from {self._origin}. "
                    "Give the base that the tasks' `model` loads."
                )


def _summed(spec: MergeSpec) -> MergeSpec:
    """The same sources, for a sum with coefficients that are to be found."""
    return replace(
        spec,
        method="weighted_delta_n",
        method_params={},
        lambda_policy=None,
        rules=[],
        output=None,
        output_format="delta",
    )


def _origin(config: MergeConfig) -> str:
    if config.base is None:
        raise ConfigError("Coefficients are learned on a live model, so name the base: pass `--base DIR`.")
    return config.base


def _is_rounding(live: Tensor, stored: Tensor) -> bool:
    """Whether two tensors are the same up to a cast."""
    if live.shape != stored.shape:
        return False
    narrow = live.dtype if live.dtype.itemsize < stored.dtype.itemsize else stored.dtype
    return bool(live.to(narrow).equal(stored.to(narrow)))
