"""Weights of fewer bits: near the whole ones, smaller where bits are stored, and no saving of FLOPs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import harness
from harness.checkpoints import export
from harness.families import encode
from harness.machine.phases import PhaseTimer
from harness.metrics import flops, memory
from harness.pruning.quantised import quantise
from harness.trials import preflight, staleness
from harness.trials.context import Context
from harness.trials.pruner import Pruner
from harness.types import VLM, CalibrationSpec, InputError, Questions, ReferenceInput, Trial, Tuning, regime
from tests.support.boards import read_board
from tests.support.outputs import logits
from tests.support.pictures import noise_picture
from tests.support.trials import plain_trial

CALIBRATION = CalibrationSpec(3, ("mini_vqav2",))


def trial(model: Path, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        "model": str(model), "method": "magnitude", "scope": "all", "budget": 0.6, "calibration": CALIBRATION,
        "reference_input": ReferenceInput((64, 64)), "questions": Questions(("mini_vqav2",), limit=2),
        "tuning": Tuning(weights="int8"),
    }  # fmt: skip
    return plain_trial(**(settings | changes))


@pytest.mark.parametrize(("weights", "levels"), [("int8", 256), ("int4", 16)])
def test_weights_have_few_values_and_answers_stay_near(weights: str, levels: int) -> None:
    tiny = harness.load("mini-qwen2-vl")
    inputs = encode(tiny.processor, [[noise_picture(0, 64, 64)]], ["How many?"])
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    fewer = quantise(tiny, weights)
    linears = [own for own in fewer.model.modules() if isinstance(own, nn.Linear)]
    head = fewer.model.get_output_embeddings()  # type: ignore[operator]
    whole = [own for own in linears if type(own.weight) is nn.Parameter]
    assert whole == [head] and len(linears) > 10
    for linear in (own for own in linears if own is not head):
        codes: Any = linear.weight.qdata  # type: ignore[union-attr]
        assert codes.dtype == torch.int8 and codes.unique().numel() <= levels
    dense, now = logits(tiny, inputs), logits(fewer, inputs)
    error = (now - dense).norm() / dense.norm()
    assert 0 < error < {"int8": 0.05, "int4": 0.5}[weights]
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())


def test_what_is_stored_is_counted(tiny: VLM) -> None:
    """A byte a weight, a scale and a zero an output, where a weight had four bytes; all else as it was."""
    fewer = quantise(tiny, "int8")
    head = tiny.model.get_output_embeddings()  # type: ignore[operator]
    linears = [own for own in tiny.model.modules() if isinstance(own, nn.Linear) and own is not head]
    saved = sum(3 * own.weight.numel() - 5 * own.out_features for own in linears)
    assert memory.weight_bytes(tiny) - memory.weight_bytes(fewer) == saved > 0


def test_fewer_bits_save_no_flops_and_follow_the_recovery(tiny_folder: Path) -> None:
    asked = trial(tiny_folder, tuning=Tuning("refit", weights="int8"))
    assert Trial.of(json.loads(json.dumps(asked.content()))) == asked
    pruned = Pruner().prune(asked, PhaseTimer())
    whole = Pruner().prune(replace(asked, tuning=Tuning("refit")), PhaseTimer())
    context = Context(asked.reference_input)
    kept = [flops.measured_share(one.vlm, one.dense, asked, context) for one in (pruned, whole)]
    assert kept[0] == kept[1] == pytest.approx(0.6, rel=0.01) and pruned.hashes["plan"] == whole.hashes["plan"]
    for name, linear in pruned.vlm.model.named_modules():
        weight: Any = getattr(linear, "weight", None)
        if hasattr(weight, "qdata"):
            refitted: Any = whole.vlm.model.get_submodule(name).weight
            half = refitted.abs().amax(1, keepdim=True) / 127 * 0.51  # of a step of the row's scale
            assert ((weight.dequantize() - refitted).abs() <= half).all(), name


def test_any_width_fits_int4(tiny_folder: Path) -> None:
    """Where 32 does not divide the inputs of a Linear, an output has one scale."""
    pruned = Pruner().prune(trial(tiny_folder, tuning=Tuning(weights="int4")), PhaseTimer())
    weights: list[Any] = [own.weight for own in pruned.vlm.model.modules() if isinstance(own, nn.Linear)]
    scales = [(tuple(weight.scale.shape), weight.shape) for weight in weights if hasattr(weight, "qdata")]
    assert {columns % 32 == 0 for _, (_, columns) in scales} == {True, False}
    for scale, (rows, columns) in scales:
        assert scale == (rows, 1 if columns % 32 else columns // 32)


def test_the_dense_model_in_fewer_bits_is_a_trial_at_budget_1(tiny_folder: Path) -> None:
    pruned = Pruner().prune(trial(tiny_folder, budget=1.0), PhaseTimer())
    assert not pruned.plan.parts and memory.weight_bytes(pruned.vlm) < memory.weight_bytes(pruned.dense)


def test_they_are_a_regime_of_their_own_and_their_code_counts() -> None:
    for own, recovery, name in (("none", "none", "none"), ("none", "refit", "refit"), ("trained", "none", "trained")):
        assert regime(own, Tuning(recovery, weights="int8")) == f"{name}, int8"  # type: ignore[arg-type]
    assert regime("bias", Tuning("full", weights="int4")) == "tuned, int4"
    codes = {
        staleness.hashes(plain_trial(model="mini-qwen2-vl", method="magnitude", tuning=tuning))["code"]
        for tuning in (Tuning(), Tuning(weights="int8"), Tuning("refit"), Tuning("refit", weights="int8"))
    }
    assert len(codes) == 4


def test_what_cannot_be_is_one_line(
    tmp_path: Path, tiny_folder: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="tuning: weights: int8: a checkpoint here has whole weights"):
        export.prune(trial(tiny_folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"tuning.weights: .*'int9'; did you mean 'int[48]'"):
        read_board(tmp_path, tiny_folder, questions, ["random"], tuning={"weights": "int9"})
    board = read_board(tmp_path, tiny_folder, questions, ["random"], tuning={"weights": "int8"})
    preflight.check(board, board.trials())
    half = read_board(tmp_path, tiny_folder, questions, ["random"], tuning={"weights": "int8"}, dtype="float16")
    with pytest.raises(InputError, match="weights: int8: its sums overflow in dtype: float16; use bfloat16 or float32"):
        preflight.check(half, half.trials())
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="tuning: weights: int8 needs torchao; pip install 'infoprune-bench"):
        preflight.check(board, board.trials())
