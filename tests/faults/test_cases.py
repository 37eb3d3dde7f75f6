"""The suite is as large as it says, and the same everywhere."""

import ast
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lit_wsl
from tests.faults.cases import CASES, DIGESTS, SEED, WANTED, cases_of

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("test_corrupt_*.py"))


def drawing():
    """Every test that draws cases, and the kinds that it names."""
    found = {}
    for path in FILES:
        for one in ast.parse(path.read_text()).body:
            calls = [node for node in ast.walk(one) if isinstance(node, ast.Call) and _name(node) == "try_cases"]
            if isinstance(one, ast.FunctionDef) and calls:
                found[f"tests/faults/{path.name}::{one.name}"] = [call.args[0].value for call in calls]
    return found


def _name(call):
    return call.func.id if isinstance(call.func, ast.Name) else None


def test_there_are_two_thousand_cases_and_each_kind_is_tried(monkeypatch):
    assert sum(CASES.values()) >= 2000
    assert {kind for kinds in drawing().values() for kind in kinds} == CASES.keys()
    monkeypatch.setenv(WANTED, "20000")
    assert sum(map(cases_of, CASES)) > 19_900


@pytest.fixture
def other_checkout(tmp_path):
    """A copy of this repository at another place, with one more constant in a module that every test imports."""
    other = tmp_path / "another checkout at a longer path"
    for folder in (HERE.parent, Path(lit_wsl.__file__).parent):
        shutil.copytree(folder, other / folder.name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    shutil.copy(HERE.parents[1] / "pyproject.toml", other)
    with (other / "lit_wsl" / "errors.py").open("a") as file:
        file.write('ANOTHER = ("a constant", b"another", 123456789, 0.123)\n')
    return other


def arguments(said):
    return ["-q", "-p", "no:cacheprovider", "--basetemp", f"{said} and its folders"]


def drawn_here(tests, said):
    """What the tests of this process draw, as they tell it; in a fork, where all is imported already."""
    child = multiprocessing.get_context("fork").Process(target=pytest.main, args=([*arguments(said), *tests],))
    child.start()
    child.join()
    return sorted(said.read_text().splitlines())


def drawn_there(checkout, tests, said):
    """The same of another checkout, in a process that hashes otherwise."""
    command = [sys.executable, "-m", "pytest", *arguments(said), *tests]
    variables = {**os.environ, DIGESTS: str(said), "PYTHONHASHSEED": "77", "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(said.read_text().splitlines())


def test_another_checkout_draws_the_same_cases_in_another_order(tmp_path, other_checkout, monkeypatch):
    """Neither the path, the sources, the hashes of Python, the temporary folders nor the order matter."""
    tests = list(drawing())
    for variable in (WANTED, SEED):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(HERE.parents[1])
    monkeypatch.setenv(DIGESTS, str(tmp_path / "here"))
    here = drawn_here(tests, tmp_path / "here")
    there = drawn_there(other_checkout, tests[::-1], tmp_path / "elsewhere")
    assert here == there
    assert {line.partition(":")[0] for line in here} == CASES.keys()
