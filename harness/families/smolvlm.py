"""SmolVLM2: the architecture of Idefics3 with another processor.

from harness.families import load; load("HuggingFaceTB/SmolVLM2-256M-Video-Instruct").blocks
"""

from harness.families.idefics3 import blocks, extents, stages

__all__ = ["blocks", "extents", "stages"]
