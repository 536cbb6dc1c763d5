"""A board stands for its trials, whose ids depend on everything that decides a result and on nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import registry
from harness.trials import spec
from harness.types import (
    CalibrationSpec,
    Chooser,
    Generation,
    InputError,
    LatencySpec,
    Loading,
    Questions,
    ReferenceInput,
    Trial,
    Tuning,
)

BOARD: dict[str, Any] = {
    "name": "small",
    "model": "mini-qwen2-vl",
    "methods": [{"method": "random", "seeds": 3}, "magnitude", {"method": "magnitude", "options": {"norm": "l1"}}],
    "budgets": [0.75, 0.5],
    "scopes": ["vision", "all"],
    "tasks": ["mini_gqa", "mini_vqav2"],
    "calibration": {"samples": 8},
    "limit": 7,
}


@pytest.fixture
def read(sets: Path, tmp_path: Path) -> Any:
    """Read a board made of BOARD with changes; None takes a key away."""

    def run(**changes: Any) -> spec.Board:
        path = tmp_path / "board.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in {**BOARD, **changes}.items() if v is not None}))
        return spec.read(str(path))

    return run


# --- expansion --------------------------------------------------------------------------------------------


def test_trials_are_every_method_seed_scope_and_budget_after_dense(read: Any) -> None:
    trials = read().trials()
    assert len(trials) == 1 + (3 + 1 + 1) * 2 * 2
    assert (trials[0].method, trials[0].budget, trials[0].scope, trials[0].units) == ("none", 1.0, "all", "both")
    rest = [(t.method, t.variant, t.seed, t.scope, t.budget) for t in trials[1:]]
    expected = [("random", "", seed) for seed in range(3)] + [("magnitude", "", 0), ("magnitude", "norm=l1", 0)]
    assert rest == [(*who, scope, keep) for who in expected for scope in ("vision", "all") for keep in (0.75, 0.5)]
    for trial in trials:
        assert (trial.board, trial.model) == ("small", "mini-qwen2-vl")
        assert trial.questions == Questions(("mini_gqa", "mini_vqav2"), "validation", 7)
        assert trial.calibration == CalibrationSpec(8, trial.questions.tasks, "calibration")


@pytest.mark.parametrize("units", [["heads", "ffn"], ["ffn", "heads"], "both", ["both"], "heads+ffn"])
def test_both_kinds_make_the_same_trials_however_they_are_written(read: Any, units: Any) -> None:
    assert [trial.id for trial in read(units=units).trials()] == [trial.id for trial in read().trials()]


def test_one_kind_is_the_same_in_a_list(read: Any) -> None:
    alone, listed = (read(units=units, methods=["random"]).trials()[-1] for units in ("ffn", ["ffn"]))
    assert alone == listed and listed.content()["units"] == "ffn"


def test_shares_are_a_setting_of_the_trial_whatever_their_order(read: Any) -> None:
    """They vary the method, enter the id, and are read from a record; without them the id is what it was."""
    entry = {"method": "random", "shares": {"heads": 0.25, "ffn": 0.75}}
    turned = {"method": "random", "shares": {"ffn": 0.75, "heads": 0.25}}
    plain, first, second = (read(methods=[item]).trials()[-1] for item in ("random", entry, turned))
    assert first.id == second.id != plain.id and "shares" not in plain.content()
    assert first.variant == "shares=heads:0.25+ffn:0.75" and first.ranking == plain.ranking
    assert first.questions == plain.questions and Trial.of(json.loads(json.dumps(first.content()))) == first


@pytest.mark.parametrize(
    ("units", "shares", "words"),
    [
        ("both", {"heads": 0.5, "layers": 0.5}, "shares: layers is not cut; units: both cuts heads, ffn"),
        ("both", {"heads": 0.5, "channels": 0.5}, "shares: unknown kind of units 'channels'"),
        ("both", {"heads": 0.5, "ffn": 0.6}, "shares: they sum to 1.1; they must sum to 1"),
        ("both", {"ffn": 1.0}, "shares: heads is cut, but has no share"),
        ("both", {"heads": -0.5, "ffn": 1.5}, "methods: random: shares: [a-z]+: [-0-9.]+ is not in"),
        ("both", {"heads": float("nan"), "ffn": 0.5}, "shares: heads: nan is not in"),
        ("ffn", {"ffn": 1.0}, "shares: units: ffn is one kind, which saves all; remove this key"),
        ("both", [0.5, 0.5], "methods.0.shares: "),
        (["ffn", "layers"], {"layers": 1.5}, "layers: 1.5 is not in"),
        (["heads", "ffn", "layers"], {"ffn": 0.5, "layers": 0.5}, "heads is cut, but has no share"),
    ],
)
def test_shares_that_are_none_are_refused(read: Any, units: str, shares: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(units=units, methods=[{"method": "random_layers" if "layers" in units else "random", "shares": shares}])


def test_a_contestant_may_cut_other_kinds_than_the_rest(read: Any) -> None:
    board = read(methods=["random", {"method": "random", "units": "ffn"}, {"method": "shortgpt", "units": ["layers"]}])
    units = {(trial.method, trial.units) for trial in board.trials()}
    assert units == {("none", "both"), ("random", "both"), ("random", "ffn"), ("shortgpt", "layers")}
    with pytest.raises(InputError, match="random is named twice"):
        read(units="ffn", methods=["random", {"method": "random", "units": "ffn"}])
    with pytest.raises(InputError, match="random ranks heads, ffn only"):
        read(methods=[{"method": "random", "units": "layers"}])


@pytest.mark.parametrize("units", [["layers"], ["heads", "layers"], ["tokens", "ffn"]])
def test_a_method_that_does_not_rank_a_kind_is_refused(read: Any, units: list[str]) -> None:
    with pytest.raises(InputError, match="random ranks heads, ffn only, so it cannot meet a budget over units: "):
        read(units=units, methods=["random"])


def test_a_contestant_may_have_scopes_and_budgets_of_its_own(read: Any) -> None:
    winner = {"method": "magnitude", "options": {"norm": "l1"}, "scopes": ["all"], "budgets": [0.25]}
    trials = read(methods=["magnitude", winner]).trials()[1:]
    assert [(t.scope, t.budget) for t in trials if t.variant] == [("all", 0.25)] and len(trials) == 2 * 2 + 1


def test_trials_of_one_ranking_stay_together(read: Any) -> None:
    """So that a worker ranks once per method, options and seed."""
    keys = [(t.method, t.variant, t.seed) for t in read().trials()]
    assert len([1 for a, b in itertools.pairwise(keys) if a != b]) + 1 == len(set(keys))


def test_dense_also_measures_the_floor(read: Any) -> None:
    dense, *rest = read().trials()
    assert dense.metrics == ("flops", "latency", "accuracy", "floors")
    assert all(trial.metrics == ("flops", "latency", "accuracy") for trial in rest)
    assert read(floors=False).trials()[0].metrics == rest[0].metrics
    blinded = read(floors=[0.5]).trials()
    assert {trial.budget for trial in blinded if "floors" in trial.metrics} == {1.0, 0.5}
    assert read(metrics=["flops"]).trials()[0].metrics == ("flops",)


def test_dense_is_there_once_whoever_names_it(read: Any) -> None:
    trials = read(methods=["none", "random"]).trials()
    assert [t.method for t in trials].count("none") == 1 and trials == read(methods=["random"]).trials()


def test_calibration_may_use_other_tasks(read: Any) -> None:
    trials = read(calibration={"samples": 4, "tasks": ["mini_textvqa"]}).trials()
    assert trials[0].calibration == CalibrationSpec(4, ("mini_textvqa",), "calibration")


def test_an_entry_may_have_a_calibration_of_its_own(read: Any) -> None:
    board = read(methods=["magnitude", {"method": "magnitude", "calibration": {"samples": 2}}])
    drawn = [trial.calibration.samples for trial in board.trials() if trial.method == "magnitude"]
    assert drawn == [8] * (len(drawn) // 2) + [2] * (len(drawn) // 2)


def test_what_latency_got_later_leaves_older_ids_alone(read: Any) -> None:
    assert read().trials()[0].latency.content() == {"batches": (1, 8), "repeats": 20}
    more = read(latency={"images": [[224, 224]], "modes": ["eager", "compile"], "batches": [32]}).trials()[0].latency
    assert more.content() == {"batches": (32,), "repeats": 20, "images": ((224, 224),), "modes": ("eager", "compile")}
    with pytest.raises(
        InputError, match=r"latency\.modes\.0: unknown value 'fast'; choose from: compile, eager, graphs"
    ):
        read(latency={"modes": ["fast"]})


def test_overrides_replace_top_level_keys(read: Any, tmp_path: Path) -> None:
    read()
    changed = spec.read(str(tmp_path / "board.yaml"), limit=3)
    assert {trial.questions.limit for trial in changed.trials()} == {3}
    with pytest.raises(InputError, match="limit"):
        spec.read(str(tmp_path / "board.yaml"), limit=0)


@pytest.mark.parametrize("name", registry.boards())
def test_shipped_boards(name: str, every_model: None) -> None:
    board = spec.read(name)
    shipped = {*registry.MODELS, *registry.BUILT, *registry.geometries()}
    assert board.name == name and (board.model in shipped or board.revision)
    trials = board.trials()
    assert len({trial.id for trial in trials}) == len(trials)


# --- ids --------------------------------------------------------------------------------------------------


def trial(**changes: Any) -> Trial:
    plain: dict[str, Any] = {
        "board": "b",
        "model": "m",
        "method": "random",
        "options": {"alpha": 0.5, "beta": 1},
        "scope": "vision",
        "units": "both",
        "budget": 0.5,
        "seed": 0,
        "questions": Questions(("t",)),
        "metrics": ("accuracy",),
        "calibration": CalibrationSpec(8, ("t",)),
        "latency": LatencySpec((1, 8), 3),
        "reference_input": ReferenceInput((96, 96), "?"),
    }
    return Trial(**{**plain, **changes})


def test_an_id_is_stable() -> None:
    """Records are found by it: if this changes, every record that was made before is orphaned."""
    assert trial().id == "9cd76fabc1a17892"
    assert trial(options={"beta": 1, "alpha": 0.5}).id == trial().id


CHANGED: dict[type, Any] = {
    Questions: Questions(("other",)),
    CalibrationSpec: CalibrationSpec(9),
    LatencySpec: LatencySpec(repeats=9),
    ReferenceInput: ReferenceInput((1, 1)),
    Tuning: Tuning("full"),
    Loading: Loading(revision="other"),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Trial)])
def test_an_id_depends_on_every_field(field: str) -> None:
    value = getattr(trial(), field)
    other: Any = Chooser("other") if field == "tokens" else "other"
    if isinstance(value, dict | tuple):
        other = {**value, "more": 1} if isinstance(value, dict) else (*value, "x")
    same = trial(**{field: CHANGED.get(type(value), other)}).id == trial().id
    assert same == (field == "method_file")  # where a file is decides nothing; what is in it, its hash says


@pytest.mark.parametrize("kind", [Questions, CalibrationSpec, LatencySpec, ReferenceInput, Loading, Tuning])
def test_an_id_depends_on_every_part_of_a_part(kind: Any) -> None:
    plain = trial()
    name = next(field.name for field in dataclasses.fields(Trial) if type(getattr(plain, field.name)) is kind)
    values = {"method": "full", "loss": "answers", "modes": ("eager", "compile"), "images": ((1, 1),)}
    values["generation"] = Generation(no_repeat_ngram_size=2)
    for field in dataclasses.fields(kind):
        value = getattr(getattr(plain, name), field.name)
        other = values.get(field.name, (*value, 7) if isinstance(value, tuple) else 7)
        full = {"method": "lora"} if kind is Tuning and field.name != "method" else {}
        first, second = (
            dataclasses.replace(getattr(plain, name), **full, **more) for more in ({}, {field.name: other})
        )
        assert trial(**{name: first}).id != trial(**{name: second}).id, field.name


def test_a_trial_is_read_from_its_content() -> None:
    for changes in (
        {},
        {"tuning": Tuning("full")},
        {"currency": "params"},
        {"align": 32},
        {"control": "random-units"},
        {"sequential": True},
    ):
        made = trial(**changes)
        assert Trial.of(json.loads(json.dumps(made.content()))) == made


def test_how_a_model_is_loaded_counts_where_it_is_not_the_usual_way(read: Any) -> None:
    plain = read().trials()[0]
    spelled = read(attention="sdpa", device_map=None, trust_remote_code=False, random_weights=False).trials()[0]
    assert spelled.id == plain.id and "loading" not in plain.content()
    other = read(revision="0123abc", attention="eager", trust_remote_code=True).trials()[0]
    assert other.loading == Loading(revision="0123abc", attention="eager", trust_remote_code=True)
    assert other.content()["loading"] == {"revision": "0123abc", "attention": "eager", "trust_remote_code": True}
    assert Trial.of(other.content()) == other


def test_options_at_their_default_are_the_plain_method(read: Any) -> None:
    plain = read(methods=["magnitude"]).trials()
    spelled = read(methods=[{"method": "magnitude", "options": {"norm": "l2"}}]).trials()
    assert [t.id for t in plain] == [t.id for t in spelled]
    studied = [read(methods=[{"method": "infoprune", "options": {"alpha": alpha}}]).trials()[-1] for alpha in (2, 2.0)]
    assert studied[0].id == studied[1].id


def test_sequential_ranking_is_another_contestant(read: Any) -> None:
    plain, other = (read(methods=[{"method": "wanda", "sequential": how}]).trials()[-1] for how in (False, True))
    assert other.id != plain.id and "sequential" not in plain.content() and other.ranking != plain.ranking
    assert (plain.variant, other.variant) == ("", "sequential")


# --- bad boards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["magnitud"]}, "methods: .*'magnitud'; did you mean 'magnitude'"),
        ({"methods": ["random", {"method": "tailor"}]}, "methods: .*'tailor'; did you mean 'taylor'"),
        ({"methods": [{"method": "magnitude", "options": {"nrm": "l1"}}]}, "methods: .*'nrm'; did you mean 'norm'"),
        ({"methods": [{"method": "magnitude", "options": {"norm": "l3"}}]}, "option 'norm' of method 'magnitude'"),
        ({"methods": [{"method": "infoprune", "options": {"alpha": float("nan")}}]}, "option 'alpha'.*finite"),
        ({"methods": [{"method": "random", "seeds": 0}]}, "methods.0.seeds: "),
        ({"methods": []}, "methods: "),
        ({"model": "mini-qwen2-lv"}, "unknown model 'mini-qwen2-lv'; did you mean 'mini-qwen2-vl'"),
        ({"model": "./nothere"}, "model ./nothere: no such folder"),
        ({"model": None}, "model: "),
        ({"tasks": ["mini_vqa2"]}, "task.*mini_vqa2.*did you mean .?mini_vqav2"),
        ({"tasks": ["nothere.parquet"]}, "nothere.parquet: no such file"),
        ({"tasks": []}, "tasks: "),
        ({"metrics": ["latncy"]}, "metrics: unknown metric 'latncy'; did you mean 'latency'"),
        ({"scopes": ["visoin"]}, "scopes.*'visoin'; did you mean 'vision'"),
        ({"units": "head"}, "units.*'head'; did you mean 'heads'"),
        ({"units": ["layer", "ffn"]}, "units: unknown kind of units 'layer'; did you mean 'layers'"),
        ({"units": ["ffn", "ffn"]}, "units: ffn is named twice"),
        ({"units": []}, "units: no kind is named"),
        ({"units": {"ffn": 0.5}}, "units: unknown kind of units"),
        ({"budgets": [0.5, 1.2]}, "budgets.1: .*1.2"),
        ({"budgets": [0]}, "budgets.0: "),
        ({"budgets": [-0.1]}, "budgets.0: "),
        ({"budgets": [float("nan")]}, "budgets.0: "),
        ({"budgets": []}, "budgets: "),
        ({"methods": [{"method": "random", "budgets": [2]}]}, "methods.0.budgets.0: .*2"),
        ({"methods": [{"method": "random", "budgets": [0.5, 0.5]}]}, "methods: budgets: 0.5 is named twice"),
        ({"methods": [{"method": "random", "scopes": ["tower"]}]}, "methods.0.scopes.0: .*tower"),
        ({"methods": [{"method": "random", "scopes": ["all", "all"]}]}, "methods: scopes: all is named twice"),
        ({"budgets": 0.5}, "budgets: "),
        ({"budget": [0.5]}, "unknown key 'budget'; did you mean 'budgets'"),
        ({"calibration": {"sample": 3}}, "calibration.*'sample'.*samples"),
        ({"limit": 0}, "limit: "),
        ({"name": "../up"}, "name: "),
        ({"dtype": "float23"}, "dtype: .*'float23'"),
        ({"attention": "flash"}, "attention: .*'flash'; .*flash_attention_2"),
        ({"device_map": "atuo"}, "device_map: .*'atuo'; did you mean 'auto'"),
        ({"random_weights": True}, r"metrics: accuracy: random weights .* metrics: \[flops, latency\]"),
        ({"random_weights": True, "device_map": "auto", "metrics": ["flops"]}, "device_map: .*one device"),
    ],
)
def test_a_bad_board_is_one_line_that_names_file_and_key(read: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"board.yaml: .*{words}") as error:
        read(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("break_it", ["preprocessor_config.json", "config.json", "model.safetensors"])
def test_a_model_folder_that_cannot_be_loaded(read: Any, tiny_folder: Path, tmp_path: Path, break_it: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        if path.name != break_it and not (break_it.startswith("pre") and "processor" in path.name):
            (folder / path.name).symlink_to(path)
    with pytest.raises(InputError, match=r"board\.yaml: .*model") as error:
        read(model=str(folder))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"- a\n- b\n", "not a mapping"),
        (b"just words", "not a mapping"),
        (b"name: [1, 2", "not YAML"),
        (b"a: b: c", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"name: !!python/object/apply:os.getcwd []", "not YAML"),
        (b"1: 2", "unknown key '1'"),
    ],
)
def test_a_file_that_is_no_board(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "board.yaml").write_bytes(content)
    with pytest.raises(InputError, match=rf"board.yaml: {words}") as error:
        spec.read(str(tmp_path / "board.yaml"))
    assert "\n" not in str(error.value)


def test_even_the_name_can_be_set() -> None:
    assert spec.read("demo", **{"name": "mine"}).name == "mine"
