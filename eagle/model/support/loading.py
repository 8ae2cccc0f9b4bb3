"""Base models and tokenizers from folders or the Hub, with what the reference accepts translated for transformers 5."""

import logging
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

from eagle.files import is_local
from eagle.model.dialects.weights import tensor_names
from eagle.model.kinds import shown
from eagle.model.support.properties import ATTENTION

logger = logging.getLogger(__name__)

UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")


def check_base(path: str) -> None:
    """See, before anything is loaded, that a path is no draft head, and of a local one that it is there.

    Raises:
        FileNotFoundError: the path is neither a folder nor a Hub id.
        ValueError: a draft head.
    """
    if not path or (is_local(path) and not Path(path).is_dir()):
        raise FileNotFoundError(f"{path!r} is neither a folder nor a Hub repository id")
    names = tensor_names(path) if is_local(path) else []
    if "fc.weight" in names and not any(name.startswith("model.") for name in names):
        # It would load as a model of random weights.
        raise ValueError(
            f"{path!r} holds a draft head, not a base model: are base_model_path and ea_model_path exchanged?"
        )


def load_base(path: str, kwargs: dict[str, Any]) -> Any:
    """Load the base model with sdpa or eager attention; translate arguments that transformers 5 dropped.

    Raises:
        FileNotFoundError: the path is neither a folder nor a Hub id.
        ValueError: a draft head, an attention implementation that cannot carry a tree, or arguments that transformers
            refuses.
        TypeError: a keyword that neither eagle nor transformers knows.
    """
    check_base(path)
    wanted = kwargs.get("attn_implementation")
    if wanted is not None and wanted not in ATTENTION:
        raise ValueError(f"attn_implementation={wanted!r} reads a tree mask as padding; use one of {ATTENTION}")
    try:
        base_model = AutoModelForCausalLM.from_pretrained(path, **_translated(kwargs))
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as problem:
        # transformers hands what it does not know to the model's constructor, before any weight is read.
        name = UNKNOWN.search(str(problem))
        if name is not None and name[1] in kwargs:
            value = shown(kwargs[name[1]])
            raise TypeError(f"unknown argument {name[1]}={value}: see EaModel.from_pretrained") from problem
        given = f" with {', '.join(sorted(kwargs))}" if kwargs else ""
        raise ValueError(f"transformers cannot load {path!r}{given}: {problem}") from problem
    if base_model.config._attn_implementation not in ATTENTION:
        logger.warning(
            "the base model's default attention %r cannot carry a tree mask: using sdpa",
            base_model.config._attn_implementation,
        )
        base_model.set_attn_implementation("sdpa")
    return base_model


def _translated(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments under the names that transformers 5 has for them."""
    kwargs = dict(kwargs)
    bits = {name: kwargs.pop(name) for name in ("load_in_8bit", "load_in_4bit") if name in kwargs}
    if any(bits.values()):
        kwargs.setdefault("quantization_config", BitsAndBytesConfig(**bits))
    if "torch_dtype" in kwargs:
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    return kwargs


def load_tokenizer(path: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer.

    Raises:
        FileNotFoundError: the folder has none.
    """
    if Path(path).is_dir() and not any(Path(path).glob("*token*")):
        raise FileNotFoundError(f"no tokenizer in {path!r}: set model.base_model_name_or_path to where it is")
    return AutoTokenizer.from_pretrained(path, **options)
