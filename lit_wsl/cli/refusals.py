"""Options that Lightning, an optimizer or a class of the user's own refuses, told from faults in the user's code."""

from collections.abc import Iterator
from types import FrameType

from lightning.pytorch.cli import LightningCLI

from lit_wsl.errors import ConfigError

_CHECKPOINTS = "lightning.pytorch.trainer.connectors.checkpoint_connector"
_OPTIMIZERS = "torch.optim"
_NOT_THE_USERS = ("lightning", "lit_wsl", "jsonargparse", "contextlib", _OPTIMIZERS)


def is_refusal(error: BaseException) -> bool:
    """Whether a running trainer refused an option: Lightning's own check, or an optimizer's while it is made.

    Never when code of the user's own took part, whose errors need their traceback.
    """
    frames = list(_frames(error))
    modules = [_module(frame) for frame in frames]
    if not modules or not all(_is_in(module, _NOT_THE_USERS) for module in modules):
        return False
    making = any(frame.f_code.co_name == "configure_optimizers" for frame in frames)
    return _is_in(modules[-1], ("lightning",)) or (making and _is_in(modules[-1], (_OPTIMIZERS,)))


def refused_option(error: BaseException) -> ConfigError:
    """The error as one line: what refused, and why."""
    cause = _raised_outside_the_parser(error)
    frames = list(_frames(cause))
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if frames and _module(frames[-1]) == _CHECKPOINTS:
        return ConfigError(
            f"ckpt_path: {reason.removesuffix('.')}; give the path of a checkpoint, or `--ckpt_path null`."
        )
    made = (frame.f_locals.get("self") for frame in frames if frame.f_code.co_name == "__init__")
    name = next((type(one).__name__ for one in made if not isinstance(one, LightningCLI)), "Lightning")
    return ConfigError(f"{name} refuses its options: {reason.removesuffix('.')}; `--debug` shows where.")


def _raised_outside_the_parser(error: BaseException) -> BaseException:
    """The constructor's error, which jsonargparse wraps; what it says itself if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        modules = [_module(frame) for frame in _frames(cause)]
        if modules and not _is_in(modules[-1], ("jsonargparse",)):
            return cause
        cause = cause.__cause__
    return error


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Frames that an error passed through, outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
