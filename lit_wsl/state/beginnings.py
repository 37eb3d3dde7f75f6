"""What a file that is no checkpoint seems to be, told from how it begins."""

import string
import zipfile
from pathlib import Path

_ZIP = b"PK\x03\x04"
_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""How torch files begin that are no zip archives."""
_LOOKED_AT = 64
_SHOWN = 24
_TEXT = frozenset(string.printable.encode())


def fault_of(path: Path) -> str:
    """Why a file cannot be read as the checkpoint that its name says, and a remedy, for a message."""
    try:
        with path.open("rb") as file:
            start, size = file.read(_LOOKED_AT), file.seek(0, 2)
    except OSError as error:
        return f"({error.strerror}); check the path and its permissions"
    return (
        _known(path, start, size) or f"(it begins with the bytes {start[:8].hex(' ')}); it is no checkpoint, or damaged"
    )


def looks_like_safetensors(path: Path) -> bool:
    """Whether a length and an opening brace stand at the beginning of a file, or it cannot be read at all."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return True
    return start[8:] == b"{" and start[7:8] == b"\0"


def _known(path: Path, start: bytes, size: int) -> str | None:
    """The fault of a file that begins in a way that is known."""
    is_safetensors = path.suffix == ".safetensors"
    if not start:
        return "(it is empty); copy or write it again"
    if start.startswith(b"version https://git-lfs"):
        return "(it only points to a file of Git LFS); run `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "(it is a web page); download the file itself"
    if start.startswith((_TORCH, _ZIP)):
        if is_safetensors:
            return "(it begins like a torch file); name it .pt, or convert it"
        if start.startswith(_ZIP) and zipfile.is_zipfile(path):
            return "(it is a zip archive whose content torch did not write, or is damaged); save it with `torch.save`"
        return f"(it is truncated or damaged, with {size} bytes); copy or write it again"
    if looks_like_safetensors(path):
        return "(it begins like a safetensors file); name it .safetensors"
    if set(start) <= _TEXT:
        return f"(it is text that begins with {_shown(start)!r}); check the path"
    return None


def _shown(start: bytes) -> str:
    """The beginning of the first line."""
    return start[:_SHOWN].split(b"\n")[0].decode()
