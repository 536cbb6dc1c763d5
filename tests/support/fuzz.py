"""Fuzzes what reads boards and records, guided by coverage: InputError or a value, anything else is a crash.

    python -m tests.support.fuzz board 10000
    python -m tests.support.fuzz record 10000 -seed=7        # and any other option of libFuzzer
    python -m tests.support.fuzz board 1 crash-5f0c...       # one input again

Starts from shipped boards and stored records. The input that crashes is left in the current folder.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# atheris has no types worth the name, and is not for every platform.

from __future__ import annotations

import atexit
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from hashlib import sha512
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["harness.records.record", "harness.report", "harness.trials", "yaml"]):
    from harness.records import record
    from harness.report import details, latex
    from harness.report.board import Board
    from harness.trials import spec

from harness import registry
from harness.records.schema import DESCRIBED
from harness.types import InputError
from tests.support.paths import ROOT
from tests.support.records import packed

LONGEST = 16 << 10  # bytes of an input, more than any seed has
BOARDS = [registry.board(name) for name in registry.boards()]
RECORDS = sorted(ROOT.glob("results/demo/*.json"))
DENSE = next(found for found in map(record.read, RECORDS) if found.trial.method == "none")
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2,
    0.5,
    1e308,
    10**400,
    "",
    "x",
    "\x1b[2J",
    "\ud800",
    [],
    {},
    [[]],
    {"": 0},
)


def board(content: bytes, folder: Path) -> None:
    """These bytes as a board file, up to its trials."""
    file = folder / "board.yaml"
    file.write_bytes(content)
    with suppress(InputError):
        for trial in spec.read(str(file)).trials():
            assert trial.id


def stored(content: bytes, folder: Path) -> None:
    """These bytes as a record, and as changes to one: what is taken can be written and read again."""
    with suppress(InputError):
        record.parse(content, RECORDS[0])
    with suppress(InputError):
        found = record.parse(_changed(content), RECORDS[0])
        written = record.write(folder, found)
        again = record.read(folder / f"{found.id}.json")
        assert again == written and replace(again, hashes=found.hashes) == found


def reported(content: bytes, folder: Path) -> None:
    """A changed record that is taken as one, on a page beside the dense one."""
    with suppress(InputError):
        records = [DENSE, record.parse(_changed(content), RECORDS[0])]
        shown = Board.of("demo", records)
        assert details.data(shown, records) and packed(records) and latex.document(shown)


def _changed(content: bytes) -> bytes:
    """The first record with what these bytes say changed; its hash is made right, which no chance input has."""
    choose = atheris.FuzzedDataProvider(content)
    made = json.loads(RECORDS[0].read_bytes())
    for _ in range(choose.ConsumeIntInRange(1, 4)):
        _change(made, choose)
    with suppress(Exception):  # of content that has none
        made["hashes"]["record"] = record.content_hash(made)
    return json.dumps(made).encode()


def _change(made: Any, choose: Any) -> None:
    """Take away or replace something of a JSON value, at any depth, or add to it."""
    while isinstance(made, dict | list) and made:
        key = choose.PickValueInList(list(made) if isinstance(made, dict) else list(range(len(made))))
        if isinstance(made[key], dict | list) and choose.ConsumeBool():
            made = made[key]
            continue
        if choose.ConsumeBool():
            made[key] = deepcopy(choose.PickValueInList(list(VALUES)))
        elif choose.ConsumeBool() and isinstance(made, dict):
            made[choose.ConsumeUnicode(20)] = made[key]
        else:
            del made[key]
        return


TARGETS: dict[str, tuple[Callable[[bytes, Path], None], list[Path]]] = {
    "board": (board, BOARDS),
    "record": (stored, RECORDS),
    "report": (reported, RECORDS),
}


def main(which: str, runs: str, *more: str) -> None:
    target, seeds = TARGETS[which]
    with tempfile.TemporaryDirectory() as name:
        corpus, scratch, words = (Path(name) / part for part in ("corpus", "scratch", "words"))
        corpus.mkdir()
        scratch.mkdir()
        for seed in seeds:
            shutil.copy(seed, corpus)
            (corpus / f"{seed.stem}.short").write_bytes(
                sha512(seed.read_bytes()).digest()
            )  # bytes that say: change this
        words.write_text("".join(f'"{word}"\n' for word in [*spec.Board.model_fields, *DESCRIBED]))
        again = any(not option.startswith("-") for option in more)
        corpora = [] if again else [str(corpus)]
        options = [f"-atheris_runs={runs}", f"-max_len={LONGEST}", "-timeout=20", f"-dict={words}", *more, *corpora]
        # libFuzzer's alarm outlives its handler, which Python takes away as it ends: the process would be killed.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
        atheris.Setup([sys.argv[0], *options], lambda content: target(content, scratch))
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
