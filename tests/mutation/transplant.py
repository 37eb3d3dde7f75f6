"""Put a changed module in the place of one that is loaded, for all who hold its functions already."""

import sys
from collections.abc import Callable
from functools import cached_property
from inspect import unwrap
from types import CodeType, FunctionType, ModuleType
from typing import Any


def transplant(module: ModuleType, code: CodeType) -> None:
    """Run a module's code anew, and give what is loaded the code, the defaults and the values that this makes."""
    new = ModuleType(module.__name__)
    new.__file__ = module.__file__
    exec(code, vars(new))
    for name, value in vars(new).items():
        old = getattr(module, name, None)
        if name.startswith("__") or value is old:
            continue
        if isinstance(value, type) and value.__module__ == module.__name__:
            _transplant_class(old, value)
        elif callable(value) and isinstance(unwrap(value), FunctionType):
            _transplant_function(old, value)
        else:
            _replace_everywhere(name, old, value)


def _transplant_class(old: type, new: type) -> None:
    for name, value in vars(new).items():
        functions = _functions(value)
        if functions:
            for one, other in zip(_functions(vars(old)[name]), functions, strict=True):
                _transplant_function(one, other)
        elif not (name.startswith("__") or name == "_abc_impl" or isinstance(value, type)):
            setattr(old, name, value)


def _functions(value: Any) -> list[Callable[..., Any]]:
    """The functions behind a method, a property or the like."""
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [part for part in (value.fget, value.fset) if part is not None]
    if isinstance(value, cached_property):
        return [value.func]
    return [value] if isinstance(value, FunctionType) else []


def _transplant_function(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    if hasattr(old, "cache_clear"):
        old.cache_clear()
    old, new = unwrap(old), unwrap(new)
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def _replace_everywhere(name: str, old: Any, new: Any) -> None:
    """Also in the modules that imported the value by name."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and vars(module).get(name, new) is old:
            setattr(module, name, new)
