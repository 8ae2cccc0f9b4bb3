"""Heads of AngelSlim: EAGLE-3 with `midlayer`, `target_model_type`, explicit `head_dim`."""

from eagle.model.dialects.keys import COMMON, EAGLE3, FREQUENCIES, MIDLAYER, Dialect, architectures, same

ANGELSLIM = Dialect(
    name="AngelSlim",
    writer="AngelSlim",
    is_of=lambda fields: "Eagle3LlamaForCausalLM" in architectures(fields),
    keys=(MIDLAYER, *same(*COMMON, *EAGLE3), FREQUENCIES),
)
