"""Write a head with AngelSlim's own class, by its environment's python: FIELDS TENSORS FOLDER.

The wheel lacks a folder that `compressor/__init__.py` imports (0.5.0), so the packages above the class are entered
without running what is in theirs.
"""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

from safetensors.torch import load_file
from transformers import LlamaConfig

TRAIN = "angelslim.compressor.speculative.train"
PLACE = Path(importlib.util.find_spec("angelslim").origin).parent

for package in (TRAIN, f"{TRAIN}.data", f"{TRAIN}.models.draft"):
    parts = package.split(".")
    for count in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:count]))
        module.__path__ = [str(PLACE.joinpath(*parts[1:count]))]
        sys.modules.setdefault(module.__name__, module)
Head = importlib.import_module(f"{TRAIN}.models.draft.llama_eagle3").Eagle3LlamaForCausalLM

fields, tensors, folder = sys.argv[1:]
head = Head(LlamaConfig(**json.loads(Path(fields).read_text())))
head.load_state_dict(load_file(tensors), strict=True)
head.save_pretrained(folder)
