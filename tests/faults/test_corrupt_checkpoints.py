"""Torch files of any content: pickles that would run code, archives that lie, tensors larger than their file."""

import io
import pickle
import pickletools
import random
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from lit_wsl.state.reader import open_state
from tests.faults.cases import try_cases
from tests.faults.strategies import NAMES, NUMBERS, damaged, values
from tests.merging.build import random_states
from tests.models.checkpoints import Module, adapt, save
from tests.tiny_llama import write_tied_llama

STATE = {"layers.0.weight": torch.ones(7, 5), "layers.0.bias": torch.zeros(7, dtype=torch.bfloat16)}
CALLS = (
    ("os", "system", ("touch canary",)),
    ("posix", "system", ("touch canary",)),
    ("subprocess", "Popen", (["touch", "canary"],)),
    ("builtins", "exec", ("open('canary', 'w')",)),
    ("builtins", "eval", ("open('canary', 'w')",)),
    ("builtins", "open", ("canary", "w")),
    ("io", "open", ("canary", "w")),
    ("builtins", "getattr", ("os", "system")),
    ("builtins", "__import__", ("os",)),
    ("shutil", "rmtree", ("../inputs",)),
    ("pathlib", "Path.touch", ("canary",)),
    ("torch", "load", ("canary",)),
    ("torch", "save", ({}, "canary")),
    ("torch.hub", "load", ("canary", "x")),
    ("torch._utils", "_rebuild_tensor_v2", (None, 0, (1 << 40,), (1,), False, {})),
    ("torch._utils", "_rebuild_parameter", (3, True, {})),
    ("torch.storage", "UntypedStorage", (1 << 60,)),
    ("torch.nn.modules.linear", "Linear", (1 << 20, 1 << 20)),
    ("collections", "OrderedDict", ([("a", 1)] * 3,)),
    ("torch", "zeros", ((1 << 50,),)),
    ("no.such.module", "x", ()),
    ("\ud800", "\n", ()),
)
"""What hostile pickles call when a careless reader opens them."""


class Called:
    """Pickled as a call of any function."""

    def __init__(self, call):
        self.call = call


class Hostile(pickle._Pickler):
    """Writes calls by name, so that nothing has to be there when the file is made."""

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Called):
            return super().save(obj, save_persistent_id)
        module, name, arguments = obj.call
        self.write(b"c" + f"{module}\n{name}\n".encode("utf-8", "surrogatepass"))
        super().save(arguments)
        self.write(pickle.REDUCE)
        return None


def pickled(content, protocol=2):
    buffer = io.BytesIO()
    Hostile(buffer, protocol).dump(content)
    return buffer.getvalue()


def archive(entries, *, folder="archive", compression=zipfile.ZIP_STORED):
    """A torch archive with any entries, all of one time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries:
            entry = zipfile.ZipInfo(f"{folder}/{name}" if folder else name)
            entry.compress_type = compression
            file.writestr(entry, content)
    return buffer.getvalue()


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def old_bytes():
    """Two tensors in one storage, in the old format; there a storage is named by where it lies in memory, but here."""
    both = torch.ones(42)
    data = torch_bytes({"w": both[:35].view(7, 5), "b": both[35:]}, _use_new_zipfile_serialization=False)
    (address,) = set(re.findall(rb"X.\0\0\0\d{7,}", data))
    return data.replace(address, b"X\x07\0\0\0" + b"9876543")


WHOLE = (torch_bytes(STATE), old_bytes())


def entries_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [(info.filename.partition("/")[2], file.read(info)) for info in file.infolist()]


@st.composite
def odd_archives(draw):
    """An archive of torch with entries that are lost, doubled, renamed, longer, shorter or compressed."""
    entries = entries_of(WHOLE[0])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(entries) - 1))
        name, content = entries[place]
        what = draw(st.sampled_from(["lose", "double", "rename", "content", "numbers", "add"]))
        if what == "lose" and len(entries) > 1:
            del entries[place]
        elif what == "double":
            entries.append((name, content))
        elif what == "rename":
            entries[place] = (_plain(draw(st.sampled_from(NAMES))), content)
        elif what == "content":
            entries[place] = (name, draw(damaged(content)))
        elif what == "numbers":
            entries[place] = (name, _other_numbers(content, draw(st.sampled_from([b"K\x05", b"K\x07", b"K#"]))))
        else:
            entries.append((_plain(draw(st.sampled_from(NAMES))), b"x"))
    folder = draw(st.sampled_from(["archive", "archive", "archive", "", "..", "/etc"]))
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    return archive(entries, folder=folder, compression=method)


def _plain(name):
    return name.replace("\0", "0").replace("\ud800", "?")[:1000] or "x"


def _other_numbers(content, number):
    """A pickle in which a size or stride is larger than the storage."""
    return content.replace(number, b"J" + struct.pack("<i", (1 << 31) - 1))


numbers = st.sampled_from([n for n in NUMBERS if isinstance(n, int)])


@st.composite
def hostile_pickles(draw):
    """A state dict with a call somewhere inside, in the new format, the old one, or as a bare pickle."""
    call = Called(draw(st.sampled_from(CALLS)))
    place = draw(st.sampled_from(["value", "key", "nested", "alone", "state_dict", "hyper_parameters", "argument"]))
    content = {
        "value": {"w": 1, "x": call},
        "key": [call, {"w": 1}],
        "nested": {"state_dict": {"a": [{"b": (call,)}]}},
        "alone": call,
        "state_dict": {"state_dict": call},
        "hyper_parameters": {"state_dict": {"w": 1}, "hyper_parameters": call},
        "argument": Called(("collections", "OrderedDict", (call,))),
    }[place]
    data = pickled(content, draw(st.sampled_from([0, 1, 2, 3, 4, 5])))
    if draw(st.booleans()):
        data = draw(damaged(data))
    form = draw(st.sampled_from(["zip", "zip", "old", "bare"]))
    if form == "zip":
        return archive([("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")])
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    return magic + system + data + pickle.dumps([], 2) if form == "old" else data


@st.composite
def opcodes(draw):
    """A pickle with its instructions in another order, doubled or lost."""
    data = dict(entries_of(WHOLE[0]))["data.pkl"]
    places = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    parts = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    for _ in range(draw(st.integers(1, 4))):
        one, other = (draw(st.integers(0, len(parts) - 1)) for _ in "ab")
        what = draw(st.sampled_from(["swap", "double", "lose"]))
        if what == "swap":
            parts[one], parts[other] = parts[other], parts[one]
        elif what == "double":
            parts.insert(one, parts[other])
        elif len(parts) > 1:
            del parts[one]
    return archive([(n, b"".join(parts) if n == "data.pkl" else c) for n, c in entries_of(WHOLE[0])])


@pytest.fixture
def base(watch):
    return random_states(watch.root / "inputs", 1)


def read_whole(path):
    reader = open_state(path)
    for name in reader.keys():
        reader.read(name).clone()


def entries(watch, base, path):
    """Every way to hand a torch file to the program; those that compare are slow and stand once."""
    first, second = base
    quick = (
        lambda: watch.call(read_whole, path),
        lambda: watch.command(["merge", "--models", path, second, "--base", first, "--output", "out"]),
        lambda: watch.command(["merge", "--adapters", path, "--base", first, "--output", "out"]),
        lambda: watch.command(["inspect", "checkpoint", path]),
        lambda: watch.command(["inspect", "checkpoint", path, "--json"]),
        lambda: watch.command(["export", path, "--format", "safetensors", "--output", "out"]),
        lambda: watch.command(["export", path, "--output", "out"]),
        lambda: watch.command(["export", path, "--format", "adapter", "--output", "out"]),
        lambda: watch.command(["rename", path, "--list"]),
        lambda: watch.command(["rename", path, "--add_prefix", "x.", "--output", "out.safetensors"]),
        lambda: watch.command(["map", first, path]),
    )
    return quick * 5 + (lambda: watch.command(["compare", path, second, "--output_dir", "out"]),)


def test_files(watch, base):
    path = watch.root / "inputs" / "case.ckpt"
    strategy = st.one_of(*map(damaged, WHOLE), odd_archives(), odd_archives(), values.map(torch_bytes))
    try_cases("torch files", strategy, path.write_bytes, entries(watch, base, path))


def test_pickles(watch, base):
    path = watch.root / "inputs" / "case.ckpt"
    try_cases("torch pickles", hostile_pickles() | opcodes(), path.write_bytes, entries(watch, base, path))


@st.composite
def altered_checkpoint(draw, content):
    """A trained checkpoint with one of its entries replaced, removed or moved, at any depth."""
    changed = _copied(content)
    for _ in range(draw(st.integers(1, 2))):
        holder = changed
        while True:
            key = draw(st.sampled_from(sorted(holder, key=str)))
            inner = holder[key]
            if not isinstance(inner, dict) or not inner or draw(st.integers(0, 4)) == 0:
                break
            holder = inner
        what = draw(st.sampled_from(["value", "tensor", "lose", "rename"]))
        if what == "value":
            holder[key] = draw(values)
        elif what == "tensor":
            holder[key] = torch.ones(draw(st.sampled_from([(), (0,), (3,), (16, 16), (4, 16), (1, 2, 3)])))
        elif len(holder) > 1:
            moved = holder.pop(key)
            if what == "rename":
                holder[draw(st.sampled_from(NAMES))] = moved
    return changed


def _copied(content):
    return {k: _copied(v) for k, v in content.items()} if isinstance(content, dict) else content


def test_trained_checkpoints(watch, monkeypatch):
    """What a Trainer saves beside the weights: hyper-parameters, adapters, signatures of layers, random states."""
    base = write_tied_llama(watch.root / "inputs" / "llama")
    path = watch.root / "inputs" / "case.ckpt"
    monkeypatch.chdir(watch.root / "inputs")
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    module = Module("../inputs/llama")
    adapt(module.model, r=2, target_modules=["q_proj", "v_proj"], use_dora=True)
    content = torch.load(save(module, path), weights_only=True)
    into = ["--output", "out"]
    quick = (
        lambda: watch.command(["inspect", "checkpoint", path]),
        lambda: watch.command(["export", path, *into]),
        lambda: watch.command(["export", path, *into, "--format", "adapter"]),
        lambda: watch.command(["merge", "--adapters", path, *into, "--base", base]),
        lambda: watch.command(["merge", "--models", path, *into, "--base", base]),
    )
    try_cases("trained checkpoints", altered_checkpoint(content), lambda case: torch.save(case, path), quick)
