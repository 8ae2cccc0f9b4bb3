"""A conversation that is hard to mark, and what a sample of it teaches."""

from itertools import groupby
from typing import Any

from eagle.data.samples import Sample

ANSWERS = ["Paris é is.\n\n  Two  million", "USER: Hi </think there!", "x"]
QUESTIONS = ["What is the capital?", "ASSISTANT: Paris é is.", "xylophones\n"]
SYSTEM = {"role": "system", "content": "You are brief."}
PLAIN = ["llama-2", "llama-3", "vicuna", "qwen", "mistral", "chatml", "gemma", "silent", "marked"]


def turns(count: int, system: bool = False) -> list[dict[str, str]]:
    roles = zip(QUESTIONS[:count], ANSWERS, strict=False)
    pairs = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in roles]
    return [*([SYSTEM] if system else []), *(message for pair in pairs for message in pair)]


def answers(tokenizer: Any, sample: Sample) -> list[str]:
    """Decode every run of tokens that count."""
    runs = groupby(zip(sample.ids.tolist(), sample.mask.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for counts, run in runs if counts]
