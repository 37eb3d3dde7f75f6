"""A data loader that goes on in the middle of an epoch, with the same shuffle."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from lit_wsl.errors import ConfigError, DataError


class ResumableLoader(DataLoader[Any]):
    """A ``DataLoader`` whose position is kept in checkpoints: a resumed epoch has neither gap nor repetition.

    It draws from generators of its own (that of its sampler or batch sampler, and one for the seeds of workers), never
    from torch's global one. A resumed epoch draws the same order and passes over the batches that were already used;
    these are read and thrown away. Make it with :func:`resumable_loader`.
    """

    _yielded = 0
    _skip = 0
    _start: list[Tensor] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of one epoch, or the rest of a resumed one."""
        skip, self._skip = self._skip, 0
        self._start, self._yielded = self._states(), 0
        batches = super().__iter__()
        for batch in batches:
            self._yielded += 1
            if self._yielded == len(self):
                next(batches, None)  # what the sampler draws at the end belongs to this epoch
            if self._yielded > skip:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Batches given out in this epoch, whether it is over, and the generators at its start and now."""
        now = self._states()
        return {
            "batches": self._yielded,
            "finished": self._yielded >= len(self),
            "start": now if self._start is None else self._start,
            "now": now,
            "sizes": self._sizes(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader was: in the middle of its epoch, or at the start of the next.

        Raises:
            DataError: If that was in the middle of an epoch of other batches.
        """
        finished = state["finished"]
        if not finished and state["batches"] and state["sizes"] != self._sizes():
            raise DataError(
                f"The checkpoint is in the middle of an epoch of {state['sizes'][0]} examples in batches of "
                f"{state['sizes'][1]}, the data now give {self._sizes()[0]} in batches of {self._sizes()[1]}; "
                "resume from the end of an epoch, or with the same data and `batch_size`."
            )
        for generator, saved in zip(self._generators(), state["now" if finished else "start"], strict=False):
            generator.set_state(saved)
        self._skip = 0 if finished else state["batches"]

    def _sizes(self) -> list[int]:
        source: Any = self
        return [len(source.dataset), source.batch_size or getattr(source.batch_sampler, "batch_size", 0)]

    def _generators(self) -> list[torch.Generator]:
        found = (self.sampler, self.batch_sampler, self)
        generators = [getattr(source, "generator", None) for source in found]
        return [generator for generator in generators if generator is not None]

    def _states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]


def resumable_loader(dataset: Any, *, shuffle: bool = False, **options: Any) -> ResumableLoader:
    """A loader over ``dataset`` with the options of ``DataLoader``, its order given by the seed of the run.

    Nothing is drawn from torch's global generator: a resumed run, which makes its loader later, must find it untouched.

    Raises:
        ConfigError: If a sampler has no generator of its own.
    """
    if shuffle:
        options["sampler"] = RandomSampler(dataset, generator=_generator())
    sampler = options.get("sampler")
    if getattr(sampler, "generator", _generator) is None:
        raise ConfigError(
            f"A {type(sampler).__name__} without a generator draws from torch's global one, so its order cannot be "
            "resumed; give it `generator=torch.Generator().manual_seed(...)`."
        )
    return ResumableLoader(dataset, generator=_generator(), **options)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(torch.initial_seed())


def loader_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of resumable loaders in a checkpoint."""
    fit_loop = checkpoint.get("loops", {}).get("fit_loop", {})
    states = fit_loop.get("state_dict", {}).get("combined_loader", [])
    return [state for state in states if isinstance(state, dict) and "finished" in state]


def mark_position(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Write into a checkpoint how far the trainer, not its loader, is in the epoch.

    A batch whose step failed was not used, and ``limit_train_batches`` ends an epoch before the loader does.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for state in loader_states(checkpoint):
        state["batches"] = progress.current.processed
        state["finished"] = state["finished"] or bool(progress.is_last_batch)


def enter_next_epoch(trainer: Any, states: list[dict[str, Any]]) -> None:
    """Hand the states of a finished epoch to the loaders, which Lightning does in the middle of one only."""
    combined = trainer.fit_loop._combined_loader
    if trainer.fit_loop.restarting or combined is None:
        return
    loaders = [loader for loader in combined.flattened if isinstance(loader, ResumableLoader)]
    for loader, state in zip(loaders, states, strict=False):
        loader.load_state_dict({**state, "finished": True})
