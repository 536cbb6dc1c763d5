"""Stored records as evidence: where they come from (a folder, a file, a git revision), merged, and checked.

    infoprune results verify --results results
    python -c "from harness.results import collect; print(len(collect('results')))"

The layout, the fields and the versions are in results/README.md.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import record
from harness.files import put
from harness.record import SAMPLES
from harness.text import plain
from harness.types import InputError

if TYPE_CHECKING:
    import pyarrow

ROUNDING = 1e-9  # of a mean that is made again from its samples


@dataclass(frozen=True)
class Stored:
    """A record, the bytes it stands in, and how to read the bytes of its samples, if there are any."""

    name: str
    content: bytes
    record: dict[str, Any]
    samples: Callable[[], bytes] | None

    @property
    def identity(self) -> str:
        return record.identity(self.record)

    def answers(self) -> pyarrow.Table:
        """The samples; see `samples`."""
        return _table(f"{self.name.removesuffix('.json')}.parquet", self.samples, self.record, SAMPLES)


def samples(path: Path, record: Mapping[str, Any], columns: Sequence[str] = SAMPLES) -> pyarrow.Table:
    """These columns of the samples of a record, in this file: a row per question, one chunk, answers as a dictionary.

    Raises InputError naming the file if they are missing, are others than the record was written with, or no samples.
    """
    return _table(str(path), path.read_bytes if path.is_file() else None, record, columns)


def _table(
    name: str, read: Callable[[], bytes] | None, record: Mapping[str, Any], columns: Sequence[str]
) -> pyarrow.Table:
    from pyarrow import ArrowException, BufferReader, parquet, types

    if read is None:
        raise InputError(plain(f"{name}: samples missing: record {record['id']} needs them"))
    content = _bytes(name, read)
    if hashlib.sha256(content).hexdigest() != record["hashes"].get("samples"):
        raise InputError(plain(f"{name}: not the samples that the record was written with (their hash differs)"))
    try:
        file = parquet.ParquetFile(BufferReader(content), read_dictionary=["answer"])
        # Threads and chunks would take longer than so small a table does.
        found = file.read(list(columns), use_threads=False).combine_chunks()
    except ArrowException as error:
        raise InputError(plain(f"{name}: not a parquet file: {error}")) from error
    for column in columns:
        if (place := found.schema.get_field_index(column)) < 0:
            raise InputError(plain(f"{name}: column {column} is missing, or there twice"))
        kind, wanted = found.schema.field(place).type, "numbers" if column == "score" else "text"
        kind = kind.value_type if column == "answer" and types.is_dictionary(kind) else kind
        if not (types.is_floating(kind) if column == "score" else types.is_string(kind)):
            raise InputError(plain(f"{name}: column {column} is of {kind}, {wanted} are needed"))
    if not found.num_rows:
        raise InputError(plain(f"{name}: no answers"))
    return found


# --- where records come from ------------------------------------------------------------------------------


def collect(source: str | Path) -> list[Stored]:
    """The records of a results folder, a board's folder, a record file, or a git revision of `results`.

    A revision may name another folder as git does, `v1.0:results/demo`. Raises InputError, one line, if it is none
    of these, if there is no record, or if a file among them is not one: a verdict is not made from a part.
    """
    files = _files(str(source))
    return [_stored(name, files) for name in _records(files, source)]


def by_trial(stored: Iterable[Stored]) -> dict[str, Stored]:
    """The records by their trial's identity; raises InputError for two that differ on one trial."""
    found: dict[str, Stored] = {}
    for one in stored:
        other = found.setdefault(one.identity, one)
        if other.record != one.record:
            raise InputError(plain(f"{one.name}: contradicts {other.name}: the same trial, another result"))
    return found


def _stored(name: str, files: dict[str, Callable[[], bytes]]) -> Stored:
    content = _bytes(name, files[name])
    samples = files.get(f"{name.removesuffix('.json')}.parquet")
    return Stored(name, content, record.parse(content, Path(name)), samples)


def _bytes(name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except OSError as error:
        raise InputError(plain(f"{name}: cannot be read: {error.strerror or error}")) from error


def _records(files: dict[str, Callable[[], bytes]], source: str | Path) -> list[str]:
    names = sorted(name for name in files if name.endswith(".json"))
    if not names:
        raise InputError(plain(f"{source}: no records there; they are expected as <board>/<trial id>.json"))
    return names


def _files(source: str) -> dict[str, Callable[[], bytes]]:
    """Every file of a source that could be a record or samples, by name, with what reads it."""
    path = Path(source)
    if path.is_dir():
        found = [file for pattern in ("*", "*/*") for file in path.glob(pattern)]
    elif path.exists():
        found = [path, path.with_suffix(".parquet")]
    else:
        return _revision(source)
    return {str(file): file.read_bytes for file in found if file.suffix in (".json", ".parquet") and file.is_file()}


def _revision(source: str) -> dict[str, Callable[[], bytes]]:
    """The files of `results`, or of the folder named after a colon, as they are in a git revision."""
    revision, _, folder = source.partition(":")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not revision or commit is None:
        raise InputError(plain(f"{source}: neither a results folder, a record file nor a git revision"))
    archive = _git("archive", "--format=tar", commit.decode().strip(), "--", folder or "results")
    if archive is None:
        raise InputError(plain(f"{source}: this revision has no folder {folder or 'results'} here"))
    found: dict[str, Callable[[], bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and member.name.endswith((".json", ".parquet")):
                found[f"{revision}:{member.name}"] = io.BytesIO(file.read()).getvalue
    return found


def _git(*words: str) -> bytes | None:
    """What git prints, in the current folder; None where it refuses or is not there."""
    try:
        made = subprocess.run(["git", *words], capture_output=True)
    except FileNotFoundError:
        return None
    return made.stdout if made.returncode == 0 else None


# --- what is there ----------------------------------------------------------------------------------------


def board_folders(results: Path) -> list[Path]:
    """The folders of all boards in a results folder; raises InputError if there is none."""
    folders = sorted({path.parent for path in results.glob("*/*.json")})
    if not folders:
        raise InputError(plain(f"{results}: no board there: records are expected as {results}/<board>/<trial id>.json"))
    return folders


def boards(results: Path) -> list[dict[str, Any]]:
    """A row per board: name, trials, ok, failed, unreadable files, models, methods. Raises InputError without any."""
    rows = []
    for folder in board_folders(results):
        found, problems = record.load(folder)
        failed = sum(one["status"] == "failed" for one in found)
        rows.append(
            {
                "board": folder.name,
                "trials": len(found),
                "ok": len(found) - failed,
                "failed": failed,
                "unreadable": len(problems),
                "models": sorted({one["trial"]["model"] for one in found}),
                "methods": sorted({one["trial"]["method"] for one in found}),
            }
        )
    return rows


def find(results: Path, prefix: str) -> Stored:
    """The one record whose id begins so; raises InputError if there is none, or more than one."""
    files = _files(str(results))
    matches = [name for name in _records(files, results) if Path(name).stem.startswith(prefix)]
    if not prefix or len(matches) != 1:
        said = f"{len(matches)} records begin with {prefix!r}" if matches else f"no record begins with {prefix!r}"
        raise InputError(plain(f"{results}: {said}{': ' if matches else ''}{', '.join(matches[:5])}"))
    return _stored(matches[0], files)


# --- sound or not -----------------------------------------------------------------------------------------


def verify(source: str | Path) -> tuple[int, list[str]]:
    """How many records were looked at, and a line for each file that cannot be relied on.

    Unreadable, changed after writing, of a newer schema, not what its id or folder says, there twice, without its
    samples or with others; samples without a record. Raises InputError if there is no record at all.
    """
    files = _files(str(source))
    names, problems = _records(files, source), []
    seen: dict[str, str] = {}
    for name in names:
        try:
            stored = _stored(name, files)
        except InputError as error:
            problems.append(str(error))
            continue
        problems += _faults(stored)
        first = seen.setdefault(stored.identity, name)
        if first != name:
            problems.append(plain(f"{name}: the same trial as {first}"))
    alone = (
        name for name in files if name.endswith(".parquet") and f"{name.removesuffix('.parquet')}.json" not in files
    )
    return len(names), problems + [plain(f"{name}: samples without a record") for name in sorted(alone)]


def _faults(stored: Stored) -> Iterator[str]:
    found, path = stored.record, Path(stored.name.rpartition(":")[2])
    if stored.identity != found["id"]:
        yield plain(f"{stored.name}: id: does not belong to this trial, whose id is {stored.identity}")
    if (folder := path.absolute().parent.name) != found["trial"]["board"]:
        yield plain(f"{stored.name}: trial.board: {found['trial']['board']}, in the folder of board {folder}")
    measured = (found.get("metrics") or {}).get("accuracy")
    if measured is None and "samples" not in found["hashes"]:
        if stored.samples is not None:
            yield plain(f"{stored.name}: samples beside it that it knows nothing of")
        return
    try:
        answers = stored.answers()
    except InputError as error:
        yield str(error)
        return
    means = _means(answers)
    for task, said in (measured or {}).get("tasks", {}).items():
        made = means.get(task)
        if made is None or abs(made - said["accuracy"]) > ROUNDING:
            yield plain(f"{stored.name}: metrics.accuracy.tasks.{task}: {said['accuracy']}, by its samples {made}")


def _means(answers: pyarrow.Table) -> dict[str, float]:
    made = answers.group_by("task").aggregate([("score", "mean")])
    return dict(zip(made["task"].to_pylist(), made["score_mean"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Merged:
    """How many records were copied, and how many of the sources' were there already."""

    copied: int
    duplicates: int


def merge(sources: Sequence[Path], out: Path) -> Merged:
    """Bring several results folders together in one, as they are byte for byte; what `out` holds already counts too.

    Raises InputError, with nothing written, for two records that differ on one trial, for a file that `verify` would
    name, and if `out` cannot be written.
    """
    there = by_trial(collect(out)) if out.is_dir() and any(out.glob("*/*.json")) else {}
    stored = [one for source in sources for one in collect(source)]
    for one in stored:
        for fault in _faults(one):
            raise InputError(fault)
    found = by_trial([*there.values(), *stored])
    new = {identity: one for identity, one in found.items() if identity not in there}
    try:
        for one in new.values():
            target = out / Path(one.name).absolute().parent.name / Path(one.name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            if one.samples is not None:
                _copy(one.samples(), target.with_suffix(".parquet"))
            _copy(one.content, target)
    except OSError as error:
        raise InputError(plain(f"{out}: cannot write records there: {error.strerror or error}")) from error
    return Merged(len(new), len(stored) - len(new))


def _copy(content: bytes, target: Path) -> None:
    put(target, lambda temporary: temporary.write_bytes(content))
