"""What a trial that cuts visual tokens cannot ask for; refused before any work.

check(trial)    # raises InputError: "scopes: vision: visual tokens are cut in the language model; ..."
"""

from __future__ import annotations

from harness.types import InputError, Trial, kinds


def check(trial: Trial) -> None:
    """Raise InputError for settings of a trial that visual tokens cannot have. Other kinds pass."""
    if "tokens" not in kinds(trial.units) or trial.method == "none":
        return
    if trial.units != "tokens" and not trial.shares:
        raise InputError(
            f"units: {trial.units}: tokens have no damage to compare with other kinds; say with `shares` how much "
            "of the saving each kind gives"
        )
    if trial.scope == "vision":
        raise InputError("scopes: vision: visual tokens are cut in the language model; use language or all")
    if trial.currency != "flops":
        raise InputError(f"currency: {trial.currency}: a budget of visual tokens is of FLOPs; use currency: flops")
    if trial.tuning.rounds > 1:
        raise InputError("tuning.rounds: visual tokens are cut once; set rounds to 1")
    if trial.sequential:
        raise InputError("sequential: visual tokens have no blocks to rank one after the other; remove this key")
    if trial.control != "none":
        raise InputError(f"control: {trial.control}: visual tokens have no widths to draw units for; remove this key")
