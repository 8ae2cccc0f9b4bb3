"""Well-known chat templates, in the words their models ship, and a small tokenizer to hang them on."""

from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}" + ALTERNATE + "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{{ bos_token + messages[0]['content'] + ' ' }}{% else %}{% set loop_messages = messages %}"
    "{{ bos_token + 'A chat between a curious user and an artificial intelligence assistant. ' }}{% endif %}"
    "{% for message in loop_messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'].strip() + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = "{% for message in messages %}" + TURN + "{% endfor %}" + ASK
QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\\n' }}{% endif %}" + CHATML
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# Qwen3 drops the thoughts of every turn but the last, and gives that one thoughts even where it had none.
QWEN_3 = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% set content = message['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{% set thought = message['content'].split('</think>')[0].split('<think>')[-1].strip('\\n')"
    " if '</think>' in message['content'] else '' %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ content + '<|im_end|>\\n' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + ASK
)
# DeepSeek-R1 asks for thoughts, and renders answers without them.
R1 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
# The same marks as ChatML, but nothing asks the assistant to speak: its header comes with its answer.
SILENT = CHATML.removesuffix(ASK)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}" + ASK
)


@dataclass(frozen=True)
class Family:
    """A template, the tokens it speaks of, what ends an answer, and whether it knows system messages."""

    template: str
    bos: str | None
    eos: str
    end: str
    marks: tuple[str, ...] = ()
    system: bool = True


IM = ("<|im_start|>", "<|endoftext|>", "<think>", "</think>")
FAMILIES = {
    "llama-2": Family(LLAMA_2, "<s>", "</s>", " </s>"),
    "llama-3": Family(LLAMA_3, "<|begin|>", "<|eot_id|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "vicuna": Family(VICUNA, "<s>", "</s>", "</s>"),
    "qwen": Family(QWEN, None, "<|im_end|>", "<|im_end|>", IM),
    "mistral": Family(MISTRAL, "<s>", "</s>", "</s>", system=False),
    "chatml": Family(CHATML, None, "<|im_end|>", "<|im_end|>", IM),
    "gemma": Family(GEMMA, "<bos>", "<eos>", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), system=False),
    "silent": Family(SILENT, None, "<|im_end|>", "<|im_end|>", IM),
    "marked": Family(MARKED, None, "<|im_end|>", "<|im_end|>", IM),
    "qwen-3": Family(QWEN_3, None, "<|im_end|>", "<|im_end|>", IM),
    "r1": Family(
        R1,
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "none": Family("", "<s>", "</s>", "</s>"),
}
TEXT = [
    "A chat between a curious user and an artificial intelligence assistant. USER: Hello ASSISTANT: Hi there!",
    "What is the capital of France? The capital of France is Paris.\n\nIt has two million people. [INST] [/INST]",
    "<<SYS>>\nYou are Qwen, created by Alibaba Cloud.\n<</SYS>>\n\nuser\nassistant\nsystem\nmodel\n",
]


@cache
def _trained(pieces: str, added: tuple[str, ...], bos: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=pieces == "words"))
    if pieces == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # as SentencePiece does: a space is a part of the word that follows
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = [*map(chr, range(32, 127)), "\n", "▁", "é", "\t"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(added), initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    if bos is not None:
        template = processors.TemplateProcessing(f"{bos} $A", None, [(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = template
    elif pieces == "bytes":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def tokenizer_of(family: Family, pieces: str = "bytes") -> PreTrainedTokenizerFast:
    """Return a tokenizer of `bytes` or of `words` with a family's template; it adds the BOS where there is one."""
    added = tuple(token for token in dict.fromkeys((family.bos, family.eos, *family.marks)) if token)
    backend = Tokenizer.from_str(_trained(pieces, added, family.bos).to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos)
    tokenizer.chat_template = family.template or None
    return tokenizer
