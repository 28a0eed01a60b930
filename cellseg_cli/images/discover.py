"""Find the fields of a run: which image files there are, and the id of each.

Invariant: equal folders give equal tuples, sorted by id, whatever order the file system
lists them in, and no two fields share an id.  Nothing is opened here, so a file that is no
image is found like any other and fails when it is read.  A folder that may not be listed is
an error and not a gap; ``exclude`` takes it out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from cellseg_cli.errors import InputError

#: Compound suffixes stand first: ``a.ome.tif`` is the field ``a``.
SUFFIXES = (".ome.tiff", ".ome.tif", ".tiff", ".tif", ".png", ".jpeg", ".jpg", ".bmp")
LIST_SUFFIXES = (".txt", ".lst")
_SHOWN = ".png .jpg .jpeg .bmp .tif .tiff"
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Field:
    """One field of view: one image file of the batch.

    Attributes
    ----------
    id
        Path relative to the root of the run, POSIX, without image suffix.
    path
        The file as it can be opened from here; symbolic links are not resolved.
    """

    id: str
    path: Path


@dataclass(frozen=True)
class _Filter:
    """Which files count, and which folders need not be entered."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def keeps(self, relative: str) -> bool:
        """Whether the file passes both lists."""
        if self.include and not any(_matches(relative, pattern) for pattern in self.include):
            return False
        return not any(_matches(relative, pattern) for pattern in self.exclude)

    def enters(self, relative: str) -> bool:
        """Whether anything below the folder could pass ``exclude``."""
        return not any(_matches(relative, pattern.removesuffix("/**")) for pattern in self.exclude)


@dataclass(frozen=True)
class _Found:
    """Files below one root: POSIX paths relative to it, and what else was there."""

    root: Path
    images: list[str]
    others: Counter[str]
    left_out: int = 0


def find_fields(
    source: str | Path, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[Field, ...]:
    """Return the fields of a file, folder, glob or list file, sorted by id.

    A folder is searched recursively, through symbolic links, each loop once.  Files and
    folders whose name starts with a dot are left out.  A glob gives the files that match it;
    its root is the part before the first ``*``, ``?`` or ``[``.  A list file (``.txt``,
    ``.lst``) has one path a line, relative to its own folder, with ``#`` before comments; its
    root is that folder, or the deepest folder common to all files if one lies outside.

    Parameters
    ----------
    source
        What the user gave.
    include, exclude
        Globs on the POSIX path relative to the root: ``*`` stays within one folder, ``**``
        crosses them; a pattern without ``/`` is matched with the bare name at any depth.  A
        file stays if it matches one of ``include`` (or there is none) and none of ``exclude``;
        a folder that matches ``exclude`` is not entered.

    Raises
    ------
    InputError
        Nothing found, a path that is not there, a folder that may not be listed, a name that
        is not UTF-8, or two files with one id.

    Notes
    -----
    ``os.scandir`` tells files from folders without a further call for each.  Measured: 100 000
    files in 100 folders, 0.6 s of CPU time, 1.1 s for a glob that all of them match.
    """
    if not str(source):
        raise InputError("the source of images is empty; give a file, a folder, a glob or a list")
    path = Path(source)
    chosen = _Filter(tuple(include), tuple(exclude))
    if path.is_dir():
        found = _search(path, chosen.keeps, chosen.enters)
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        found = _filtered(_listed(path), chosen)
    elif os.path.lexists(path):
        found = _filtered(_Found(path.parent, [path.name], Counter()), chosen)
    elif _MAGIC.search(str(source)):
        found = _globbed(str(source), chosen)
    else:
        raise InputError(f"{source}: there is no such file or folder")
    if not found.images:
        raise InputError(_nothing(str(source), found))
    return _fields(found)


def _filtered(found: _Found, chosen: _Filter) -> _Found:
    kept = [
        relative
        for relative in found.images
        if chosen.keeps(relative)
        and all(chosen.enters(str(parent)) for parent in PurePosixPath(relative).parents[:-1])
    ]
    return _Found(found.root, kept, found.others, len(found.images) - len(kept))


def _fields(found: _Found) -> tuple[Field, ...]:
    """Name the files and refuse ids that are shared or cannot be written down."""
    paths: dict[str, str] = {}
    clashes: list[tuple[str, str, str]] = []
    for relative in sorted(found.images):
        field_id = _without_suffix(relative)
        if field_id in paths:
            clashes.append((field_id, paths[field_id], relative))
        paths.setdefault(field_id, relative)
    unwritable = [relative for relative in found.images if not _is_utf8(relative)]
    if unwritable:
        raise InputError(f"{found.root}: the file name {min(unwritable)!a} is not UTF-8; rename it")
    if clashes:
        raise InputError(_clash(found.root, clashes))
    return tuple(Field(field_id, found.root / paths[field_id]) for field_id in sorted(paths))


def _clash(root: Path, clashes: list[tuple[str, str, str]]) -> str:
    field_id, first, second = clashes[0]
    more = f" (and {len(clashes) - 1} more such files)" if len(clashes) > 1 else ""
    return (
        f"{root}: {first} and {second} would both be the field '{field_id}'{more}; "
        f"rename one, or leave one out with --exclude"
    )


def _nothing(source: str, found: _Found) -> str:
    """Say what was looked for and what was there instead."""
    there = []
    if found.others:
        common = sorted(found.others.items(), key=lambda item: (-item[1], item[0]))[:5]
        types = ", ".join(f"{suffix} ({count})" for suffix, count in common)
        there.append(f"{_counted(sum(found.others.values()), 'other file')}: {types}")
    if found.left_out:
        there.append(f"{_counted(found.left_out, 'image')} left out by --include and --exclude")
    instead = "; ".join(there) or "no file at all"
    return f"{source}: no image found ({_SHOWN}); there: {instead}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _search(root: Path, keeps: Callable[[str], bool], enters: Callable[[str], bool]) -> _Found:
    """Walk below ``root``; see :class:`_Found`."""
    images, others, left_out = [], Counter[str](), 0
    for relative in _walk(root, enters):
        name = relative.rpartition("/")[2]
        if not name.lower().endswith(SUFFIXES):
            others[PurePosixPath(name).suffix.lower() or "no suffix"] += 1
        elif keeps(relative):
            images.append(relative)
        else:
            left_out += 1
    return _Found(root, images, others, left_out)


def _walk(root: Path, enters: Callable[[str], bool]) -> Iterator[str]:
    """Yield the relative POSIX path of each file that is not hidden.

    A linked folder is entered unless it is one of its own parents, which ends every loop.
    """
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        prefix, parents = pending.pop()
        identity, entries = _listing(root / prefix)
        if identity in parents:
            continue
        for entry in entries:
            relative = prefix + entry.name
            kind = _kind(entry)
            if kind == "folder" and enters(relative):
                pending.append((relative + "/", (*parents, identity)))
            elif kind == "file":
                yield relative


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file" or "other" (pipes, sockets, devices).

    A link that leads nowhere is a file: reading it fails and says so, where leaving it out
    would be silent.
    """
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or entry.is_symlink() else "other"
    except OSError:  # a link to itself
        return "file"


def _listing(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Return what identifies the folder, and its entries that are not hidden."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as fault:
        raise InputError(
            f"{folder}: the folder cannot be listed ({fault.strerror}); "
            f"mend its permissions or leave it out with --exclude"
        ) from fault
    return (status.st_dev, status.st_ino), seen


def _globbed(pattern: str, chosen: _Filter) -> _Found:
    """Search below the fixed part of a glob for the files that match all of it."""
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise InputError(f"{pattern}: there is no such folder: {root}")
    whole = "/".join(parts[fixed:])
    deepest = None if "**" in parts else len(parts) - fixed

    def enters(relative: str) -> bool:
        shallow = deepest is None or relative.count("/") + 1 < deepest
        return shallow and chosen.enters(relative)

    matched = _compiled(whole)
    found = _search(root, lambda relative: matched.fullmatch(relative) is not None, enters)
    others = found.others.copy()
    if found.left_out:
        others["images that do not match"] = found.left_out
    return _filtered(_Found(root, found.images, others), chosen)


def _listed(path: Path) -> _Found:
    """Read a list file."""
    files: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name = os.path.normpath(path.parent / text)
        if name in files:
            raise InputError(
                f"{path}: line {number} names {text} again (first in line {files[name]})"
            )
        if not Path(name).is_file():
            kind = "is a folder" if Path(name).is_dir() else "is not there"
            raise InputError(f"{path}: line {number} names {text}, which {kind}")
        files[name] = number
    root = _common_root(path.parent, list(files))
    relative = [Path(os.path.relpath(name, root)).as_posix() for name in files]
    return _Found(root, relative, Counter())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as fault:
        raise InputError(f"{path}: the list is not UTF-8 text; one path a line") from fault
    except OSError as fault:
        raise InputError(f"{path}: the list cannot be read ({fault.strerror})") from fault


def _common_root(folder: Path, names: list[str]) -> Path:
    """Return the list's folder, or the deepest folder that holds all files."""
    own = os.path.normpath(folder.absolute())
    absolute = [os.path.normpath(Path(name).absolute()) for name in names]
    try:
        if not names or os.path.commonpath([own, *absolute]) == own:
            return folder
        return Path(os.path.commonpath([Path(name).parent for name in absolute]))
    except ValueError as fault:
        raise InputError(f"{folder}: the listed files lie on different drives") from fault


def _without_suffix(relative: str) -> str:
    """Return the path without its image suffix, or without its last suffix if it is another."""
    lower = relative.lower()
    for suffix in SUFFIXES:
        if lower.endswith(suffix):
            stem = relative[: -len(suffix)]
            # A file named just ".png" is hidden; only a list file can name one.
            return stem if not stem.endswith("/") and stem else relative
    return PurePosixPath(relative).with_suffix("").as_posix()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _matches(relative: str, pattern: str) -> bool:
    """Return whether a relative POSIX path matches; without ``/`` only the name counts."""
    text = relative if "/" in pattern else relative.rpartition("/")[2]
    return _compiled(pattern).fullmatch(text) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Translate a glob: ``*`` and ``?`` within a folder, ``**`` across any number of them."""
    parts = pattern.strip("/").split("/")
    regex = ""
    for part in parts[:-1]:
        regex += "(?:[^/]+/)*" if part == "**" else _part(part) + "/"
    regex += ".+" if parts[-1] == "**" else _part(parts[-1])
    try:
        return re.compile(regex, re.DOTALL)
    except re.error as fault:
        raise InputError(f"the glob '{pattern}' cannot be understood: {fault}") from fault


def _part(part: str) -> str:
    """Translate one component of a glob."""
    regex, i = "", 0
    while i < len(part):
        closing = part.find("]", i + 2 + (part[i + 1 : i + 2] == "!")) if part[i] == "[" else -1
        if closing > 0:
            inner = part[i + 1 : closing].replace("\\", "\\\\").replace("[", "\\[")
            regex += "[" + ("^/" + inner[1:] if inner[0] == "!" else inner) + "]"
            i = closing + 1
            continue
        regex += {"*": "[^/]*", "?": "[^/]"}.get(part[i]) or re.escape(part[i])
        i += 1
    return regex
