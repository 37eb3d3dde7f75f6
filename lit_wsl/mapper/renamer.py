"""Rename the tensors of a checkpoint: the names change, the bytes do not."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import translate
from pathlib import Path
from typing import Self

from torch import Tensor

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.state.layout import Layout
from lit_wsl.state.reader import TORCH_SUFFIXES, StateReader, TensorInfo
from lit_wsl.state.remap import WeightMap, copies
from lit_wsl.state.rewrite import check_no_backup, replace, restore, write_directory, write_file

Progress = Callable[[int, int, str], None]
"""Takes bytes done, bytes in all, and the name at hand."""
_SHOWN = 10


class RenamedState(Mapping[str, Tensor]):
    """A state dict under new names; a tensor is read from the file when it is asked for, and not kept."""

    def __init__(self, reader: StateReader, names: Mapping[str, str]) -> None:
        self._reader, self._names = reader, names

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.read(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class WeightRenamer:
    """Renames the tensors of a checkpoint; nothing is read but headers, and nothing written, until :meth:`save`.

    Every method that renames works on the names as they are after the ones before, and returns the renamer.

    Args:
        path: A safetensors or torch file, a directory with either, sharded or not, or an index.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or would run code.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        self._layout = Layout.of(self.path)
        self._opened = self._layout.identities()
        self._backup = False
        self._names = {name: name for name in self._layout.reader.keys()}
        self._before: dict[str, str] | None = None

    @property
    def state_dict(self) -> RenamedState:
        """The state dict under the names as they are now, read on demand; treat its tensors as read-only."""
        return RenamedState(self._layout.reader, dict(self._names))

    @property
    def weight_map(self) -> WeightMap:
        """What was renamed, as a map that can be saved, inverted, and applied to other checkpoints."""
        return copies((old, new) for new, old in self._names.items())

    @property
    def renamed(self) -> dict[str, str]:
        """Name in the file to name now, where they differ."""
        return {old: new for new, old in self._names.items() if old != new}

    @property
    def dropped(self) -> list[str]:
        """Names in the file that :meth:`save` will not write."""
        kept = set(self._names.values())
        return [name for name in self._layout.reader.keys() if name not in kept]

    def list_keys(self) -> list[str]:
        """The names as they are now, in the order of the file."""
        return list(self._names)

    def search_keys(self, pattern: str) -> list[str]:
        """Names in which a regular expression is found; a pattern that begins with ``*`` is a shell pattern.

        Raises:
            ConfigError: If the pattern is no regular expression.
        """
        try:
            found = re.compile(translate(pattern) if pattern.startswith("*") else pattern)
        except re.error as error:
            raise ConfigError(
                f"{pattern!r} is no regular expression ({error}); put a backslash before signs."
            ) from None
        return [name for name in self._names if found.search(name)]

    def rename_keys(
        self,
        mapping: Mapping[str, str],
        preserve_unmapped: bool = True,  # noqa: FBT001, FBT002
        backup: bool = False,  # noqa: FBT001, FBT002
    ) -> Self:
        """Rename all at once, so that two names may change places.

        Args:
            mapping: Old name to new name.
            preserve_unmapped: Whether other tensors keep their names; otherwise they are left out, and
                :attr:`dropped` lists them.
            backup: Whether :meth:`save` in place keeps the old file, so that :meth:`restore_backup` brings it back.

        Raises:
            CheckpointError: If a name is missing, two tensors would have one name, or an earlier backup is in the way.
            ConfigError: If a new name is no name.
        """
        self._check_known(mapping)
        made: dict[str, str] = {}
        for name, old in self._names.items():
            if name not in mapping and not preserve_unmapped:
                continue
            new = _checked(name, mapping.get(name, name))
            if new in made:
                raise CheckpointError(
                    f"{self.path}: {made[new]!r} and {old!r} would both be named {new!r}; rename one of them otherwise."
                )
            made[new] = old
        if not made:
            raise CheckpointError(f"{self.path}: no tensor would be left; map at least one, or keep the unmapped ones.")
        if backup:
            check_no_backup(self._layout.entry)
            self._backup, self._before = True, dict(self._names)
        self._names = made
        return self

    def rename_with_prefix(self, old: str, new: str) -> Self:
        """Names that begin with ``old`` begin with ``new`` instead; others stay.

        Raises:
            CheckpointError: If no name begins with ``old``, or two tensors would have one name.
        """
        mapping = {name: new + name.removeprefix(old) for name in self._names if name.startswith(old)}
        if not mapping:
            raise CheckpointError(f"{self.path}: no name begins with {old!r}. {_nearest(old, self._prefixes())}")
        return self.rename_keys(mapping)

    def remove_prefix(self, prefix: str) -> Self:
        """Take ``prefix`` from the names that begin with it; others stay.

        Raises:
            CheckpointError: If no name begins with it, or two tensors would have one name.
        """
        return self.rename_with_prefix(prefix, "")

    def add_prefix(self, prefix: str) -> Self:
        """Put ``prefix`` in front of every name; the inverse of :meth:`remove_prefix`.

        Raises:
            ConfigError: If it would melt with the first component of the names.
        """
        if prefix and prefix[-1].isalnum():
            raise ConfigError(
                f"Prefix {prefix!r} would give {prefix + next(iter(self._names), 'weight')!r}; write {prefix + '.'!r}."
            )
        return self.rename_with_prefix("", prefix)

    def restore_backup(self) -> Self:
        """Undo: names as before the last renaming with ``backup=True``, and the file if one was saved in place since.

        Raises:
            CheckpointError: If there is no backup.
        """
        if self._before is not None:
            self._names, self._before, self._backup = self._before, None, False
            return self
        restore(self._layout.entry)
        self._open()
        return self

    def save(
        self, output: str | Path | None = None, *, overwrite: bool = False, progress: Progress | None = None
    ) -> Path:
        """Write the tensors under their new names as safetensors, one at a time; put in place when whole.

        Args:
            output: A ``.safetensors`` file, or a directory, which keeps the shards of the input. None, or the input
                itself, replaces the input.
            overwrite: Whether another existing output may be replaced.
            progress: Called with bytes done, bytes in all, and a name.

        Returns:
            Where the tensors are.

        Raises:
            CheckpointError: If the output may not be replaced or cannot be written, or the input has changed.
        """
        target = self.path if output is None else Path(output)
        if self._layout.identities() != self._opened:
            raise CheckpointError(f"{self.path} has changed since it was opened; open it again.")
        tell = self._counted(progress)
        if self.is_in_place(target):
            replace(self._layout, self._names, backup=self._backup, progress=tell)
            self._open()
        elif target.suffix == ".safetensors":
            self._check_file(target, overwrite=overwrite)
            write_file(self._layout, self._names, target, tell)
        elif target.suffix in (*TORCH_SUFFIXES, ".json"):
            raise CheckpointError(f"Output {target} is no safetensors; name a `.safetensors` file or a directory.")
        else:
            write_directory(self._layout, self._names, target, overwrite=overwrite, progress=tell)
        return target

    def is_in_place(self, target: str | Path) -> bool:
        """Whether the output is the input, by whichever of its names."""
        places = {self.path.resolve(), self._layout.entry.resolve()}
        if self._layout.index is not None:
            places.add(self._layout.folder.resolve())
        return Path(target).resolve() in places

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of the tensor that has this name now."""
        return self._layout.reader.info(self._names[name])

    def print_summary(self) -> None:
        """Print how many tensors there are, and what changed."""
        infos = [self._layout.reader.info(old) for old in self._names.values()]
        lines = [f"{self.path}: {len(infos)} tensors, {sum(info.nbytes for info in infos) / 1e6:.1f} MB"]
        renamed, dropped = self.renamed, self.dropped
        lines.append(f"{len(renamed)} renamed, {len(infos) - len(renamed)} as they were, {len(dropped)} left out")
        lines += [f"  {old} -> {new}" for old, new in list(renamed.items())[:_SHOWN]]
        lines += [f"  {name} is left out" for name in dropped[:_SHOWN]]
        more = max(0, len(renamed) - _SHOWN) + max(0, len(dropped) - _SHOWN)
        lines += [f"  and {more} more"] if more else []
        sys.stdout.write("\n".join(lines) + "\n")

    def _check_file(self, target: Path, *, overwrite: bool) -> None:
        if target.resolve() in [file.resolve() for file in self._layout.shards]:
            raise CheckpointError(f"Output {target} is a shard of the input; choose another.")
        if target.exists() and not overwrite:
            raise CheckpointError(f"Output {target} exists; choose another, or pass `--overwrite`.")

    def _check_known(self, mapping: Mapping[str, str]) -> None:
        unknown = [name for name in mapping if name not in self._names]
        if unknown:
            count = f"{len(unknown)} of {len(mapping)} keys, first" if len(unknown) > 1 else "key"
            raise CheckpointError(f"{self.path} lacks {count} {unknown[0]!r}. {_nearest(unknown[0], self._names)}")

    def _prefixes(self) -> list[str]:
        """Every beginning of a name that ends in a dot."""
        parts = (name.split(".") for name in self._names)
        return sorted({".".join(words[:count]) + "." for words in parts for count in range(1, len(words))})

    def _counted(self, progress: Progress | None) -> Callable[[int, str], None]:
        total = sum(self._layout.reader.info(old).nbytes for old in self._names.values())
        done = 0

        def tell(nbytes: int, name: str) -> None:
            nonlocal done
            done += nbytes
            if progress is not None:
                progress(done, total, name)

        return tell


def rename_checkpoint_keys(
    source: str | Path,
    output: str | Path,
    mapping: Mapping[str, str] | None = None,
    *,
    remove_prefix: str = "",
    add_prefix: str = "",
    preserve_unmapped: bool = True,
    backup: bool = False,
    overwrite: bool = False,
) -> Path:
    """Rename the tensors of a checkpoint in one call: first by the mapping, then off and on with the prefixes.

    Args:
        source: As for :class:`WeightRenamer`.
        output: As for :meth:`WeightRenamer.save`.
        mapping: Old name to new name.
        remove_prefix: Taken from the names that begin with it.
        add_prefix: Put in front of every name.
        preserve_unmapped: Whether tensors that the mapping does not name are kept.
        backup: Whether an output in place keeps the old file.
        overwrite: Whether another existing output may be replaced.

    Raises:
        CheckpointError: If names are missing or collide, or a file cannot be read or written.
    """
    renamer = WeightRenamer(source)
    renamer.rename_keys(mapping or {}, preserve_unmapped or not mapping, backup)
    if remove_prefix:
        renamer.remove_prefix(remove_prefix)
    if add_prefix:
        renamer.add_prefix(add_prefix)
    return renamer.save(output, overwrite=overwrite)


def _checked(old: str, new: str) -> str:
    """The new name, if it is one."""
    if not isinstance(new, str):
        raise ConfigError(f"The new name of {old!r} is {new!r}; write text.")
    if new != old and "" in new.split("."):
        raise ConfigError(f"{old!r} would be named {new!r}, which has an empty part; mind the dots.")
    if new == "__metadata__":
        raise ConfigError(f"{old!r} would be named {new!r}, which safetensors keeps for itself; choose another.")
    return new


def _nearest(name: str, known: Mapping[str, str] | list[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    first = list(known)[:3]
    return f"It has {len(known)}, such as {', '.join(map(repr, first))}." if first else "It has none."
