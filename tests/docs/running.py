"""Runs the blocks of a page, one after the other, in its folder."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lit_wsl.cli.main import run
from lit_wsl.evaluation import SubsetSpec
from lit_wsl.evaluation.tasks import read_tasks
from lit_wsl.merging.config import MergeConfig, load_merge_config
from lit_wsl.training.llava.rows import LocatedRow, faults_of
from tests.docs.blocks import Block
from tests.docs.shell import Shell

CODE = ("python", "bash", "yaml", "json")
SHOWN = ("text",)
"""Languages of what is only shown: drawings, listings and outputs."""


def _merge(path: Path, content: dict) -> None:
    load_merge_config(path)


def _part_of_merge(path: Path, content: dict) -> None:
    MergeConfig(**{"adapters": ["A", "B"], "output_format": "delta", **content})


def _trainer(path: Path, content: dict) -> None:
    module = "lightning.pytorch.demos.boring_classes.BoringModel"
    path.write_text(yaml.safe_dump({"model": module, **content}))
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["fit", "--config", str(path), "--print_config"]) == 0


def _tasks(path: Path, content: dict) -> None:
    assert read_tasks(content)


def _subset(path: Path, content: dict) -> None:
    SubsetSpec.read(content["eval_subset"])


def _image_text_row(path: Path, content: dict) -> None:
    (path.parent / content["image"]).touch()
    assert faults_of(LocatedRow(path, 1, content, 1)) == []


READERS: dict[str, Callable[[Path, dict], None]] = {
    "merge configuration": _merge,
    "part of a merge configuration": _part_of_merge,
    "trainer configuration": _trainer,
    "tasks": _tasks,
    "subset": _subset,
    "row of images and text": _image_text_row,
}
"""What ``read as:`` may say, and what then reads the block."""


@dataclass
class Run:
    """A page while its blocks run."""

    folder: Path
    shell: Shell
    printed: str = ""
    written: dict[str, Block] = field(default_factory=dict)
    executed: list[Block] = field(default_factory=list)
    refused: list[Block] = field(default_factory=list)

    def take(self, block: Block) -> None:
        """Run, read, write or compare one block.

        Raises:
            AssertionError: If it fails, or nothing says what to do with it.
        """
        if block.marked("not run"):
            self.refused.append(block)
            return
        if block.language in SHOWN:
            if block.mark == "prints":
                check_printed(block, self.printed)
            return
        assert block.language in CODE, f"{block.place}: no way to run {block.language!r}"
        getattr(self, f"_{block.language}")(block)
        self.executed.append(block)

    def _python(self, block: Block) -> None:
        out = io.StringIO()
        source = "\n" * block.line + block.text  # tracebacks have the lines of the page
        with contextlib.redirect_stdout(out):
            exec(compile(source, block.page, "exec"), {"__name__": "__main__"})
        self.printed = out.getvalue()

    def _bash(self, block: Block) -> None:
        for name, given in self.written.items():
            if name in block.text:
                self.used(given)
        code, self.printed = self.shell.run(block.text)
        assert code == 0, f"{block.place}: exit code {code}\n{block.text}\n{self.printed}"

    def used(self, block: Block) -> None:
        """Note that a command takes the file of a block."""
        self.written = {name: other for name, other in self.written.items() if other is not block}

    def _yaml(self, block: Block) -> None:
        kind = block.marked("read as")
        assert block.title or kind, f"{block.place}: needs a title (its file) or `read as: KIND` in front"
        path = self.folder / (block.title or f"block.{block.language}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if kind:
            assert kind in READERS, f"{block.place}: {kind!r} is none of {list(READERS)}"
            READERS[kind](path, yaml.safe_load(block.text))
        else:
            self.written[block.title] = block

    def _json(self, block: Block) -> None:
        json.loads(block.text)
        self._yaml(block)


def check_printed(block: Block, printed: str) -> None:
    """Assert that every line of a block was printed, in order.

    Numbers may differ or be missing, and ``…`` stands for anything.

    Raises:
        AssertionError: If one was not.
    """
    lines = iter([_shape(line) for line in printed.splitlines()])
    for line in filter(None, map(_shape, block.text.splitlines())):
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        assert any(pattern.fullmatch(other) for other in lines), f"{block.place}: {line!r} is not in\n{printed}"


def _shape(line: str) -> str:
    return " ".join(re.sub(r"-?\d[\d.,]*(e-?\d+)?|–", "0", line).split())
