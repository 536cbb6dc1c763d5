"""What a sweep is at, for people and programs that watch: a log beside the records, one JSON object a line.

    infoprune status results            # or: tail -f results/demo/sweep.log

Events: `sweep` (how many trials are to run), `begin` and `end` (a trial, with its status and seconds) and `close`.
Several sweeps on a folder write one log, a line at a time; records alone say what is done, the log only when.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import record
from harness.claims import held
from harness.text import plain
from harness.types import InputError

NAME = "sweep.log"


class Journal:
    """Appends to a folder's log."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def note(self, event: str, **more: Any) -> None:
        """Write one line. Raises InputError if that cannot be done."""
        about = {"time": time.time(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **more}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(about) + "\n")
        except OSError as error:
            raise InputError(plain(f"{self.path}: cannot write there: {error.strerror or error}")) from error


@dataclass(frozen=True)
class Status:
    """How far a board is; left and end (seconds since 1970): of the last sweep, null if none is running."""

    board: str
    done: int
    failed: int
    running: list[str]  # trial ids; on a cluster those that are submitted
    left: int | None
    end: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def status(results: Path) -> list[Status]:
    """A row for every board under a results folder, or for the one board whose folder this is.

    Raises InputError if no sweep ever ran there.
    """
    folders = sorted(
        {path.parent for name in (NAME, "*.json") for path in [*results.glob(name), *results.glob(f"*/{name}")]}
    )
    if not folders:
        raise InputError(plain(f"{results}: no board there: neither records nor a {NAME}"))
    return [_status(folder) for folder in folders]


def _status(folder: Path) -> Status:
    found, _ = record.load(folder)
    failed = sum(one["status"] == "failed" for one in found)
    events = _events(folder / NAME)
    starts = [place for place, event in enumerate(events) if event["event"] == "sweep"]
    last = events[starts[-1] :] if starts else []
    ended = [event for event in last if event["event"] == "end"]
    open_ = {event["trial"] for event in events if event["event"] == "begin"}
    running = sorted(held(folder, open_))
    left = end = None
    if running and last:
        left = max(len(running), last[0]["trials"] - len(ended))
        if ended:
            end = ended[-1]["time"] + left * (ended[-1]["time"] - last[0]["time"]) / len(ended)
    return Status(folder.resolve().name, len(found) - failed, failed, running, left, end)


def _events(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that are events; one that a killed sweep left half written is none."""
    needed = {"sweep": ("trials",), "begin": ("trial",), "end": ("trial", "time")}
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and all(
            key in event for key in ("time", "event", *needed.get(str(event.get("event")), ()))
        ):
            found.append(event)
    return found
