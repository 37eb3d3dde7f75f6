"""A data loader that goes on in the middle of an epoch, with the same shuffle."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


class ResumableLoader(DataLoader[Any]):
    """A ``DataLoader`` whose position Lightning keeps in checkpoints: a resumed epoch has neither gap nor repetition.

    It draws from generators of its own (its ``generator``, and that of its batch sampler if that has one), never from
    torch's global one. A resumed epoch draws the same order and passes over the batches that were already used;
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
        """Batches given out in this epoch, and the generators at its start and now."""
        now = self._states()
        return {"batches": self._yielded, "start": now if self._start is None else self._start, "now": now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader was: in the middle of its epoch, or at the start of the next."""
        finished = state["batches"] >= len(self)
        for generator, saved in zip(self._generators(), state["now" if finished else "start"], strict=True):
            generator.set_state(saved)
        self._skip = 0 if finished else state["batches"]

    def _generators(self) -> list[torch.Generator]:
        found = (self.generator, getattr(self.batch_sampler, "generator", None))
        return [generator for generator in found if generator is not None]

    def _states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]


def resumable_loader(dataset: Any, **options: Any) -> ResumableLoader:
    """A loader over ``dataset`` with the options of ``DataLoader``, its order given by the seed of the run.

    Nothing is drawn from torch's global generator: a resumed run, which makes its loader later, must find it untouched.
    """
    return ResumableLoader(dataset, generator=torch.Generator().manual_seed(torch.initial_seed()), **options)
