"""What a built-in text task is made of: a pinned source, labelled rows, labels with prompts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """One archive of a package registry, pinned by version and content."""

    package: str
    """Name in the registry."""
    version: str
    """The one version whose bytes are accepted."""
    filename: str
    """Name of the archive, a wheel or a source zip."""
    sha256: str
    """Digest of the archive."""

    @property
    def requirement(self) -> str:
        """The source as one line of a pip requirements file, hash included."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True)
class Row:
    """One labelled text and the split that its group belongs to."""

    text: str
    label: str
    split: Split


@dataclass(frozen=True)
class TextTask:
    """A text classification task that is rebuilt from a pinned archive."""

    name: str
    """Short name, the folder in the cache."""
    prompts: dict[str, str]
    """One natural-language prompt per class; its keys are the labels, in order."""
    source: Source
    """Where the texts come from."""
    extract: Callable[[Path], Iterable[Row]]
    """Reads the archive and yields every usable row; a group never spans two splits."""
    revision: int = 1
    """Raised when the extraction changes, so that a cached copy is rebuilt."""

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the class indices."""
        return list(self.prompts)


@dataclass(frozen=True)
class PreparedTask:
    """A task on disk: one JSONL file per split, rows ``{"text", "label"}``."""

    name: str
    directory: Path
    labels: list[str]
    prompts: list[str]

    def file(self, split: Split) -> Path:
        """Path of the split's rows."""
        return self.directory / f"{split}.jsonl"
