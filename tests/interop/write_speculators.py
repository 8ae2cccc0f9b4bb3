"""Write a head with speculators' own class, by its environment's python: FIELDS TENSORS FOLDER BASE."""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig

fields, tensors, folder, base = sys.argv[1:]
verifier = VerifierConfig.from_pretrained(base)
proposals = [GreedyTokenProposalConfig(speculative_tokens=3)]
speculators = SpeculatorsConfig(
    algorithm="eagle3", proposal_methods=proposals, default_proposal_method="greedy", verifier=verifier
)
config = Eagle3SpeculatorConfig(**json.loads(Path(fields).read_text()), speculators_config=speculators)
config.transformer_layer_config._attn_implementation = "eager"
head = Eagle3DraftModel(config)
missing, unexpected = head.load_state_dict(load_file(tensors), strict=False)
assert not unexpected and set(missing) <= {"verifier_lm_head.weight", "verifier_norm.weight"}, (missing, unexpected)
head.save_pretrained(folder)
