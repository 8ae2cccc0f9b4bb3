"""Shapes of bases that heads are published for, as their public config.json have them; no Hub is asked.

`WRITE_CONFIGS=1 pytest tests/train/test_configure.py` writes `eagle/train/configs` anew from this table.
"""

from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedConfig


class Base(NamedTuple):
    """One base, and which heads there is a configuration for, with the fields in which those differ."""

    name: str
    model_type: str
    hidden: int
    width: int
    heads: int
    kv_heads: int
    layers: int
    kinds: tuple[str, ...]
    more: dict[str, Any]
    fields: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - never written to

    def config(self) -> PreTrainedConfig:
        """Return what AutoConfig would make of the base's config.json."""
        return AutoConfig.for_model(
            self.model_type,
            hidden_size=self.hidden,
            intermediate_size=self.width,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            num_hidden_layers=self.layers,
            **self.more,
        )


def _more(vocab: int, positions: int, eps: float, theta: float, bos: int, eos: Any, **own: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta}
    names = {"vocab_size": vocab, "max_position_embeddings": positions, "rms_norm_eps": eps, "rope_parameters": rope}
    return {**names, "bos_token_id": bos, "eos_token_id": eos, **own}


EAGLE, EAGLE3, BOTH = ("eagle",), ("eagle3",), ("eagle", "eagle3")
VICUNA = _more(32000, 2048, 1e-6, 1e4, 1, 2)
LLAMA_2 = _more(32000, 4096, 1e-5, 1e4, 1, 2)
LLAMA_3 = _more(128256, 8192, 1e-5, 5e5, 128000, 128009)
LLAMA_3_1 = _more(128256, 131072, 1e-5, 5e5, 128000, [128001, 128008, 128009])
MIXTRAL = _more(32000, 32768, 1e-5, 1e6, 1, 2)
QWEN_2 = _more(152064, 32768, 1e-6, 1e6, 151643, 151645)
QWEN_3 = _more(151936, 40960, 1e-6, 1e6, 151643, 151645, head_dim=128)
# Published LLaMA-3 heads have no bias on fc; EAGLE-3 heads of large vocabularies draft 32000 tokens.
NO_BIAS = {"eagle": {"bias": False}, "eagle3": {"draft_vocab_size": 32000}}
PART = {"eagle3": {"draft_vocab_size": 32000}}

BASES = [
    Base("vicuna_7B", "llama", 4096, 11008, 32, 32, 32, BOTH, VICUNA),
    Base("vicuna_13B", "llama", 5120, 13824, 40, 40, 40, BOTH, VICUNA),
    # The published head has a quarter of the base's key and value heads.
    Base("vicuna_33B", "llama", 6656, 17920, 52, 52, 60, EAGLE, VICUNA, {"eagle": {"num_key_value_heads": 13}}),
    Base("llama_2_chat_7B", "llama", 4096, 11008, 32, 32, 32, EAGLE, LLAMA_2),
    Base("llama_2_chat_13B", "llama", 5120, 13824, 40, 40, 40, EAGLE, LLAMA_2),
    Base("llama_2_chat_70B", "llama", 8192, 28672, 64, 8, 80, EAGLE, LLAMA_2),
    Base("llama_3_instruct_8B", "llama", 4096, 14336, 32, 8, 32, EAGLE, LLAMA_3, NO_BIAS),
    Base("llama_3_instruct_70B", "llama", 8192, 28672, 64, 8, 80, EAGLE, LLAMA_3, NO_BIAS),
    Base("llama_3.1_instruct_8B", "llama", 4096, 14336, 32, 8, 32, BOTH, LLAMA_3_1, NO_BIAS),
    Base("llama_3.3_instruct_70B", "llama", 8192, 28672, 64, 8, 80, EAGLE3, LLAMA_3_1, NO_BIAS),
    Base("mixtral_8x7B", "mixtral", 4096, 14336, 32, 8, 32, EAGLE, MIXTRAL),
    Base("qwen2_7B", "qwen2", 3584, 18944, 28, 4, 28, EAGLE, QWEN_2),
    Base("qwen2_72B", "qwen2", 8192, 29568, 64, 8, 80, EAGLE, QWEN_2),
    Base("qwen2.5_7B", "qwen2", 3584, 18944, 28, 4, 28, EAGLE3, QWEN_2, PART),
    Base("qwen2.5_14B", "qwen2", 5120, 13824, 40, 8, 48, EAGLE3, QWEN_2, PART),
    Base("qwen2.5_32B", "qwen2", 5120, 27648, 40, 8, 64, EAGLE3, QWEN_2, PART),
    Base("qwen3_1.7B", "qwen3", 2048, 6144, 16, 8, 28, EAGLE3, QWEN_3, PART),
    Base("qwen3_4B", "qwen3", 2560, 9728, 32, 8, 36, EAGLE3, QWEN_3, PART),
    Base("qwen3_8B", "qwen3", 4096, 12288, 32, 8, 36, EAGLE3, QWEN_3, PART),
    Base("qwen3_14B", "qwen3", 5120, 17408, 40, 8, 40, EAGLE3, QWEN_3, PART),
    Base("qwen3_32B", "qwen3", 5120, 25600, 64, 8, 64, EAGLE3, QWEN_3, PART),
    Base("qwen3_30B_A3B", "qwen3_moe", 2048, 6144, 32, 4, 48, EAGLE3, QWEN_3, PART),
]
