"""Write a head with SpecForge's own class and exporter, by its environment's python: FIELDS TENSORS FOLDER."""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from specforge.export.to_sglang import _serving_state
from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3
from transformers import LlamaConfig

fields, tensors, folder = sys.argv[1:]
head = LlamaForCausalLMEagle3(LlamaConfig(**json.loads(Path(fields).read_text())))
head.load_state_dict(load_file(tensors), strict=True)
# What `export_to_sglang` does with the head of a training checkpoint.
kept = {name: tensor for name, tensor in head.state_dict().items() if "embed" not in name.lower()}
head.save_pretrained(folder, state_dict=_serving_state(kept, {}))
