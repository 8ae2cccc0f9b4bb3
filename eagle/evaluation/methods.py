"""The methods that are compared, all on one base model: `generate`, plain decoding, prompt lookup, an assistant, EAGLE.

`generate` comes first: the others' ids are held to its. Prompt lookup, drafting by searching the text so far, and
drafting by a smaller model are transformers' own; they run one row at a time, and sampling draws other random numbers
than `generate` does.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from eagle.evaluation.plain_decoder import PlainDecoder
from eagle.evaluation.prompts import Prompt
from eagle.model.call.reference import without_defaults
from eagle.model.ea_model import EaModel
from eagle.model.stats import GenerationStats
from eagle.model.support.properties import token_ids

GENERATE, PLAIN, LOOKUP, ASSISTANT = "generate", "plain decoding", "prompt lookup", "assistant model"
BASELINES = (GENERATE, PLAIN)
HEADLESS = (GENERATE, PLAIN, LOOKUP, ASSISTANT)
# What `--methods` calls them. The first word of a model's name says which of the last three it is.
NAMES = {
    "generate": GENERATE,
    "plain": PLAIN,
    "lookup": LOOKUP,
    "assistant": ASSISTANT,
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
        is_seeded: sampling, it gives the ids that `generate` gives with the same seed.
    """

    name: str
    run: Callable[[Prompt, int], torch.Tensor]
    watch: Callable[[Prompt, int, Told], torch.Tensor]
    stats: Callable[[], GenerationStats | None]
    ends: frozenset[int] = frozenset()
    one_row: bool = False
    is_seeded: bool = True


def methods(
    base: Any,
    models: dict[str, EaModel],
    *,
    temperature: float = 0.0,
    chosen: Sequence[str] = (GENERATE, PLAIN),
    assistant: Any = None,
) -> list[Method]:
    """Return the methods without a head among `chosen`, in the order of `NAMES`, and one method per model.

    Args:
        base: the base model.
        models: heads on it, by name.
        temperature: of sampling; 0 is greedy.
        chosen: names out of `HEADLESS`; others are passed over.
        assistant: the smaller model that drafts; without it there is no such method.
    """
    plain = next(iter(models.values()), None)
    makers = {
        GENERATE: lambda: _generate(base, temperature),
        PLAIN: lambda: _decoding(plain or PlainDecoder(base), PLAIN, temperature, drafts=False),
        LOOKUP: lambda: _assisted(base, LOOKUP, temperature, {"prompt_lookup_num_tokens": LOOKUP_TOKENS}),
        ASSISTANT: lambda: _assisted(base, ASSISTANT, temperature, {}, assistant_model=assistant),
    }
    headless = [make() for name, make in makers.items() if name in chosen and (name != ASSISTANT or assistant)]
    return headless + [_decoding(model, name, temperature, drafts=True) for name, model in models.items()]


def choose_methods(
    base: Any, models: dict[str, EaModel], wanted: Sequence[str] | None, temperature: float, assistant: Any = None
) -> list[Method]:
    """Return the methods that were asked for by their keys in `NAMES`; None asks for all that there is a model for.

    Raises:
        ValueError: there is no head, or no assistant, for one that was asked for.
    """
    if wanted is not None and "assistant" in wanted and assistant is None:
        raise ValueError("--methods assistant needs --assistant-model-path")
    kinds = {name.split()[0] for name in models}
    missing = [name for name in wanted or () if NAMES[name] not in (*HEADLESS, *kinds)]
    if missing:
        raise ValueError(f"--methods {' '.join(missing)}: no head of --ea-model-path can do that")
    chosen = [NAMES[name] for name in wanted or NAMES]
    made = methods(base, models, temperature=temperature, chosen=chosen, assistant=assistant)
    return [one for one in made if one.name in HEADLESS or one.name.split()[0] in chosen]


class _TokenWatcher(BaseStreamer):
    """Notes when `generate` hands out tokens, and how many; the first thing it hands out is the prompt."""

    def __init__(self, told: Told | None = None) -> None:
        self.told = told
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Note what one forward gave."""
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())
        if len(self.times) == 2 and self.told is not None:
            self.told()

    def end(self) -> None:
        """Nothing is left to do."""


Generate = Callable[[Prompt, int, BaseStreamer | None], torch.Tensor]


def _generating(
    base: Any, temperature: float, settings: dict[str, Any], **extra: Any
) -> tuple[Generate, frozenset[int]]:
    """Return `generate` with neutral settings, and the ids that end a row."""
    known = base.generation_config
    eos = known.eos_token_id
    ends = frozenset(token_ids(eos))
    pad = known.pad_token_id if known.pad_token_id is not None else min(ends, default=0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    neutral = without_defaults(base)  # penalties and samplers of its own would measure something else

    def run(prompt: Prompt, new: int, streamer: BaseStreamer | None = None) -> torch.Tensor:
        config = GenerationConfig(max_new_tokens=new, eos_token_id=eos, pad_token_id=pad, **sampling, **settings)
        ids_BS, mask_BS = prompt.ids_BS.to(base.device), prompt.mask_BS.to(base.device)
        return neutral.generate(ids_BS, attention_mask=mask_BS, generation_config=config, streamer=streamer, **extra)

    return run, ends


def _generate(base: Any, temperature: float) -> Method:
    run, ends = _generating(base, temperature, {})

    def watch(prompt: Prompt, new: int, told: Told) -> torch.Tensor:
        return run(prompt, new, _TokenWatcher(told))

    return Method(GENERATE, lambda prompt, new: run(prompt, new, None), watch, lambda: None, ends)


def _assisted(base: Any, name: str, temperature: float, settings: dict[str, Any], **extra: Any) -> Method:
    """Return one of transformers' own speculative methods, its forwards counted from what they hand out."""
    generate, ends = _generating(base, temperature, settings, **extra)
    stats = GenerationStats()

    def watch(prompt: Prompt, new: int, told: Told | None) -> torch.Tensor:
        nonlocal stats
        watcher, started = _TokenWatcher(told), time.perf_counter()
        out = generate(prompt, new, watcher)
        (_, first, *_), (_, *counts) = watcher.times, watcher.counts
        accepted = [count - 1 for count in counts[1:]]
        stats = GenerationStats(
            prompt_tokens=int(prompt.mask_BS.sum()),
            prefilled_tokens=prompt.width,
            new_tokens=emitted(out[0, prompt.width :].tolist(), ends),
            tokens_per_step=counts,
            steps=len(accepted),
            row_steps=len(accepted),
            accepted_per_step=accepted,
            accepted_per_row={0: accepted},
            prefill_seconds=first - started,
            decode_seconds=time.perf_counter() - first,
            stage_seconds={},
        )
        return out

    def run(prompt: Prompt, new: int) -> torch.Tensor:
        return watch(prompt, new, None)

    return Method(name, run, watch, lambda: stats, ends, one_row=True, is_seeded=False)


def emitted(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """Return how many tokens of a row come up to its end, the ending one included."""
    return next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))


def _decoding(model: Any, name: str, temperature: float, *, drafts: bool) -> Method:
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
