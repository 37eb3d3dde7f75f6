"""The faults that are made are those meant, reach all who hold a function, and survive only with a reason."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants_of
from tests.mutation.survivors import PATH, excused, reasons
from tests.mutation.transplant import transplant

ROOM = Path(__file__).parents[2] / "lit_wsl" / "tensors"


def changes(source):
    return {mutant.name.removeprefix("m").removeprefix(": ") for mutant in mutants_of(source, "m", "m.py")}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x = a < b", {"x = a < b => x = a <= b"}),
        ("x = a + b * c", {"x = a + b * c => x = a - b * c", "x = a + b * c => x = a + b / c"}),
        ("x = not a", {"x = not a => x = a"}),
        ("x = a and b", {"x = a and b => x = a or b"}),
        ("x = max(a, b)", {"x = max(a, b) => x = min(a, b)"}),
        ("x = a.clamp(min=b)", {"x = a.clamp(min=b) => x = a", "x = a.clamp(min=b) => x = a.clamp(max=b)"}),
        ("x = 3", {"x = 3 => x = 4", "x = 3 => x = 2"}),
        ("x = True", {"x = True => x = False"}),
        ("f(a)", {"f(a) => pass"}),
        ("x += a", {"x += a => x += 0", "x += a => x -= a"}),
        ("if a: raise E('words of %d' % 3)", {"if a: => if not a:", "raise E('words of %d' % 3) => pass"}),
        ("if a == b: pass", {"if a == b: => if a != b:"}),
        ("x = [i for i in a if i]", {"x = [i for i in a if i] => x = [i for i in a]"}),
        ("x = b if a else c", {"x = b if a else c => x = c if a else b"}),
        ("for i in a: break", {"break => pass"}),
        ("import a\nassert a\nx: list[3]\n'''Words.'''", set()),
        ("x = f'{3 + 4}'", set()),
        ("x = zip(a, b, strict=True)", set()),
    ],
)
def test_what_each_statement_becomes(source, wanted):
    assert changes(source) == wanted


def test_a_name_does_not_depend_on_lines_and_tells_twins_apart():
    source = "def f(a, b=2):\n    g(0, 0)\n"
    names = [mutant.name for mutant in mutants_of(source, "m", "m.py")]
    assert names == [mutant.name for mutant in mutants_of("'''Words.'''\n\n" + source, "m", "m.py")]
    assert len(set(names)) == len(names)
    assert "m.f: def f(a, b=2) => def f(a, b=3)" in names
    assert "m.f: g(0, 0) => g(1, 0)" in names
    twins = [mutant.name for mutant in mutants_of("f(1)\nf(1)", "m", "m.py")]
    assert "m: f(1) => f(2) #2" in twins


def test_making_faults_leaves_the_module_whole():
    source = "def f(a):\n    return a < 3 and a != 1\n"
    mutants = list(mutants_of(source, "m", "m.py"))
    results = []
    for mutant in mutants:
        space = {}
        exec(mutant.compiled(), space)
        results.append([bool(space["f"](a)) for a in range(5)])
    assert len(mutants) == 7
    assert [True, False, True, False, False] not in results
    assert [mutant.name for mutant in mutants] == [mutant.name for mutant in mutants_of(source, "m", "m.py")]


HOME = """
from dataclasses import dataclass
from functools import cached_property, lru_cache

LIMIT = 1

def plain(x=1): return x
@lru_cache
def cached(): return 1

@dataclass(frozen=True)
class Thing:
    size: int = 1
    @property
    def told(self): return 1
    @cached_property
    def kept(self): return 1
    @staticmethod
    def fixed(): return 1
    def method(self): return LIMIT
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A module, and one that holds what is in it by name."""
    (tmp_path / "home_of_faults.py").write_text(HOME)
    (tmp_path / "guest_of_faults.py").write_text("from home_of_faults import LIMIT, Thing, cached, plain\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("home_of_faults"), importlib.import_module("guest_of_faults")
    del sys.modules["home_of_faults"], sys.modules["guest_of_faults"]


def test_a_transplant_reaches_everyone_who_holds_the_old_one(home):
    module, guest = home
    guest.cached()
    thing = guest.Thing()
    transplant(module, compile(HOME.replace("1", "2"), module.__file__, "exec"))
    other = guest.Thing()
    assert isinstance(thing, type(other))
    assert (guest.LIMIT, guest.plain(), guest.cached(), other.size) == (2, 2, 2, 2)
    assert (other.told, other.kept, other.fixed(), other.method()) == (2, 2, 2, 2)


def test_every_survivor_is_still_a_fault_that_can_be_made_and_has_one_reason():
    known = {mutant.name for path in ROOM.glob("*.py") for mutant in mutants_of(path.read_text(), path.stem, str(path))}
    names = [name for group in reasons().values() for name in group]
    assert [name for name in names if name not in known] == []
    assert len(set(names)) == len(names)
    assert all(len(reason.split()) > 3 for reason in excused().values())
    assert PATH.read_text().endswith("}\n")
