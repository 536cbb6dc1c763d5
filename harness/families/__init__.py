"""The supported model families, a file per transformers model type, and the functions that load and save a model.

    vlm = load("path/to/checkpoint")           # or a hub id
    vlm = load("Qwen/Qwen2-VL-7B-Instruct", device="cuda", dtype="bfloat16", random_weights=True)    # sizes only

A family file describes one architecture with `blocks(model)`, `extents(model, inputs)` and `stages(model, inputs)`.
Files that begin with an underscore serve all families.
"""

from harness.families._folders import check as check
from harness.families._folders import check_folder as check_folder
from harness.families._folders import checkpoint_hash as checkpoint_hash
from harness.families._folders import model_type as model_type
from harness.families._folders import weights_hash as weights_hash
from harness.families._loading import attention as attention
from harness.families._loading import check_attention as check_attention
from harness.families._loading import load as load
from harness.families._loading import save as save
from harness.families._names import family as family
from harness.families._names import names as names
from harness.families._prompts import encode as encode
from harness.families._prompts import refuse_tokens as refuse_tokens
