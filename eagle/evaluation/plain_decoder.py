"""Plain decoding of a base model that has no head: the loop with trees of their root alone."""

from collections.abc import Iterator
from contextlib import closing
from functools import cached_property
from typing import Any

import torch

from eagle.model.cache_reuse import CachePool
from eagle.model.call.inputs import check_ids
from eagle.model.call.output import collected, steps
from eagle.model.call.prepare import prepare
from eagle.model.call.reference import Call, reference_signature, without_defaults
from eagle.model.checks.diagnosis import checked_target
from eagle.model.decoding import Generation
from eagle.model.stats import GenerationStats
from eagle.model.support.gradients import without_gradients
from eagle.model.support.loading import load_tokenizer


class PlainDecoder:
    """What `EaModel` offers without its head: `naivegenerate` and `naive_generate`, arguments and all.

    Args:
        base: a loaded causal LM, used as it is.

    Raises:
        NotImplementedError: the base cannot be decoded exactly.
    """

    def __init__(self, base: Any) -> None:
        self.base, self.target = base, checked_target(base)
        self.pool, self.stats = CachePool(), GenerationStats()

    @cached_property
    def tokenizer(self) -> Any:
        """The base's, loaded on first use."""
        return load_tokenizer(self.base.name_or_path)

    @reference_signature
    def naivegenerate(self, input_ids: torch.Tensor, call: Call, log: bool) -> Any:
        """Generate token by token; ids [B, S + T] with the prompt. `log` is ignored."""
        return collected(self._generation(input_ids, call))

    @reference_signature
    def naive_generate(self, input_ids: torch.Tensor, call: Call, log: bool) -> Iterator[torch.Tensor]:
        """Yield all ids so far after every token. `log` is ignored."""
        generation = self._generation(input_ids, call)
        with closing(steps(generation)) as each:
            for _ in each:
                yield generation.rows.ids()

    def _generation(self, input_ids: Any, call: Call) -> Generation:
        ids_BS = check_ids(input_ids, self.target)
        config = call.config(self.base.generation_config, ids_BS.shape[1], lambda: self.tokenizer)
        arguments = {"input_ids": ids_BS, "generation_config": config, **call.extras}
        with without_gradients():
            request = prepare(without_defaults(self.base), self.target, arguments, lambda: self.tokenizer)
            generation = Generation(self.target, None, request, None, pool=self.pool)
        self.stats = generation.stats
        return generation
