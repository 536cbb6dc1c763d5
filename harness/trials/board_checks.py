"""What a well-formed board cannot ask for all the same: names that do not exist, things that do not go together.

check(board)    # raises InputError: "methods: michel ranks heads only, so it cannot meet a budget over units: both"
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness import families, registry, tasks
from harness.trials.tokens import check_chooser, check_tokens
from harness.types import ANSWERED, DENSE, InputError, Tuning, check_shares, kinds

if TYPE_CHECKING:
    from harness.trials.spec import Board, Contestant


def check(board: Board) -> None:
    """Raise InputError for the first fault, beginning with the board's key."""
    _check_files(board)
    _check_metrics(board)
    _check_repetitions(board)
    _check_model(board)
    _check_contestants(board)
    for trial in board.trials():
        check_tokens(trial)


def _check_files(board: Board) -> None:
    """Every method exists, and no two files of methods would have one name."""
    files: dict[str, str] = {}
    for entry in board.methods:
        try:
            registry.module_path(entry.method)
        except InputError as error:
            raise InputError(f"methods: {error}") from error
        file = registry.method_file(entry.method)
        if file is not None and files.setdefault(file.stem, entry.method) != entry.method:
            raise InputError(
                f"methods: {files[file.stem]} and {entry.method} would both be called {file.stem!r}; rename one"
            )


def _check_metrics(board: Board) -> None:
    for metric in board.metrics:
        if metric not in registry.metrics():
            raise InputError.unknown("metric", metric, registry.metrics(), "metrics: ")
    if board.random_weights and (unanswerable := [metric for metric in board.metrics if metric in ANSWERED]):
        raise InputError(
            f"metrics: {unanswerable[0]}: random weights give no useful answers; with random_weights use "
            "metrics: [flops, latency]"
        )


def _check_repetitions(board: Board) -> None:
    listed = [(key, getattr(board, key)) for key in ("budgets", "scopes", "tasks", "metrics")]
    own = [(f"methods: {key}", getattr(entry, key) or ()) for entry in board.methods for key in ("budgets", "scopes")]
    recoveries = itertools.chain(board.tuning, *(entry.tuning or () for entry in board.methods))
    parts = [("tuning.budgets", recovery.budgets or ()) for recovery in recoveries]
    for key, values in (*listed, *own, *parts):
        if duplicates := [value for value in values if values.count(value) > 1]:
            raise InputError(f"{key}: {duplicates[0]} is named twice; name it once")


def _check_model(board: Board) -> None:
    if board.random_weights and board.device_map:
        raise InputError("device_map: random weights use one device; remove this key")
    source = Path(registry.model(board.model))
    if source.is_dir():
        families.check_folder(source, random_weights=board.random_weights)
    tasks.require(board.questions)


def _check_contestants(board: Board) -> None:
    """Every contestant can do what it is asked, and none is there twice."""
    contestants = [contestant for entry in board.methods for contestant in _contestants(board, entry)]
    for contestant, times in Counter(contestants).items():
        if times > 1:
            method, scope, budget, _ = contestant
            raise InputError(
                f"methods: {method} is named twice with the same options and recovery at budget {budget:g} of "
                f"{scope}; name it once"
            )


def _contestants(board: Board, entry: Contestant) -> Iterator[tuple[str, str, float, str]]:
    """Method, scope, budget, and what else tells its trials from others. Raises InputError for what it cannot do."""
    calibration = board.calibration_of(entry)
    tasks.require(calibration.questions, calibration.samples)
    method = registry.method(entry.method)
    units = entry.units or board.units
    chooser = entry.tokens and check_chooser(entry.tokens, method, units)
    asked = set(kinds(units)) - ({"tokens"} if chooser else set())
    if not asked <= set(kinds(method.units)) and entry.method != DENSE:
        ranked = ", ".join(kinds(method.units))
        raise InputError(
            f"methods: {method.name} ranks {ranked} only, so it cannot meet a budget over "
            f"units: {units}; set units: {method.units}, or leave the method out"
        )
    options = method.check(entry.options, "methods: ")
    if entry.shares:
        check_shares(entry.shares, units, f"methods: {method.name}: ")
    recoveries, budgets = entry.tuning or board.tuning, entry.budgets or board.budgets
    for budget in budgets:
        if not any(recovery.follows(budget) for recovery in recoveries):
            raise InputError(
                f"tuning.budgets: no recovery is for budget {budget:g} of {method.name}; add one or leave it out"
            )
    for recovery in recoveries:
        tuning = recovery.how
        if tuning.trains:
            tasks.require(calibration.questions, tuning.samples, "tuning.samples")
            if method.steps(options) and tuning.batch != Tuning.batch:
                raise InputError(
                    f"methods: tuning.batch: {method.name} trains by itself, which is taken off the tuning in steps of "
                    f"{Tuning.batch} questions; leave tuning.batch out"
                )
        how = (calibration, tuning, entry.control, entry.sequential, units, sorted(entry.shares.items()), chooser)
        what = repr((sorted(options.items()), *how))
        for scope, budget in itertools.product(entry.scopes or board.scopes, filter(recovery.follows, budgets)):
            yield entry.method, scope, budget, what
