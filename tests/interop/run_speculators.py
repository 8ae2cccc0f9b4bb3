"""Load a head with the real speculators and run it, by its environment's python: FOLDER INPUTS OUTPUTS.

INPUTS holds features [1, N, F] and tokens [1, N], one position ahead; OUTPUTS gets the logits of three steps.
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from speculators.model import SpeculatorModel
from speculators.models.eagle3 import Eagle3SpeculatorConfig

folder, inputs, outputs = sys.argv[1:]
config = Eagle3SpeculatorConfig.from_pretrained(folder)
config.transformer_layer_config._attn_implementation = "eager"
head = SpeculatorModel.from_pretrained(folder, config=config).eval().float()
given = load_file(inputs)
logits = []
head.lm_head.register_forward_hook(lambda module, args, output: logits.append(output.detach().clone()))
entries = given["tokens"].shape[1]
with torch.no_grad():
    head(
        given["features"],
        given["tokens"],
        document_ids=torch.zeros(1, entries, dtype=torch.int64),
        position_ids=torch.arange(entries)[None],
        ttt_steps=3,
    )
save_file({f"step_{step}": each for step, each in enumerate(logits)}, outputs)
