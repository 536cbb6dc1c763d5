"""Collections of stored records: read from a folder, a file or a git revision, merged, and verified.

    infoprune results verify --results results
    python -c "from harness.records.store import collect; print(len(collect('results')))"

results/README.md documents the layout, the fields and the versions.
"""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import put_all
from harness.records import record
from harness.records.record import SAMPLES, Record
from harness.text import plain, reason
from harness.types import InputError

if TYPE_CHECKING:
    import pyarrow

ROUNDING = 1e-9  # tolerance for a mean that is recomputed from samples


@dataclass(frozen=True)
class Stored:
    """A record, the bytes of its file, and a reader of its samples' bytes, if any."""

    name: str
    content: bytes
    record: Record
    samples: Callable[[], bytes] | None

    def answers(self) -> pyarrow.Table:
        """The samples of the record, with the errors of `samples`."""
        return _table(f"{self.name.removesuffix('.json')}.parquet", self.samples, self.record, SAMPLES)


def samples(path: Path, record: Record, columns: Sequence[str] = SAMPLES) -> pyarrow.Table:
    """These columns of a record's samples in this file: a row per question, one chunk, answers as a dictionary.

    Raises InputError, which names the file, if the samples are missing, unusable, or not those of the record.
    """
    return _table(str(path), path.read_bytes if path.is_file() else None, record, columns)


def _table(name: str, read: Callable[[], bytes] | None, record: Record, columns: Sequence[str]) -> pyarrow.Table:
    from pyarrow import ArrowException, BufferReader, parquet, types

    if read is None:
        raise InputError(f"{name}: samples missing: record {record.id} needs this file")
    content = _bytes(name, read)
    if hashlib.sha256(content).hexdigest() != record.hashes.get("samples"):
        raise InputError(f"{name}: not the samples that the record was written with (their hash differs)")
    try:
        file = parquet.ParquetFile(BufferReader(content), read_dictionary=["answer"])
        # Threads and chunks would only slow down such a small table.
        table = file.read(list(columns), use_threads=False).combine_chunks()
    except ArrowException as error:
        raise InputError(f"{name}: not a parquet file: {error}") from error
    schema = table.schema
    for column in columns:
        if (place := schema.get_field_index(column)) < 0:
            raise InputError(f"{name}: column {column} must exist exactly once")
        kind, expected = schema.types[place], "numbers" if column == "score" else "text"
        kind = kind.value_type if column == "answer" and types.is_dictionary(kind) else kind
        if not (types.is_floating(kind) if column == "score" else types.is_string(kind)):
            raise InputError(f"{name}: column {column} has type {kind}; it must hold {expected}")
    if not table.num_rows:
        raise InputError(f"{name}: the file has no rows; it must hold one per question")
    return table


# --- sources of records ------------------------------------------------------------------------------


def board_folder(board: str | None, results: Path) -> Path:
    """The folder at this path, or else the board of this name in `results`; None: `results`.

    Raises InputError for a path that leads nowhere, and for a name that is no board of `results`.
    """
    if board is None:
        return results
    if Path(board).is_dir():
        return Path(board)
    if "/" in board:
        raise InputError(f"{board}: no such folder; give a board's folder, or the name of a board in {results}")
    boards = sorted(path.name for path in results.glob("*") if path.is_dir())
    if not boards:
        raise _without_boards(results)
    if board not in boards:
        raise InputError.unknown("board", board, boards, f"{results}: ")
    return results / board


def collect(source: str | Path, results: Path | None = None) -> list[Stored]:
    """The records of a results folder, a board's folder, a record file, or a git revision of `results`.

    A revision may name another folder in git's way, `v1.0:results/demo`. With `results`, the source may also be the
    name of a board there. Raises InputError if the source is none of these, has no record, or has a file that is no
    record, because a verdict needs all records.
    """
    names = sorted(path.name for path in results.glob("*") if path.is_dir()) if results else []
    if results and source in names and not Path(source).exists():
        source = results / source
    files = _files(str(source), f", nor a board of {results} ({', '.join(names)})" if names else "")
    return [_stored(name, files) for name in _records(files, source)]


def by_trial(stored: Iterable[Stored]) -> dict[str, Stored]:
    """The records by trial id. Raises InputError if two records of one trial differ."""
    trials: dict[str, Stored] = {}
    for this in stored:
        other = trials.setdefault(this.record.trial.id, this)
        if other is not this and _unsealed(other.record) != _unsealed(this.record):
            raise InputError(f"{this.name}: contradicts {other.name}: the same trial, another result")
    return trials


def _unsealed(record: Record) -> Record:
    """The record without the hash of its file, which depends on the schema of the file."""
    return replace(record, hashes={key: value for key, value in record.hashes.items() if key != "record"})


def _stored(name: str, files: dict[str, Callable[[], bytes]]) -> Stored:
    content = _bytes(name, files[name])
    samples = files.get(f"{name.removesuffix('.json')}.parquet")
    return Stored(name, content, record.parse(content, Path(name)), samples)


def _bytes(name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except OSError as error:
        raise InputError(f"{name}: cannot read the file: {reason(error)}") from error


def _records(files: dict[str, Callable[[], bytes]], source: str | Path) -> list[str]:
    names = sorted(name for name in files if name.endswith(".json"))
    if not names:
        raise InputError(f"{source}: no records there; they must lie at <board>/<trial id>.json")
    return names


def _files(source: str, neither: str = "") -> dict[str, Callable[[], bytes]]:
    """A reader for every possible record or samples file of a source, by file name.

    `neither`: what else the source is not, for the error.
    """
    path = Path(source)
    if path.is_dir():
        paths = [file for pattern in ("*", "*/*") for file in path.glob(pattern)]
    elif path.exists():
        paths = [path, path.with_suffix(".parquet")]
    else:
        return _revision(source, neither)
    return {str(file): file.read_bytes for file in paths if file.suffix in (".json", ".parquet") and file.is_file()}


def _revision(source: str, neither: str) -> dict[str, Callable[[], bytes]]:
    """A reader for every file in a git revision: of `results`, or of the folder after a colon."""
    revision, _, folder = source.partition(":")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not revision or commit is None:
        raise InputError(f"{source}: neither a results folder, a record file nor a git revision{neither}")
    archive = _git("archive", "--format=tar", commit.decode().strip(), "--", folder or "results")
    if archive is None:
        raise InputError(
            f"{source}: this revision has no folder {folder or 'results'}; name another as REVISION:FOLDER"
        )
    readers: dict[str, Callable[[], bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and member.name.endswith((".json", ".parquet")):
                readers[f"{revision}:{member.name}"] = io.BytesIO(file.read()).getvalue
    return readers


def _git(*words: str) -> bytes | None:
    """The output of git in the current folder; None if git fails or is not installed."""
    try:
        completed = subprocess.run(["git", *words], capture_output=True)
    except OSError:
        return None
    return completed.stdout if completed.returncode == 0 else None


# --- content of a results folder ---------------------------------------------------------------------------


def board_folders(results: Path) -> list[Path]:
    """The folders of all boards in a results folder. Raises InputError if it has none."""
    folders = sorted({path.parent for path in results.glob("*/*.json")})
    if not folders:
        raise _without_boards(results)
    return folders


def _without_boards(results: Path) -> InputError:
    return InputError(f"{results}: no board there; records must lie at {results}/<board>/<trial id>.json")


def boards(results: Path) -> list[dict[str, Any]]:
    """A row per board: name, trials, ok, failed, unreadable files, models, methods.

    Raises InputError if the folder has no board.
    """
    rows = []
    for folder in board_folders(results):
        records, problems = record.load(folder)
        failed = sum(read.status == "failed" for read in records)
        rows.append(
            {
                "board": folder.name,
                "trials": len(records),
                "ok": len(records) - failed,
                "failed": failed,
                "unreadable": len(problems),
                "models": sorted({read.trial.model for read in records}),
                "methods": sorted({read.trial.method for read in records}),
            }
        )
    return rows


def find(results: Path, prefix: str) -> Stored:
    """The record whose id begins with `prefix`. Raises InputError unless exactly one record matches."""
    files = _files(str(results))
    matches = [name for name in _records(files, results) if Path(name).stem.startswith(prefix)]
    if not prefix or len(matches) != 1:
        fault = f"{len(matches)} records begin with {prefix!r}" if matches else f"no record begins with {prefix!r}"
        raise InputError(f"{results}: {fault}{': ' if matches else ''}{', '.join(matches[:5])}")
    return _stored(matches[0], files)


# --- verification -----------------------------------------------------------------------------------------


def verify(source: str | Path) -> tuple[int, list[str]]:
    """The number of checked records, and a line for each faulty file.

    Faults: an unreadable or changed file, a newer schema, a wrong id or folder, a duplicate trial, missing or changed
    samples, accuracies that they do not give, samples without a record. Raises InputError if the source has no record.
    """
    files = _files(str(source))
    names, problems = _records(files, source), []
    first_names: dict[str, str] = {}
    for name in names:
        try:
            stored = _stored(name, files)
        except InputError as error:
            problems.append(str(error))
            continue
        problems += _faults(stored)
        first = first_names.setdefault(stored.record.trial.id, name)
        if first != name:
            problems.append(plain(f"{name}: the same trial as {first}; keep only one of them"))
    orphans = (
        name for name in files if name.endswith(".parquet") and f"{name.removesuffix('.parquet')}.json" not in files
    )
    return len(names), problems + [plain(f"{name}: samples without a record") for name in sorted(orphans)]


def _faults(stored: Stored) -> Iterator[str]:
    read, path = stored.record, Path(stored.name.rpartition(":")[2])
    trial = read.trial
    if trial.id != read.id:
        yield plain(f"{stored.name}: id: does not belong to this trial, whose id is {trial.id}")
    if (folder := path.absolute().parent.name) != trial.board:
        yield plain(f"{stored.name}: trial.board: {trial.board}, but the file lies in the folder of board {folder}")
    measured = read.metrics.get("accuracy")
    if measured is None and "samples" not in read.hashes:
        if stored.samples is not None:
            yield plain(f"{stored.name}: hashes.samples: missing, but a samples file lies beside the record")
        return
    try:
        answers = stored.answers()
    except InputError as error:
        yield str(error)
        return
    if measured is None:
        return
    means = _means(answers)
    figures = [(f"tasks.{task}", each["accuracy"], means.get(task)) for task, each in measured.get("tasks", {}).items()]
    for key, accuracy, mean in [*figures, ("mean", measured["mean"], sum(means.values()) / len(means))]:
        if mean is None or not abs(mean - accuracy) <= ROUNDING:  # NaN is near nothing
            yield plain(f"{stored.name}: metrics.accuracy.{key}: {accuracy}, but the samples give {mean}")


def _means(answers: pyarrow.Table) -> dict[str, float]:
    """The mean score of each task; NaN if one of its scores is missing or NaN."""
    answers = answers.set_column(answers.schema.get_field_index("score"), "score", answers["score"].fill_null(math.nan))
    grouped = answers.group_by("task").aggregate([("score", "mean")])
    return dict(zip(grouped["task"].to_pylist(), grouped["score_mean"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Merged:
    """The number of copied records, and of source records that already existed."""

    copied: int
    duplicates: int


def merge(sources: Sequence[Path], out: Path) -> Merged:
    """Copy the records of several results folders unchanged into `out`, which may already hold records.

    Raises InputError before any copy if two records of one trial differ or `verify` would report a file, and later if
    `out` is not writable.
    """
    existing = by_trial(collect(out)) if out.is_dir() and any(out.glob("*/*.json")) else {}
    stored = [source_record for source in sources for source_record in collect(source)]
    for source_record in stored:
        for fault in _faults(source_record):
            raise InputError(fault)
    merged = by_trial([*existing.values(), *stored])
    new = {trial: source_record for trial, source_record in merged.items() if trial not in existing}
    try:
        for source_record in new.values():
            target = out / Path(source_record.name).absolute().parent.name / Path(source_record.name).name
            copies = {target: source_record.content}
            if source_record.samples is not None:
                answers = _bytes(str(Path(source_record.name).with_suffix(".parquet")), source_record.samples)
                copies = {target.with_suffix(".parquet"): answers, **copies}
            target.parent.mkdir(parents=True, exist_ok=True)
            put_all({path: partial(Path.write_bytes, data=content) for path, content in copies.items()})
    except OSError as error:
        raise InputError(f"{out}: cannot write records there: {reason(error)}") from error
    return Merged(len(new), len(stored) - len(new))
