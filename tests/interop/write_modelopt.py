"""Write a head with Model-Optimizer's own exporter, by its environment's python: FIELDS TENSORS FOLDER BASE."""

import json
import sys
from pathlib import Path

import modelopt.torch.opt as mto
import modelopt.torch.speculative as mtsp
import torch
from modelopt.torch.export.plugins.hf_spec_export import EagleExporter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

fields, tensors, folder, base = sys.argv[1:]
mto.enable_huggingface_checkpointing()
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
layer = json.loads(Path(fields).read_text())
# Without this the exporter writes a yarn embedding that the head was not trained with.
as_trained = {"eagle_use_torch_compile": False, "eagle_export_rope_scaling": {}}
mtsp.convert(model, [("eagle", {"eagle_architecture_config": layer, **as_trained})])
model.eagle_module.load_state_dict(load_file(tensors), strict=True)
EagleExporter(model).export(folder)
