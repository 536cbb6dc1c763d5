"""Files and folders that are written completely or not at all, and checks before the work that they can be.

put(Path("out.json"), lambda temporary: temporary.write_text("{}"))
with new_folder(check_new("--out", Path("out"))) as part: (part / "config.json").write_text("{}")
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from harness.text import reason
from harness.types import InputError

LONG = 200  # bytes of a name that leave no room for what a temporary file's name adds


def put(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary file beside `path`, flush it to disk, and move it into place."""
    put_all({path: fill})


def put_all(fills: Mapping[Path, Callable[[Path], object]]) -> None:
    """`put` for several files: they are moved into place in this order, once all of them are written and flushed.

    An error while they are written leaves all old files; only a kill between two moves leaves some old and some new.
    """
    moves: dict[Path, Path] = {}
    try:
        for path, fill in fills.items():
            name = path.name if len(os.fsencode(path.name)) < LONG else sha256(os.fsencode(path.name)).hexdigest()
            temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
            moves[temporary] = path
            temporary.touch()
            mode = temporary.stat().st_mode
            fill(temporary)
            temporary.chmod(stat.S_IMODE(mode))  # safetensors makes its files private
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        for temporary, path in moves.items():
            os.replace(temporary, path)
    finally:
        for temporary in moves:
            temporary.unlink(missing_ok=True)


def save(path: Path, text: str) -> None:
    """Write a text where the user asked for it. A link is followed; a device or a pipe is written to as it is.

    Raises InputError if the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", newline="\n")
        else:
            put(target, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))
    except OSError as error:
        raise unwritable(path, error, target.parent) from error


def unwritable(path: Path, error: OSError, *folders: Path) -> InputError:
    """The error for a file or folder that the system does not let us write; `folders`: where its files are made.

    An error of another file, such as one that was to be read, names that file.
    """
    place = error.filename
    if place is None and error.errno is not None:  # of a file that was opened before, as on a full disk
        place = path
    if isinstance(place, str | Path) and any(Path(place).is_relative_to(own) for own in (path, *folders)):
        return InputError(f"{path}: cannot be written: {reason(error)}")
    return InputError(f"{path}: cannot be made: {f'{place}: {reason(error)}' if place else error}")


# --- before the work ------------------------------------------------------------------------------------------


def check_writable(folder: Path, what: str = "results folder") -> None:
    """Raise InputError unless files can be written in `folder`, which is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"-")  # a full disk still creates files
            file.flush()
    except OSError as error:
        raise InputError(f"{what} {folder}: not writable: {reason(error)}") from error


def check_file(path: Path, what: str) -> None:
    """Raise InputError unless `save` can write this file; its folder is created if missing."""
    try:
        if path.is_dir():
            raise InputError(f"{what} {path}: a folder; name a file")
        if os.path.lexists(path) and not path.is_file():
            return  # a device or a pipe, or a link to what is not there yet
        check_writable(path.parent, what)
        if not path.is_file():
            path.touch()  # the name may be impossible
            path.unlink()
        elif not os.access(path, os.W_OK):
            raise InputError(f"{what} {path}: not writable: {os.strerror(errno.EACCES)}")
    except OSError as error:
        raise InputError(f"{what} {path}: not writable: {reason(error)}") from error


def check_new(what: str, folder: Path, stamp: str | None = None) -> Path:
    """The folder that this path leads to, links followed; it is new or empty, and can be written.

    stamp: a file name; a folder with such a file may be replaced. Creates nothing. Raises InputError for any other
    folder.
    """
    target = Path(os.path.realpath(folder))
    try:
        if os.path.lexists(target):
            if not target.is_dir() or (any(target.iterdir()) and not (stamp and (target / stamp).is_file())):
                raise InputError(f"{what} {folder}: already exists and is not an empty folder; name a new or empty one")
            check_writable(target, what)
        else:
            with _parents(target):
                check_writable(target.parent, what)
                target.mkdir()  # the name may be impossible
                target.rmdir()
    except OSError as error:
        raise InputError(f"{what} {folder}: not writable: {reason(error)}") from error
    return target


def check_space(what: str, folder: Path, needed: int, hint: str = "free some space, or name another folder") -> None:
    """Raise InputError unless the disk of `folder` (or its nearest parent that exists) has this many bytes free."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise InputError(f"{what} {folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed; {hint}")


# --- folders --------------------------------------------------------------------------------------------------


@contextmanager
def new_folder(target: Path, stamp: str = "config.json") -> Iterator[Path]:
    """A folder to fill, which becomes `target` (see `check_new`) if nothing is raised and vanishes otherwise.

    stamp: the file without which the folder is not what it should be; a folder that has one is replaced. Raises
    InputError if the system does not let it be written, or if something else was written there meanwhile.
    """
    older = (target / stamp).is_file()
    part = (target if target.exists() else target.parent) / f".{os.getpid()}.part"
    with _parents(target):
        try:
            part.mkdir(parents=True)
            yield part
            public(part)
            if target.exists():  # the current folder, a mount, or what is replaced: it stays, and takes the files
                _move(part, target, stamp, older)
            else:
                part.rename(target)
        except OSError as error:
            raise unwritable(target, error, part) from error
        except Exception as error:
            if "(os error " not in str(error):  # as libraries in Rust say it
                raise
            raise InputError(f"{target}: cannot be written: {error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _move(part: Path, target: Path, stamp: str, older: bool) -> None:
    """Move the files of `part` into `target`, the stamp last. What is older there goes; else the folder is empty.

    An older stamp goes first, so that a folder that was left halfway has none.
    """
    others = set(target.iterdir()) - {part}
    if others and not older:
        raise InputError(f"{target}: something else was written there meanwhile; it is left as it is")
    (target / stamp).unlink(missing_ok=True)
    others.discard(target / stamp)
    files = sorted(part.iterdir(), key=lambda file: file.name == stamp)
    for file in files:
        file.rename(target / file.name)
    for other in others - {target / file.name for file in files}:
        if other.is_dir() and not other.is_symlink():
            shutil.rmtree(other)
        else:
            other.unlink()


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """On leaving, the folders above that were missing on entering go, unless they hold something."""
    missing = [parent for parent in folder.parents if not parent.exists()]  # the nearest first
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


def public(folder: Path) -> None:
    """Give the files of a folder the permissions of new files; safetensors makes its files private."""
    probe = folder / ".new"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(mode)
