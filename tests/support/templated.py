"""The tiny pair's target as a chat model: the same weights, and a tokenizer with a chat template."""

import shutil
from pathlib import Path

from places import PAIR
from transformers import AutoTokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '\n' + m['role'] + ': ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
)


def templated_target(folder: Path, template: str = TEMPLATE) -> Path:
    """Copy the target to `folder/target` and give its tokenizer a template."""
    place = folder / "target"
    shutil.copytree(PAIR / "target", place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(place)
    return place
