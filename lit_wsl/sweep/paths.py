"""Searched parameters are paths into the configuration: of a method by name, of anything else by where it stands."""

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.method import method_class
from lit_wsl.merging.parameters import spelled
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.sweep.outcome import Params

Path = tuple[str | int, ...]

_TOKEN = re.compile(r"\[(\d+)\]|\.?([^.\[\]]+)")
_INSIDE = ("method_params", "lambda_policy", "rules", "transforms", "slices", "optimizer")
"""Fields that have parameters inside."""
_FIXED = ("output", "overwrite", "adapters", "models", "deltas", "threads", "verify", "tally", "shard_size", *_INSIDE)
"""Fields that are no parameter themselves."""


def at_point(config: MergeConfig, params: Params) -> MergeConfig:
    """The configuration of one merge: with the point's values in place, and without the search.

    Raises:
        ConfigError: If a name leads nowhere, or a value is refused where it stands.
    """
    values = config.to_dict()
    for name, value in params.items():
        _put(values, path_of(config, name), value, name)
    values["search"] = values["post_sweep_eval"] = values["learned_from"] = None
    if config.optimizer is not None and config.optimizer.type == "bayes":
        values["optimizer"] = None
    return MergeConfig(**values)


def check_names(config: MergeConfig, names: Iterable[str]) -> None:
    """Refuse searched names that lead nowhere, or whose value would be without effect.

    Raises:
        ConfigError: If one does.
    """
    policy, names = config.lambda_policy, list(names)
    values = config.to_dict()
    paths = {name: path_of(config, name) for name in names}
    for name, path in paths.items():
        _put(values, path, 0, name)
    fixed = None if policy is None else policy.value if policy.type == "scalar" else policy.default
    for name, path in paths.items():
        if path == ("method_params", "lambda") and fixed is not None:
            wanted = "value" if policy is not None and policy.type == "scalar" else "default"
            raise ConfigError(
                f"`{name}` is searched, but `lambda_policy` sets it; search `lambda_policy.{wanted}` instead."
            )
    if len(set(paths.values())) < len(names):
        raise ConfigError(f"Two of the searched names are one parameter: {', '.join(names)}.")


def path_of(config: MergeConfig, name: str) -> Path:
    """Where a searched name stands in the configuration.

    Raises:
        ConfigError: If it is neither a parameter of the method nor a field, nor a path into one.
    """
    tokens = _TOKEN.findall(name)
    if "".join(f"[{index}]" if index else word for index, word in tokens) != name.replace(".", ""):
        raise ConfigError(f"{name!r} is no path; write `transforms[0].params.NAME`, for instance.")
    path: Path = tuple(int(index) if index else word for index, word in tokens)
    known = method_class(config.method)().params()
    if len(path) == 1 and spelled(name) in known:
        return ("method_params", spelled(name))
    if len(path) == 2 and path[0] == "method_params" and spelled(path[1]) in known:
        return ("method_params", spelled(path[1]))
    single = {one.name for one in fields(MergeSpec)} - set(_FIXED)
    if (len(path) == 1 and name in single) or (len(path) > 1 and path[0] in _INSIDE and path[0] != "method_params"):
        return path
    word = str(path[-1]) if path[0] == "method_params" else name
    raise ConfigError(
        f"Method {config.method!r} has no parameter {word!r}, and it is no path. "
        f"{did_you_mean(spelled(word), [*known, *single])}"
    )


def _put(values: Any, path: Path, value: Any, name: str) -> None:
    """Set the value at the end of a path; mappings on the way are made where there are none."""
    place = values
    for at, (step, following) in enumerate(zip(path, (*path[1:], None), strict=True)):
        if isinstance(place, list) != isinstance(step, int) or (isinstance(step, int) and step >= len(place)):
            found = f"has {len(place)} entries" if isinstance(place, list) else "is no list"
            raise ConfigError(f"`{name}` leads nowhere: `{_written(path[:at])}` {found}.")
        step = _key(place, step)
        if following is None:
            place[step] = value
            return
        if not isinstance(step, int) and place.get(step) is None and not isinstance(following, int):
            place[step] = {}
        place = place[step]
        if not isinstance(place, dict | list):
            raise ConfigError(f"`{name}` leads nowhere: `{_written(path[: at + 1])}` is {place!r}.")


def _key(place: Any, step: str | int) -> Any:
    """The key as the mapping has it: numbers of layers may be numbers, `-` and `_` are alike."""
    if isinstance(step, int):
        return step
    return next((key for key in place if spelled(key) == spelled(step)), step)


def _written(path: Path) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "the configuration"
