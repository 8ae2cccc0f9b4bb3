"""Heads as SafeAILab publishes them, which are also this package's own: EAGLE-1/2 and EAGLE-3, Llama fields.

The kind is in the tensors: an EAGLE-3 head's first layer is called `midlayer`, and where it is not its attention reads
two states. Fields of this package's own are `tap_layers`, `use_aux_hidden_state`, `qk_norm` and `windows`.
"""

from eagle.model.dialects.keys import COMMON, EAGLE3, FIRST, FREQUENCIES, FURTHER, MIDLAYER, Dialect, same

SAFEAILAB = Dialect(
    name="SafeAILab",
    writer="SafeAILab or this package",
    is_of=lambda fields: True,  # whatever no other dialect claims
    keys=(MIDLAYER, FIRST, FURTHER, *same(*COMMON, *EAGLE3), FREQUENCIES),
)
