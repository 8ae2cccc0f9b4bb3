"""Loss masks come from the template alone: every token of the answers, none besides, whatever the family."""

import sys

import numpy as np
import pytest
from chat_templates import CHATML, FAMILIES, tokenizer_of
from chats import ANSWERS, PLAIN, SYSTEM, answers, turns
from fastchat.conversation import get_conv_template

from eagle.chat import FastChatTemplate, RowError, choose_template
from eagle.data.samples import conversation_samples


@pytest.mark.parametrize("pieces", ["bytes", "words"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", PLAIN)
def test_what_counts_is_every_answer_with_the_token_that_ends_it(name, count, pieces):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, pieces)
    messages = turns(count, family.system)
    (sample,) = conversation_samples(tokenizer, choose_template(tokenizer), messages)
    assert sample.ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    space = " " if name in ("llama-2", "vicuna") else ""
    assert answers(tokenizer, sample) == [space + text + family.end for text in ANSWERS[:count]]
    assert sample.ids.dtype == np.int32 and sample.mask.dtype == bool


@pytest.mark.parametrize("name", PLAIN)
def test_the_last_question_without_an_answer_is_not_taught(name):
    tokenizer = tokenizer_of(FAMILIES[name])
    template = choose_template(tokenizer)
    (whole,) = conversation_samples(tokenizer, template, turns(2))
    (longer,) = conversation_samples(tokenizer, template, turns(3)[:5])
    assert answers(tokenizer, longer) == answers(tokenizer, whole)


@pytest.mark.parametrize("pieces", ["bytes", "words"])
def test_turns_that_a_template_rewrites_are_samples_as_the_model_sees_them(pieces):
    tokenizer = tokenizer_of(FAMILIES["qwen-3"], pieces)
    messages = turns(3)
    messages[1] = {"role": "assistant", "content": "<think>\nfar\n</think>\n\nParis"}
    template = choose_template(tokenizer)
    samples = conversation_samples(tokenizer, template, messages)
    empty = "<think>\n\n</think>\n\n"
    expected = ["<think>\nfar\n</think>\n\nParis", empty + ANSWERS[1], empty + "x"]
    assert [answers(tokenizer, sample) for sample in samples] == [[text + "<|im_end|>"] for text in expected]
    for place, sample in zip((1, 3, 5), samples, strict=True):
        seen = tokenizer.apply_chat_template(messages[: place + 1], return_dict=True)["input_ids"]
        asked = tokenizer.apply_chat_template(messages[:place], return_dict=True, add_generation_prompt=True)
        assert sample.ids.tolist() == seen
        assert not sample.mask[: len(asked["input_ids"])].any() and sample.mask[len(asked["input_ids"])]


@pytest.mark.parametrize("pieces", ["bytes", "words"])
@pytest.mark.parametrize(
    ("name", "family", "end"),
    [
        ("vicuna_v1.1", "vicuna", "</s>"),
        ("llama-2", "llama-2", " </s>"),
        ("mistral", "mistral", "</s>"),
        ("qwen-7b-chat", "qwen", "<|im_end|>"),
    ],
)
def test_fastchat_s_templates_are_marked_alike(name, family, end, pieces):
    family = FAMILIES[family]
    tokenizer = tokenizer_of(family, pieces)
    (sample,) = conversation_samples(tokenizer, FastChatTemplate(name), turns(3, family.system))
    conversation = get_conv_template(name)
    if family.system:
        conversation.set_system_message(SYSTEM["content"])
    for message in turns(3):
        conversation.append_message(conversation.roles[message["role"] == "assistant"], message["content"])
    prompt = conversation.get_prompt()
    begins = family.bos is not None and prompt.startswith(family.bos)
    assert sample.ids.tolist() == tokenizer(prompt, add_special_tokens=not begins)["input_ids"]
    if family.bos is not None:
        assert sample.ids.tolist()[0] == tokenizer.bos_token_id != sample.ids.tolist()[1]
    assert [text.strip() for text in answers(tokenizer, sample)] == [(text + end).strip() for text in ANSWERS]


def test_a_chat_template_without_bos_gets_none():
    tokenizer = tokenizer_of(FAMILIES["llama-2"])
    tokenizer.chat_template = FAMILIES["chatml"].template
    (sample,) = conversation_samples(tokenizer, choose_template(tokenizer), turns(2))
    assert sample.ids.tolist() == tokenizer.apply_chat_template(turns(2), return_dict=True)["input_ids"]
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id] != sample.ids[:1].tolist()


def test_answers_before_the_first_question_are_dropped():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    greeting = {"role": "assistant", "content": "How can I help?"}
    template = choose_template(tokenizer)
    (wanted,) = conversation_samples(tokenizer, template, turns(2, system=True))
    (sample,) = conversation_samples(tokenizer, template, [SYSTEM, greeting, *turns(2)])
    assert sample.ids.tolist() == wanted.ids.tolist()


def reason(family, messages, name=None, template=None) -> str:
    tokenizer = tokenizer_of(FAMILIES[family])
    tokenizer.chat_template = template or tokenizer.chat_template
    with pytest.raises(RowError) as refused:
        conversation_samples(tokenizer, choose_template(tokenizer, name), messages)
    return str(refused.value)


def test_what_a_template_refuses_is_a_reason():
    assert "System role not supported" in reason("gemma", turns(1, system=True))
    assert "roles must alternate" in reason("mistral", [turns(1)[0], *turns(1)])
    assert "no assistant turn" in reason("chatml", turns(1)[:1])
    assert reason("chatml", turns(1)[1:]) == "no user turn"
    assert "user and assistant in turn" in reason("none", [turns(1)[0], *turns(1)], "vicuna_v1.1")
    assert "no assistant turn" in reason("marked", turns(1)[:1])
    mute = CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    assert "marks no token" in reason("marked", turns(1), template=mute)
    deaf = (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}{% endif %}{% endfor %}"
    )
    assert "renders nothing for an assistant's turn" in reason("chatml", turns(1), template=deaf)
    counted = "{{ messages | length }}" + CHATML
    assert "is not how it begins an assistant's turn: with --regenerate" in reason("chatml", turns(1), template=counted)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow does not say where its tokens lie: use a fast tokenizer"):
        conversation_samples(Slow(), FastChatTemplate("vicuna_v1.1"), turns(1))


def test_an_unknown_fastchat_name_lists_close_ones():
    with pytest.raises(ValueError, match=r"no template 'vicuna_v2'; its closest names are .*vicuna_v1\.1"):
        FastChatTemplate("vicuna_v2")


def test_without_fastchat_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastchat.conversation", None)
    with pytest.raises(ImportError, match=r"pip install 'eagle-decoding\[chat\]'"):
        FastChatTemplate("vicuna_v1.1")


def test_a_tokenizer_without_a_template_has_none():
    assert choose_template(tokenizer_of(FAMILIES["none"])) is None
