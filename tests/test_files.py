"""Files and folders are written whole or not at all, checked before the work, and readable as umask says."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.files import check_file, check_new, new_folder, public, put, put_all, save
from harness.types import InputError


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def weights(path: Path) -> None:
    save_file({"a": torch.zeros(3)}, path)


# --- permissions ----------------------------------------------------------------------------------------------


def test_permissions_are_those_of_new_files(tmp_path: Path, umask: int) -> None:
    put(tmp_path / "a.safetensors", weights)
    save(tmp_path / "b.txt", "text")
    with new_folder(tmp_path / "new") as part:
        weights(part / "model.safetensors")
    (tmp_path / "old").mkdir()
    weights(tmp_path / "old" / "c.safetensors")
    public(tmp_path / "old")
    for name in ("a.safetensors", "b.txt", "new/model.safetensors", "old/c.safetensors"):
        assert mode(tmp_path / name) == 0o666 & ~umask, name
    assert mode(tmp_path / "new") == 0o777 & ~umask
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["c.safetensors"]


# --- whole or not at all --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "cannot be written: No space left on device"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "os error 28"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_disk_that_becomes_full_leaves_nothing(tmp_path: Path, error: Exception, told: str, exists: bool) -> None:
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    with pytest.raises(InputError, match=told), new_folder(check_new("--out", target)) as part:
        (part / "config.json").write_text("{}")
        raise error
    assert [*tmp_path.rglob("*")] == ([target] if exists else [])
    with pytest.raises(RuntimeError), new_folder(target) as part:  # any other error is passed on
        raise RuntimeError


@pytest.mark.parametrize("fault", ["write", "flush"])
def test_several_files_are_moved_once_all_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    fills = {tmp_path / name: lambda temporary: temporary.write_text("new") for name in ("a", "b")}
    for path in fills:
        path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    flush = os.fsync
    if fault == "flush":
        monkeypatch.setattr(
            os, "fsync", lambda file: full() if (tmp_path / f".b.{os.getpid()}.tmp").exists() else flush(file)
        )
    with pytest.raises(OSError, match="No space left"):
        put_all({**fills, tmp_path / "b": full} if fault == "write" else fills)
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "old"), ("b", "old")]
    monkeypatch.undo()
    put_all(fills)
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "new"), ("b", "new")]


@pytest.mark.parametrize("read", [Path.read_bytes, load_file])
def test_a_file_that_cannot_be_read_is_blamed_itself(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """Whether the error has a file name or, as that of safetensors, names it in its text."""
    with pytest.raises(InputError) as caught, new_folder(tmp_path / "out"):
        read(tmp_path / "missing.safetensors")
    assert f"{tmp_path}/missing.safetensors" in str(caught.value) and "No such file" in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/out: cannot be made: ")
    ours = r"/out: cannot be written: No such file or directory$"
    with pytest.raises(InputError, match=ours), new_folder(tmp_path / "out") as part:
        (part / "missing" / "file").write_text("")


@pytest.mark.parametrize("exists", [True, False])
def test_what_another_wrote_meanwhile_is_left(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "new" / "out"
    if exists:
        target.mkdir(parents=True)
    with pytest.raises(InputError, match="something else was written there"), new_folder(target) as part:
        (part / "config.json").write_text("ours")
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text("theirs")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["theirs"]


def test_an_older_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("stamp", "old", "sub/below"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("old")
    with pytest.raises(InputError, match="not an empty folder"):
        check_new("--out", tmp_path / "out", "other")
    target = check_new("--out", tmp_path / "out", "stamp")
    with pytest.raises(RuntimeError), new_folder(target, "stamp") as part:
        (part / "stamp").write_text("new")
        raise RuntimeError
    assert len([*target.rglob("*")]) == 4 and (target / "stamp").read_text() == "old"
    with new_folder(target, "stamp") as part:
        (part / "stamp").write_text("new")
    assert [(path.name, path.read_text()) for path in target.rglob("*")] == [("stamp", "new")]


def test_a_replacement_that_was_interrupted_has_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of two checkpoints would look like one."""
    names, moved = ("config.json", "model.safetensors", "tokenizer.json"), []
    for name in names:
        (tmp_path / name).write_text("old")

    def rename(file: Path, target: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        os.replace(file, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path) as part:
        for name in names:
            (part / name).write_text("new")
    texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert set(texts.values()) == {"old", "new"} and "config.json" not in texts


def test_a_folder_is_filled_where_the_path_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("later")
    monkeypatch.chdir(tmp_path / "empty")
    for path in (Path("."), tmp_path / "link", tmp_path / "dangling", tmp_path / ("n" * 250)):
        with new_folder(check_new("--out", path)) as part:
            for name in ("config.json", "model"):
                (part / name).touch()
        assert sorted(file.name for file in path.iterdir() if file.is_file()) == ["config.json", "model"], path
        for file in path.iterdir():
            file.unlink()
    assert (tmp_path / "later").is_dir() and Path.cwd().exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda here: here / ("n" * 256),
        lambda here: here / "/".join(["n" * 200] * 25),
        lambda here: here / "file",
        lambda here: here / "file" / "below",
        lambda here: here / "full",
        lambda here: here / "loop",
        lambda here: Path("/proc/none"),
        lambda here: Path("/dev/full"),
    ],
)
def test_what_can_be_no_new_folder(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "a").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"^--out .*(not writable|already exists)"):
        check_new("--out", make(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_a_text_goes_where_the_user_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("before")
    (tmp_path / "link").symlink_to("text")
    save(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "text").read_text() == "after"
    long = tmp_path / ("ä" * 127)
    check_file(long, "--out")
    save(long, "long")
    assert long.read_text() == "long"
    check_file(Path("/dev/null"), "--out")
    save(Path("/dev/null"), "gone")
    with pytest.raises(InputError, match="/dev/full: cannot be written: No space left on device"):
        save(Path("/dev/full"), "more")
    for path in (tmp_path, tmp_path / "text" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match=r"^--junit .*(not writable|a folder)"):
            check_file(path, "--junit")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["link", "text", long.name])
