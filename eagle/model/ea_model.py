"""`EaModel`: a Hugging Face causal LM with a draft head, generating the same tokens in fewer forwards.

Owns the public interface: loading, argument checks, and collecting or streaming what `decoding` yields. The base model
is never changed.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from eagle.model.cache_reuse import CachePool, Prefix
from eagle.model.call.facade import Facade
from eagle.model.call.inputs import check_ids
from eagle.model.call.output import StepStream, collected, steps
from eagle.model.call.prepare import prepare, reusable
from eagle.model.call.reference import Call, reference_signature, without_defaults
from eagle.model.checks.diagnosis import Report, diagnose
from eagle.model.checks.head_diagnosis import HeadReport, diagnose_head
from eagle.model.checks.openings import sample_texts
from eagle.model.configs import tree_config
from eagle.model.decoding import Generation
from eagle.model.dialects.checkpoint import read_config
from eagle.model.dialects.token_maps import asked_tokens
from eagle.model.dialects.weights import HUB_KEYWORDS
from eagle.model.drafter import Drafter
from eagle.model.graphs.pool import graph_pool
from eagle.model.graphs.replay import replays
from eagle.model.kinds import shown, switch
from eagle.model.pair import load_pair
from eagle.model.saving import Saving
from eagle.model.stats import GenerationStats
from eagle.model.support.gradients import without_gradients
from eagle.model.support.loading import load_base, load_tokenizer

# A token map may come from a repository of its own, which has other revisions.
MAP_KEYWORDS = tuple(name for name in HUB_KEYWORDS if name != "revision")
TOKENIZER_KEYWORDS = (*HUB_KEYWORDS, "trust_remote_code")


class EaModel(Facade, Saving, nn.Module):
    """A base model and its draft head behind the reference's interface.

    Args:
        use_eagle3: None reads the kind of head from the checkpoint; True or False must agree with it.
        base_model: a loaded causal LM, or a PEFT wrapper of one; it is used as it is.
        base_model_name_or_path: where its tokenizer is.
        ea_model_path: folder or Hub id of the head, or its `config.json`.
        total_token: nodes of the draft tree, root included; -1 chooses at every step, within `depth` and `top_k`,
            by what this machine and the acceptance so far promise; where no tree pays, it decodes plainly.
        depth: expansions of the tree after the first; more than its nodes can fill is clipped.
        top_k: children per expanded node, likewise.
        threshold: drop nodes with a smaller cumulative probability; 1.0 drops none.
        ea_layer_state_dict: the head's tensors, where they are loaded already.
        tree: "dynamic" (EAGLE-2 and 3), "static" (EAGLE-1), or a list of root-to-node paths.
        capture_layers: layers whose inputs an EAGLE-3 head reads, in place of those that its configuration names; n of
            a base of n layers is its last layer's output.
        token_map: tokens that an EAGLE-1/2 head drafts, so that draft levels multiply less of the output matrix: their
            ids, a file of them (`token_map.pt`, FR-Spec's `freq_*.pt`), or `ORG/REPO/FILE` of the Hub. None takes the
            map that lies with the head, if any, where it is faster here; False takes all tokens.
        compile: pack the linear layers of target and head for this processor: faster on a CPU, twice their memory.
        cuda_graphs: run steps as CUDA graphs, on one CUDA device.
        hub: revision, token, cache_dir, … for the head's download.

    Raises:
        ValueError: head and target, or arguments, do not fit; the message names both values.
        TypeError: an argument nobody knows, or a base that is no loaded model.
        FileNotFoundError: the head's configuration or weights are missing.
        NotImplementedError: the target cannot verify trees exactly.
    """

    def __init__(
        self,
        use_eagle3: bool | None,
        base_model: Any,
        base_model_name_or_path: str,
        ea_model_path: str,
        total_token: int = 60,
        depth: int = 7,
        top_k: int = 10,
        threshold: float = 1.0,
        ea_layer_state_dict: dict[str, torch.Tensor] | None = None,
        *,
        tree: str | Sequence[Sequence[int]] = "dynamic",
        capture_layers: Sequence[int] | None = None,
        token_map: str | PathLike[str] | Sequence[int] | torch.Tensor | bool | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
        **hub: Any,
    ) -> None:
        super().__init__()
        trees = tree_config(total_token, depth, top_k, threshold, tree)
        _check_options(use_eagle3, compile=compile, cuda_graphs=cuda_graphs)
        tokens = asked_tokens(token_map, **{name: hub[name] for name in MAP_KEYWORDS if name in hub})
        pair = load_pair(
            base_model,
            ea_model_path,
            trees,
            use_eagle3=use_eagle3,
            capture_layers=capture_layers,
            state=ea_layer_state_dict,
            tokens=tokens,
            hub=hub,
        )
        self.target, self.ea_layer, self._taps = pair.target, pair.drafter, pair.taps
        self.use_eagle3, self._described, self._head_path = pair.is_eagle3, pair.described, str(ea_model_path)
        self.base_model = pair.target.model  # of a PEFT wrapper the causal LM inside, adapter in place
        self.base_model_name_or_path = base_model_name_or_path
        self.config = self.base_model.config
        self.hidden_size, self.vocab_size = pair.target.config.hidden_size, pair.target.vocabulary
        self.training = self.base_model.training
        self.stats = GenerationStats()
        self.prefix, self.pool = Prefix(), CachePool()
        self.graphs = graph_pool(cuda_graphs, pair.target)
        self._packed = pair.packed() if compile else ()
        adapts = total_token == -1 and trees.static is None
        self._adaptation = pair.adaptation(self.graphs) if adapts else None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._tokenizer_options: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        use_eagle3: bool | None = None,
        base_model_path: str | None = None,
        ea_model_path: str | None = None,
        total_token: int = 60,
        depth: int = 7,
        top_k: int = 10,
        threshold: float = 1.0,
        *,
        tree: str | Sequence[Sequence[int]] = "dynamic",
        capture_layers: Sequence[int] | None = None,
        token_map: str | PathLike[str] | Sequence[int] | torch.Tensor | bool | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
        **kwargs: Any,
    ) -> "EaModel":
        """Load a base model and a draft head.

        Args:
            use_eagle3, total_token, depth, top_k, threshold, tree, capture_layers, token_map, compile, cuda_graphs: see
                the class.
            base_model_path: folder or Hub id of any decoder-only causal LM.
            ea_model_path: folder or Hub id of the head, or its `config.json`.
            kwargs: passed to the base model's `from_pretrained` (`torch_dtype`, `device_map`, `attn_implementation`,
                `load_in_8bit`, `quantization_config`, …); `revision` applies to the base model alone.
        """
        for name, path in (("base_model_path", base_model_path), ("ea_model_path", ea_model_path)):
            if not isinstance(path, str | PathLike):
                raise ValueError(f"{name}={shown(path)} must be a folder or a Hub id: from_pretrained needs both paths")
        tree_config(total_token, depth, top_k, threshold, tree)
        _check_options(use_eagle3, compile=compile, cuda_graphs=cuda_graphs)
        hub = {name: kwargs[name] for name in MAP_KEYWORDS if name in kwargs}
        token_map = asked_tokens(token_map, **hub)
        read_config(str(ea_model_path), **hub)  # a missing head is found before minutes of loading
        base_model = load_base(str(base_model_path), kwargs)
        paths = (str(base_model_path), str(ea_model_path))
        more: dict[str, Any] = {
            "tree": tree,
            "capture_layers": capture_layers,
            "token_map": token_map,
            "compile": compile,
            "cuda_graphs": cuda_graphs,
            **hub,
        }
        model = cls(use_eagle3, base_model, *paths, total_token, depth, top_k, threshold, **more)
        model._tokenizer_options = {name: kwargs[name] for name in TOKENIZER_KEYWORDS if name in kwargs}
        return model

    @classmethod
    def attach(cls, base_model: Any, ea_model_path: str | PathLike[str], **options: Any) -> "EaModel":
        """Put a head on a base model that is loaded already; the two share its weights, and it stays as it is.

        Args:
            base_model: a causal LM, or a PEFT wrapper of one.
            ea_model_path: folder or Hub id of the head.
            options: see the class; `base_model_name_or_path`, where the tokenizer is, is the base model's own.
        """
        path = options.pop("base_model_name_or_path", None) or getattr(base_model, "name_or_path", "")
        return cls(options.pop("use_eagle3", None), base_model, path, str(ea_model_path), **options)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, loaded on first use.

        Raises:
            FileNotFoundError: the base model's folder has none.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.base_model_name_or_path, **self._tokenizer_options)
        return self._tokenizer

    def self_check(self) -> Report:
        """Check on this very model, in seconds, that trees are verified exactly; the report says why not."""
        return diagnose(self.base_model, self._taps)

    def head_check(self, openings: Sequence[str] | None = None) -> HeadReport:
        """Try what else the head's file could mean on text that the base model writes, and say what drafts best.

        Args:
            openings: beginnings of texts of the kind that the head was made for; None takes some of its own.
        """
        with self.target.lock:
            texts = sample_texts(self.target, openings, lambda: self.tokenizer)
            paths = (self.base_model_name_or_path, self._head_path)
            return diagnose_head(self.target, self.ea_layer, self._described, texts, paths)

    def free(self) -> None:
        """Free the caches that calls leave for the next one: the pool's, and those of `prefix`."""
        self.pool.clear()
        self.prefix.clear()

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the base model's tokenizer."""
        return self.tokenizer

    def generate(
        self,
        inputs: Any = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Do what `base_model.generate` does with the same arguments, in fewer forwards.

        The base model's own `generation_config` counts, as it does there. In fp32 the ids are equal, sampled ones too
        if torch's generators start from the same seed.

        Args:
            inputs: prompt ids [B, S], rows left-padded to one length; also as `input_ids`.
            generation_config: settings; those in `kwargs` come first.
            logits_processor, stopping_criteria: added to what the settings ask for.
            streamer: gets the prompt, then every token as soon as it is accepted.
            kwargs: every other keyword of `generate`, and these: `generator` (source of sampling noise, on the
                model's device), `reuse_prefix` (True or a `Prefix`: run only what follows the last call's tokens),
                `prefill_chunk` (prompt tokens per forward), `tokenizer` (for stop strings; the model's own if None).

        Returns:
            ids [R, S + T] with the prompt, finished rows padded, or a `GenerateDecoderOnlyOutput` with
            `return_dict_in_generate`.

        Raises:
            ValueError: a bad argument, with its value and the allowed range, or a keyword nobody knows.
            NotImplementedError: something `generate` can do and a draft tree cannot (beams, assistants, …).
        """
        arguments = {
            "inputs": inputs,
            "generation_config": generation_config,
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "streamer": streamer,
            **kwargs,
        }
        return collected(self._prepared(self.ea_layer, self.base_model, arguments))

    def generate_steps(self, inputs: Any = None, *, drafts: bool = True, **kwargs: Any) -> StepStream:
        """Do what `generate` does one step at a time; iterate over the result to take them.

        Args:
            inputs: prompt ids [B, S].
            drafts: False decodes plainly, one token a step.
            kwargs: everything else that `generate` takes.

        Returns:
            a stream of `DecodeStep`s (new tokens, what was drafted and accepted, the tree), whose `stats` are those of
            this call however many run at once; `close()` ends it early.
        """
        switch("drafts", drafts)
        drafter = self.ea_layer if drafts else None
        return StepStream(self._prepared(drafter, self.base_model, {"inputs": inputs, **kwargs}))

    @reference_signature
    def eagenerate(self, input_ids: torch.Tensor, call: Call, log: bool) -> Any:
        """Generate with the draft head; the ids are those the base model would have produced alone.

        Takes `(input_ids, temperature=0.0, top_p=0.0, top_k=0.0, max_new_tokens=512, max_length=2048, log=False,
        is_llama3=False)` and, keyword-only, what `generate` takes beside these (`attention_mask`, `generator`,
        `logits_processor`, `stop_strings`, …). The base model's generation defaults do not count, its
        end-of-sequence ids do.

        Returns:
            ids [B, S + T] with the prompt, finished rows padded; with `log` a tuple `(ids, new_token, idx)`: new
            tokens of the longest row and the 0-based number of the last verify forward.

        Raises:
            ValueError: a bad argument, with its value and the allowed range.
        """
        return self._logged(self._start(self.ea_layer, input_ids, call), log)

    @reference_signature
    def naivegenerate(self, input_ids: torch.Tensor, call: Call, log: bool) -> Any:
        """Generate without drafting, by the same loop: the honest baseline. Arguments as in `eagenerate`.

        With `log` the last number is that of the last token: every one takes a forward.
        """
        return self._logged(self._start(None, input_ids, call), log)

    @reference_signature
    def ea_generate(self, input_ids: torch.Tensor, call: Call, log: bool) -> Iterator[torch.Tensor]:
        """Yield all ids so far, prompt included, after every step. Arguments as in `eagenerate`; `log` is ignored."""
        return self._stream(self._start(self.ea_layer, input_ids, call))

    @reference_signature
    def naive_generate(self, input_ids: torch.Tensor, call: Call, log: bool) -> Iterator[torch.Tensor]:
        """Yield all ids so far after every token, without drafting. Arguments as in `eagenerate`; `log` is ignored."""
        return self._stream(self._start(None, input_ids, call))

    def _start(self, drafter: Drafter | None, input_ids: Any, call: Call) -> Generation:
        """Prepare a call in the reference's convention."""
        ids_BS = check_ids(input_ids, self.target)
        base = without_defaults(self.base_model)
        config = call.config(self.base_model.generation_config, ids_BS.shape[1], lambda: self.tokenizer)
        return self._prepared(drafter, base, {"input_ids": ids_BS, "generation_config": config, **call.extras})

    def _prepared(self, drafter: Drafter | None, base: Any, arguments: dict[str, Any]) -> Generation:
        """Check a call and allocate its caches; nothing has run yet."""
        with without_gradients():
            for linears in self._packed:
                linears.refresh()
            request = prepare(base, self.target, arguments, lambda: self.tokenizer)
            prefix = reusable(arguments, request, self.prefix)
            adaptation = self._adaptation if drafter is not None else None
            chooser = adaptation.chooser(len(request.ids_RS)) if adaptation is not None else None
            generation = Generation(
                self.target,
                drafter,
                request,
                self._taps,
                prefix=prefix,
                chooser=chooser,
                pool=self.pool,
                replays=replays(self.graphs, self.target, drafter, request),
            )
        self.stats = generation.stats
        return generation

    def _logged(self, generation: Generation, log: bool) -> Any:
        output = collected(generation)
        new_token = max(map(len, generation.rows.new))
        forwards = generation.stats.steps if generation.stream.drafter is not None else new_token
        return (output, new_token, max(0, forwards - 1)) if log else output

    def _stream(self, generation: Generation) -> Iterator[torch.Tensor]:
        # Closed with this stream: some Pythons keep what a closed generator held.
        with closing(steps(generation)) as each:
            for _ in each:
                yield generation.rows.ids()


def _check_options(use_eagle3: Any, **switches: Any) -> None:
    if use_eagle3 is not None and not isinstance(use_eagle3, bool):
        raise ValueError(f"use_eagle3={shown(use_eagle3)} must be True, False, or None to read it from the checkpoint")
    for name, value in switches.items():
        switch(name, value)
