"""The methods that are compared, all on one base model: `generate`, plain decoding, prompt lookup, EAGLE.

`generate` comes first: the others' ids are held to its. Prompt lookup is transformers' own, drafting by searching the
text so far; it runs one row at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from eagle.evaluation.prompts import Prompt
from eagle.model.call.reference import without_defaults
from eagle.model.ea_model import EaModel
from eagle.model.stats import GenerationStats
from eagle.model.support.properties import token_ids

GENERATE, PLAIN, LOOKUP = "generate", "plain decoding", "prompt lookup"
BASELINES = (GENERATE, PLAIN)
# What `--methods` calls them. The first word of a model's name says which of the last three it is.
NAMES = {
    "generate": GENERATE,
    "plain": PLAIN,
    "lookup": LOOKUP,
    "eagle1": "EAGLE-1",
    "eagle2": "EAGLE-2",
    "eagle3": "EAGLE-3",
}
# The length of a draft that transformers' documentation uses.
LOOKUP_TOKENS = 10

Told = Callable[[], None]


@dataclass(frozen=True)
class Method:
    """A way to generate.

    Attributes:
        name: what tables call it.
        run: prompt and new tokens -> ids [B, S + T].
        watch: the same, telling a callback when the first token is there.
        stats: what the last run did; None where nobody counts.
        ends: ids that end a row.
        one_row: it cannot run batches.
    """

    name: str
    run: Callable[[Prompt, int], torch.Tensor]
    watch: Callable[[Prompt, int, Told], torch.Tensor]
    stats: Callable[[], GenerationStats | None]
    ends: frozenset[int] = frozenset()
    one_row: bool = False


def methods(
    base: Any,
    models: dict[str, EaModel],
    *,
    temperature: float = 0.0,
    chosen: Sequence[str] = (GENERATE, PLAIN),
) -> list[Method]:
    """Return the baselines among `chosen`, in the order of `NAMES`, and one method per model."""
    plain = next(iter(models.values()))
    makers = {
        GENERATE: lambda: _generate(base, GENERATE, temperature),
        PLAIN: lambda: _decoding(plain, PLAIN, temperature, drafts=False),
        LOOKUP: lambda: _generate(base, LOOKUP, temperature, prompt_lookup_num_tokens=LOOKUP_TOKENS),
    }
    baselines = [make() for name, make in makers.items() if name in chosen]
    return baselines + [_decoding(model, name, temperature, drafts=True) for name, model in models.items()]


class _FirstToken(BaseStreamer):
    """Tells when `generate` has its first token: the first thing it hands out is the prompt."""

    def __init__(self, told: Told) -> None:
        self.told, self.puts = told, 0

    def put(self, value: torch.Tensor) -> None:
        """Count what comes."""
        self.puts += 1
        if self.puts == 2:
            self.told()

    def end(self) -> None:
        """Nothing is left to do."""


def _generate(base: Any, name: str, temperature: float, **extra: Any) -> Method:
    known = base.generation_config
    eos = known.eos_token_id
    ends = frozenset(token_ids(eos))
    pad = known.pad_token_id if known.pad_token_id is not None else min(ends, default=0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    neutral = without_defaults(base)  # penalties and samplers of its own would measure something else

    def run(prompt: Prompt, new: int, streamer: BaseStreamer | None = None) -> torch.Tensor:
        config = GenerationConfig(max_new_tokens=new, eos_token_id=eos, pad_token_id=pad, **sampling, **extra)
        ids_BS, mask_BS = prompt.ids_BS.to(base.device), prompt.mask_BS.to(base.device)
        return neutral.generate(ids_BS, attention_mask=mask_BS, generation_config=config, streamer=streamer)

    def watch(prompt: Prompt, new: int, told: Told) -> torch.Tensor:
        return run(prompt, new, _FirstToken(told))

    return Method(name, run, watch, lambda: None, ends, one_row=name == LOOKUP)


def _decoding(model: EaModel, name: str, temperature: float, *, drafts: bool) -> Method:
    def call(generate: Callable[..., Any], prompt: Prompt, new: int) -> Any:
        limits = {"max_new_tokens": new, "max_length": prompt.width + new}
        return generate(prompt.ids_BS, temperature=temperature, attention_mask=prompt.mask_BS, **limits)

    def run(prompt: Prompt, new: int) -> torch.Tensor:
        return call(model.eagenerate if drafts else model.naivegenerate, prompt, new)

    def watch(prompt: Prompt, new: int, told: Told) -> torch.Tensor:
        out = prompt.ids_BS
        for number, ids in enumerate(call(model.ea_generate if drafts else model.naive_generate, prompt, new)):
            if number == 0:
                told()
            out = ids
        return out

    return Method(name, run, watch, lambda: model.stats)
