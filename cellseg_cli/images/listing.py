"""List the files of a source: a folder, one file, a glob, or a list file.

Nothing is opened here but a list file.  Hidden files and folders are left out, each linked
loop is walked once, and a folder that may not be listed is an error and not a gap.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from cellseg_cli.errors import InputError

#: Compound suffixes stand first: ``a.ome.tif`` is the field ``a``.
SUFFIXES = (".ome.tiff", ".ome.tif", ".tiff", ".tif", ".png", ".jpeg", ".jpg", ".bmp")
_LONGEST = max(map(len, SUFFIXES))
LIST_SUFFIXES = (".txt", ".lst")
#: What plate readers write beside their images.
METADATA_SUFFIXES = (".htd", ".mlf", ".mrf", ".mes", ".xml")
#: What only a zarr group or array has in its folder, format 2 or 3.
ZARR_FILES = frozenset({"zarr.json", ".zgroup", ".zattrs", ".zarray"})
#: What only a folder of label images has that ``cellseg segment`` wrote: the store of their marks.
SEGMENTED = ".cellseg/segment.zarr"
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Filter:
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
class Listing:
    """What lies below one root; POSIX paths relative to it.

    Attributes
    ----------
    root
        The folder that the paths are relative to.
    images
        Files with the suffix of an image.
    zarrs
        Folders that are zarr groups; they are not walked.  ``"."`` is the root itself.
    metadata
        Files that a plate reader may have written beside its images.
    others
        Number of other files by suffix.
    left_out
        Number of images that a filter left out.
    whole
        Whether this is all that lies there: nothing was left out, nothing singled out.
    """

    root: Path
    images: list[str]
    zarrs: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    others: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    whole: bool = False


def list_source(source: str | Path, chosen: Filter) -> Listing:
    """Return the files of a file, folder, glob or list file that pass the filter.

    Raises
    ------
    InputError
        A path that is not there, a folder that may not be listed, a faulty list file.
    """
    if not str(source):
        raise InputError("the source of images is empty; give a file, a folder, a glob or a list")
    path = Path(source)
    if path.is_dir():
        whole = not (chosen.include or chosen.exclude)
        return replace(_search(path, chosen.keeps, chosen.enters), whole=whole)
    if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        return _filtered(_listed(path), chosen)
    if os.path.lexists(path):
        return _filtered(Listing(path.parent, [path.name]), chosen)
    if _MAGIC.search(str(source)):
        return _globbed(str(source), chosen)
    raise InputError(f"{source}: there is no such file or folder")


def _filtered(found: Listing, chosen: Filter) -> Listing:
    def keeps(relative: str) -> bool:
        parents = PurePosixPath(relative).parents[:-1]
        return chosen.keeps(relative) and all(chosen.enters(str(parent)) for parent in parents)

    images = [relative for relative in found.images if keeps(relative)]
    zarrs = tuple(relative for relative in found.zarrs if keeps(relative))
    left_out = len(found.images) + len(found.zarrs) - len(images) - len(zarrs)
    return replace(found, images=images, zarrs=zarrs, left_out=left_out)


def _search(root: Path, keeps: Callable[[str], bool], enters: Callable[[str], bool]) -> Listing:
    """Walk below ``root``; see :class:`Listing`."""
    images: list[str] = []
    zarrs: list[str] = []
    metadata: list[str] = []
    others, left_out = Counter[str](), 0
    for relative, is_zarr in _walk(root, enters):
        name = relative.rpartition("/")[2]
        lower = name.lower()
        if is_zarr or lower.endswith(SUFFIXES):
            if relative != "." and not keeps(relative):
                left_out += 1
            else:
                (zarrs if is_zarr else images).append(relative)
            continue
        others[PurePosixPath(name).suffix.lower() or "no suffix"] += 1
        if lower.endswith(METADATA_SUFFIXES):
            metadata.append(relative)
    return Listing(root, images, tuple(sorted(zarrs)), tuple(sorted(metadata)), others, left_out)


def _walk(root: Path, enters: Callable[[str], bool]) -> Iterator[tuple[str, bool]]:
    """Yield the relative POSIX path of each file that is not hidden, and of each zarr group.

    A linked folder is entered unless it is one of its own parents, which ends every loop.
    A zarr group is not entered: it is told with True, as are label images below the root that
    this program wrote: they are no images to segment.
    """
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        prefix, parents = pending.pop()
        identity, entries, is_zarr = _listing(root / prefix)
        if identity in parents:
            continue
        if is_zarr or (prefix and (root / prefix / SEGMENTED).is_dir()):
            yield prefix.rstrip("/") or ".", True
            continue
        for entry in entries:
            relative = prefix + entry.name
            kind = _kind(entry)
            if kind == "folder" and enters(relative):
                pending.append((relative + "/", (*parents, identity)))
            elif kind == "file":
                yield relative, False


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


def _listing(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry[str]], bool]:
    """Return what identifies the folder, its entries that are not hidden, whether it is zarr."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            every = list(entries)
    except OSError as fault:
        raise InputError(
            f"{folder}: the folder cannot be listed ({fault.strerror}); "
            f"mend its permissions or leave it out with --exclude"
        ) from fault
    seen = [entry for entry in every if not entry.name.startswith(".")]
    is_zarr = any(entry.name in ZARR_FILES for entry in every)
    return (status.st_dev, status.st_ino), seen, is_zarr


def _globbed(pattern: str, chosen: Filter) -> Listing:
    """Search below the fixed part of a glob for the files that match all of it."""
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise InputError(f"{pattern}: there is no such folder: {root}")
    whole = "/".join(parts[fixed:])
    deepest = None if "**" in parts else len(parts) - fixed

    def enters(relative: str) -> bool:
        # A folder that the last part of the glob could match is looked into if it may be zarr.
        depth = relative.count("/") + 1 - (".zarr" in relative)
        shallow = deepest is None or depth < deepest
        return shallow and chosen.enters(relative)

    matched = _compiled(whole)
    found = _search(root, lambda relative: matched.fullmatch(relative) is not None, enters)
    others = found.others.copy()
    if found.left_out:
        others["images that do not match"] = found.left_out
    return _filtered(replace(found, others=others, left_out=0), chosen)


def _listed(path: Path) -> Listing:
    """Read a list file."""
    files: dict[str, int] = {}
    zarrs: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name = os.path.normpath(path.parent / text)
        if name in files:
            raise InputError(
                f"{path}: line {number} names {text} again (first in line {files[name]})"
            )
        if _is_zarr(Path(name)):
            zarrs.append(name)
        elif not Path(name).is_file():
            kind = "is a folder" if Path(name).is_dir() else "is not there"
            raise InputError(f"{path}: line {number} names {text}, which {kind}")
        files[name] = number
    root = _common_root(path.parent, list(files))
    relative = {name: Path(os.path.relpath(name, root)).as_posix() for name in files}
    images = [relative[name] for name in files if name not in zarrs]
    return Listing(root, images, tuple(sorted(relative[name] for name in zarrs)))


def _is_zarr(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in ZARR_FILES)


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


def without_suffix(relative: str) -> str:
    """Return the path without its image suffix, or without its last suffix if it is another."""
    ending = relative[-_LONGEST:].lower()
    if ending.endswith(SUFFIXES):
        length = next(len(suffix) for suffix in SUFFIXES if ending.endswith(suffix))
        stem = relative[:-length]
        # A file named just ".png" is hidden; only a list file can name one.
        return stem if stem and not stem.endswith("/") else relative
    return PurePosixPath(relative).with_suffix("").as_posix()
