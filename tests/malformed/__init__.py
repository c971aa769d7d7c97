"""Malformed files by the thousand: each number stands for one file, the same everywhere; `worker` reads them under limits.

`KINDS` names the modules. Each has `base()`, the undamaged files by name, `variant(rng)`, which gives (what was done, files), and
`read(folder)`, which does with the files what their user does.
"""

import sys
from pathlib import Path

KINDS = ("safetensors_files", "gguf_files", "checkpoints", "tokenizers_files", "foreign_checkpoints", "recipe_files")

for _folder in (Path(__file__).parents[1], Path(__file__).parents[1] / "io"):  # `small` and `gguf_file`, whoever imports this
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))
