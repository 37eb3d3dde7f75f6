"""Outputs of layers inside a model, read while it runs."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from lit_wsl.errors import ConfigError, did_you_mean


class IntermediateLayerGetter:
    """Runs a model and returns outputs of its layers beside its own.

    The model is hooked only while it runs, so that between calls it can be copied, saved and trained as if nobody
    looked; its mode and the mode of autograd stay as they are. Outputs are the very ones the model goes on with, so
    gradients flow through them.

    Args:
        model: Any module.
        return_layers: Module path to the name of its output, or the paths alone. ``""`` is the model itself.
        keep_output: Whether the model's own output is returned; the model runs to its end either way.
        calls: Of a layer that runs several times the ``"last"`` output, or the list of ``"all"`` of every layer.
        copy: Copy the outputs, for layers whose output the model changes in place afterwards.

    Raises:
        ConfigError: If a path is no module of the model, or two outputs have one name.
    """

    def __init__(
        self,
        model: nn.Module,
        return_layers: Mapping[str, str] | Iterable[str],
        keep_output: bool = True,  # noqa: FBT001, FBT002
        *,
        calls: Literal["last", "all"] = "last",
        copy: bool = False,
    ) -> None:
        if calls not in ("last", "all"):
            raise ConfigError(f"`calls` must be 'last' or 'all', got {calls!r}.")
        self.model = model
        self.return_layers = _names_by_path(return_layers)
        self.keep_output = keep_output
        self._calls, self._copy, self._closed = calls, copy, False
        for path in self.return_layers:
            _module_at(model, path)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple["OrderedDict[str, Any]", Any]:
        """Run the model.

        Returns:
            Outputs by name, in the order of ``return_layers``, and the model's output, or None without
            ``keep_output``.

        Raises:
            ConfigError: If the getter is closed, a layer did not run, or an output was changed in place.
        """
        if self._closed:
            raise ConfigError("This IntermediateLayerGetter is closed; make another.")
        seen: dict[str, list[_Seen]] = {path: [] for path in self.return_layers}
        with ExitStack() as hooks:
            for path, outputs in seen.items():
                handle = _module_at(self.model, path).register_forward_hook(self._recorder(outputs))
                hooks.callback(handle.remove)
            output = self.model(*args, **kwargs)
        found: OrderedDict[str, Any] = OrderedDict()
        for path, name in self.return_layers.items():
            found[name] = self._chosen(path, seen[path])
        return found, output if self.keep_output else None

    def close(self) -> None:
        """Let go of the model; later calls are refused."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recorder(self, outputs: list["_Seen"]) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._calls == "last":
                outputs.clear()
            outputs.append(_Seen(output, copy=self._copy))

        return record

    def _chosen(self, path: str, outputs: list["_Seen"]) -> Any:
        if not outputs:
            raise ConfigError(
                f"Layer {path!r} did not run in this call; leave it out, or pass a model that is not compiled."
            )
        if any(output.has_changed() for output in outputs):
            raise ConfigError(f"The model changed the output of {path!r} in place afterwards; pass `copy=True`.")
        values = [output.value for output in outputs]
        return values if self._calls == "all" else values[-1]


class _Seen:
    """An output, and the versions that its tensors had."""

    def __init__(self, value: Any, *, copy: bool) -> None:
        kept = copy or any(tensor.is_inference() for tensor in _tensors(value))  # these count no versions
        self.value = tree_map_only(Tensor, torch.clone, value) if kept else value
        self._versions = [] if kept else [(tensor, tensor._version) for tensor in _tensors(value)]

    def has_changed(self) -> bool:
        return any(tensor._version != version for tensor, version in self._versions)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _names_by_path(layers: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Path to name, each name once."""
    if isinstance(layers, str):
        raise ConfigError(f"`return_layers` must be a mapping or a list of paths; write [{layers!r}].")
    names = dict(layers) if isinstance(layers, Mapping) else {path: path for path in layers}
    if not names:
        raise ConfigError("`return_layers` names no layer; give at least one module path.")
    taken: dict[str, str] = {}
    for path, name in names.items():
        if name in taken:
            raise ConfigError(f"Layers {taken[name]!r} and {path!r} would both be named {name!r}; rename one.")
        taken[name] = path
    return names


def _module_at(model: nn.Module, path: str) -> nn.Module:
    """The module under a path.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        known = [name for name, _ in model.named_modules() if name]
        advice = did_you_mean(path, known)
        if not advice.startswith("Did you mean"):
            parent = path
            while parent not in known and parent:
                parent = parent.rpartition(".")[0]
            level = f"{parent}." if parent else ""
            advice = did_you_mean(
                path, {level + n.removeprefix(level).split(".")[0] for n in known if n.startswith(level)}
            )
        raise ConfigError(f"The model has no module {path!r}. {advice}") from None
