"""What a trial that cuts visual tokens cannot ask for; refused before any work.

check(trial)    # raises InputError: "scopes: vision: visual tokens are cut in the language model; ..."
"""

from __future__ import annotations

from dataclasses import replace

from harness import registry
from harness.types import Chooser, InputError, Trial, kinds


def check_tokens(trial: Trial) -> None:
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


def check_chooser(chooser: Chooser, method: registry.Method, units: str) -> Chooser:
    """The chooser with checked options; raises InputError if it cannot choose visual tokens for this method."""
    where, asked = f"methods: {method.name}: tokens: ", kinds(units)
    if "tokens" not in asked:
        raise InputError(f"{where}units: {units} cuts no visual tokens; add tokens to units, or remove this key")
    if asked == ("tokens",) or "tokens" in kinds(method.units):
        raise InputError(f"{where}is for a method that cuts other kinds; name {chooser.method} as the method")
    if chooser.method.endswith(".py"):
        raise InputError(f"{where}{chooser.method}: a file cannot choose for another method; name a registered one")
    other = registry.method(chooser.method)
    if "tokens" not in kinds(other.units):
        raise InputError(f"{where}{other.name} ranks {', '.join(kinds(other.units))}; name a method of visual tokens")
    return replace(chooser, options=other.check(chooser.options, where))
