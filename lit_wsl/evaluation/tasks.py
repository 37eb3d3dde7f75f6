"""The task registry: a YAML file or mapping that names data, metric, head and adapter of every task."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
import yaml

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.evaluation.instances import make_instance, takes
from lit_wsl.evaluation.task import PRIMARY_METRICS, Direction, Task
from lit_wsl.state.adapters import HEAD_FILE
from lit_wsl.state.yaml_text import read_yaml

if TYPE_CHECKING:
    from lit_wsl.evaluation.encoder import EncoderEvaluator
    from lit_wsl.evaluation.module import ModuleEvaluator

_DEFAULT = "default"
_TEXTS = "lit_wsl.training.text.TextClassificationData"


@dataclass(frozen=True)
class TaskSpec:
    """One entry of a registry.

    Raises:
        ConfigError: If a field is wrong.
    """

    data: Mapping[str, Any] | str
    """``{class_path, init_args}`` of a data module; or a word: the `task` of TextClassificationData."""
    metric: str | None = _DEFAULT
    """The metric that counts; null counts none. By default that of a known task name, else accuracy for texts."""
    direction: Direction | None = None
    """``max`` or ``min``: which way is better; by default ``min`` for error rates, losses and perplexity."""
    head: str = "prompt"
    """``prompt``, ``adapter`` (the head beside the adapter), or the path of a ``head.safetensors``."""
    adapter: str | None = None
    """The adapter that was tuned on this task alone."""
    label_column: str | None = None
    """Where rows have their class, for stratified subsets of data that are no texts with labels."""
    model: Mapping[str, Any] | None = None
    """``{class_path, init_args}`` of a LightningModule that validates and tests the task."""
    backbone: str | None = None
    """Submodule of ``model`` that takes the merged weights; by default the backbone of our modules, else all of it."""

    def __post_init__(self) -> None:
        for name in ("metric", "head", "adapter", "label_column", "backbone"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and not (value is None and name != "head"):
                raise ConfigError(f"`{name}` must be a text, got {value!r}.")
        if self.direction not in (None, *get_args(Direction)):
            raise ConfigError(f"`direction` must be max or min, got {self.direction!r}.")
        if self.head == "adapter" and self.adapter is None:
            raise ConfigError("`head: adapter` needs an `adapter`.")

    @classmethod
    def read(cls, name: str, given: Any) -> "TaskSpec":
        """The entry that a mapping describes; errors name the task."""
        known = [f.name for f in fields(cls)]
        if not isinstance(given, Mapping) or "data" not in given:
            raise ConfigError(f"Task {name!r} must be a mapping with `data`, got {given!r:.80}.")
        unknown = next((key for key in given if key not in known), None)
        if unknown is not None:
            raise ConfigError(f"Task {name!r} has no field {unknown!r}. {did_you_mean(str(unknown), known)}")
        try:
            return cls(**given)
        except ConfigError as error:
            raise ConfigError(f"Task {name!r}: {error}") from error

    def primary(self, name: str) -> str | None:
        """The metric that counts, with its default filled in."""
        if self.metric != _DEFAULT:
            return self.metric
        return PRIMARY_METRICS.get(name, "accuracy" if self.model is None else None)

    def class_of_data(self) -> dict[str, Any]:
        """``{class_path, init_args}`` of the data."""
        if isinstance(self.data, str):
            return {"class_path": _TEXTS, "init_args": {"task": self.data}}
        return {"class_path": _TEXTS, **self.data}


def read_tasks(source: Mapping[str, Any] | str | Path) -> dict[str, TaskSpec]:
    """Entries of a registry, checked; nothing is loaded.

    Args:
        source: A mapping of task names, one with a key ``tasks`` that holds it, or the path of a YAML file of either.

    Raises:
        ConfigError: If it is no registry.
    """
    content, where = (
        (source, "The registry") if isinstance(source, Mapping) else (_read_yaml(Path(source)), str(source))
    )
    if isinstance(content, Mapping) and isinstance(content.get("tasks"), Mapping) and "data" not in content["tasks"]:
        content = content["tasks"]
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{where} must be a mapping of task names, got {content!r:.80}.")
    return {str(name): TaskSpec.read(str(name), given) for name, given in content.items()}


def load_tasks(
    source: Mapping[str, Any] | str | Path,
    *,
    base: str | None = None,
    names: Collection[str] | None = None,
    batch_size: int | None = None,
) -> dict[str, Task]:
    """Tasks of a registry, with their data modules made.

    Args:
        source: A mapping, or the path of a YAML file; see :func:`read_tasks`.
        base: The base model, whose tokenizer texts take that name none.
        names: Which tasks to make; all by default.
        batch_size: Rows in a batch, for data modules that have this argument.

    Raises:
        ConfigError: If an entry is wrong or a name is unknown.
    """
    specs = read_tasks(source)
    unknown = next((name for name in names or () if name not in specs), None)
    if unknown is not None:
        raise ConfigError(f"The registry has no task {unknown!r}. {did_you_mean(unknown, specs)}")
    wanted = specs if names is None else {name: specs[name] for name in names}
    return {name: _make(name, spec, base, batch_size) for name, spec in wanted.items()}


def _make(name: str, spec: TaskSpec, base: str | None, batch_size: int | None) -> Task:
    from lightning.pytorch import LightningDataModule, LightningModule

    data = spec.class_of_data()
    given = data.get("init_args") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"Task {name!r}: `data.init_args` must be a mapping, got {given!r:.60}.")
    arguments = dict(given)
    if base is not None and "tokenizer" not in arguments and takes(data["class_path"], "tokenizer"):
        arguments["tokenizer"] = base
    if batch_size is not None and takes(data["class_path"], "batch_size"):
        arguments["batch_size"] = batch_size
    made = make_instance(LightningDataModule, {**data, "init_args": arguments}, f"task {name!r}, data")
    model = None
    if spec.model is not None:
        model = make_instance(LightningModule, spec.model, f"task {name!r}, model")
    return Task(
        name,
        made,
        spec.primary(name),
        _head(spec),
        spec.direction,
        spec.adapter,
        spec.label_column,
        model,
        spec.backbone,
        {"data": {**data, "init_args": arguments}, "model": spec.model},
    )


def _head(spec: TaskSpec) -> Path | None:
    if spec.head == "prompt":
        return None
    if spec.head == "adapter":
        return Path(str(spec.adapter)).expanduser() / HEAD_FILE
    return Path(spec.head).expanduser()


def make_evaluator(
    tasks: Mapping[str, Any] | Sequence[Task] | str | Path,
    base: str | None,
    device: torch.device | str | None = None,
) -> "EncoderEvaluator | ModuleEvaluator":
    """The evaluator that fits the tasks: by their modules if they have some, else of texts by the encoder ``base``.

    Args:
        tasks: A registry, as a mapping or the path of a YAML file; or tasks that :func:`load_tasks` made of one.
        base: The base model.
        device: Where to run; default a GPU if there is one.

    Raises:
        ConfigError: If an entry is wrong, some tasks have a module and others have none, or texts have no base.
    """
    listed = _made(tasks, base)
    with_model = [task for task in listed if task.model is not None]
    if with_model:
        from lit_wsl.evaluation.module import ModuleEvaluator

        return ModuleEvaluator(listed, trainer={"accelerator": _accelerator(device)})
    if base is None:
        raise ConfigError("Texts are evaluated by an encoder: give its `base`, or give the tasks a `model`.")
    from lit_wsl.evaluation.encoder import EncoderEvaluator

    return EncoderEvaluator(base, listed, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _made(tasks: Mapping[str, Any] | Sequence[Task] | str | Path, base: str | None) -> list[Task]:
    """The tasks, made if they are not yet."""
    if isinstance(tasks, Mapping) and all(isinstance(one, Task) for one in tasks.values()):
        return list(tasks.values())
    if isinstance(tasks, Mapping | str | Path):
        return list(load_tasks(tasks, base=base).values())
    return list(tasks)


def _accelerator(device: torch.device | str | None) -> str:
    kind = None if device is None else torch.device(device).type
    return "auto" if kind is None else {"cuda": "gpu"}.get(kind, kind)


def with_adapters(tasks: Mapping[str, Task], adapters: Mapping[str, str]) -> dict[str, Task]:
    """Tasks that name no adapter of their own, with those that a merge takes of them."""
    return {n: t if t.adapter or n not in adapters else replace(t, adapter=adapters[n]) for n, t in tasks.items()}


def _read_yaml(path: Path) -> Any:
    try:
        return read_yaml(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Task registry {path} cannot be read ({error.strerror}); check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Task registry {path} is no YAML ({' '.join(str(error).split())}).") from error
