"""What a template does to a row: what fails is this row's reason, what is rendered already is not rendered twice."""

import json

import pytest
from chat_templates import CHATML, FAMILIES, tokenizer_of
from chats import PLAIN, SYSTEM, answers, turns

from eagle.chat import FastChatTemplate, RowError, choose_template, turn_marks
from eagle.data import prepare
from eagle.data.regenerate import ends_of
from eagle.data.samples import conversation_samples, document_sample

R1 = FAMILIES["r1"]


def made(tmp_path, rows, tokenizer, name="out", **options):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare([str(path)], tokenizer, tmp_path / name, target="base", **options)


# --- a template that asks otherwise than it begins answers


def test_answers_count_where_they_begin_otherwise_than_they_are_asked_for():
    tokenizer = tokenizer_of(R1)
    messages = [SYSTEM, *turns(3)]
    (sample,) = conversation_samples(tokenizer, choose_template(tokenizer), messages)
    assert sample.ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    spoken = [message["content"] + R1.end for message in messages if message["role"] == "assistant"]
    assert answers(tokenizer, sample) == spoken


@pytest.mark.parametrize("opening", ["<think>\n", "<think>", ""])
def test_thoughts_that_a_template_leaves_out_stand_where_the_model_says_them(opening):
    tokenizer = tokenizer_of(R1)
    messages, said = turns(2), "far\n</think>\n\nxParis"
    messages[1] = {"role": "assistant", "content": opening + said}
    first, second = conversation_samples(tokenizer, choose_template(tokenizer), messages)
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(first.ids) == asked + said + R1.end and asked.endswith("<think>\n")
    assert answers(tokenizer, first) == [said + R1.end]
    assert second.ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert answers(tokenizer, second) == [messages[3]["content"] + R1.end]


@pytest.mark.parametrize("name", ["chatml", "silent"])
def test_thoughts_are_kept_whatever_asks_for_them(name):
    tokenizer = tokenizer_of(FAMILIES[name])
    tokenizer.chat_template = FAMILIES[name].template.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    messages, said = turns(1), "<think>\nfar\n</think>\n\nParis"
    messages[1] = {"role": "assistant", "content": said}
    (sample,) = conversation_samples(tokenizer, choose_template(tokenizer), messages)
    asked = "".join(f"<|im_start|>{text}" for text in (f"user\n{messages[0]['content']}<|im_end|>\n", "assistant\n"))
    assert tokenizer.decode(sample.ids) == asked + said + "<|im_end|>\n"
    assert answers(tokenizer, sample) == [said + "<|im_end|>"]


def test_the_token_that_ends_turns_is_known_of_such_a_template():
    tokenizer = tokenizer_of(R1)
    nothing = type("Defaults", (), {"eos_token_id": None})
    assert ends_of(nothing, tokenizer, choose_template(tokenizer)) == [tokenizer.eos_token_id]


# --- rows that a template cannot take


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("{{ message['content'] + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ message['content'].index('no') }}", "ValueError"),
        ("{{ '{a}'.format() }}", "KeyError"),
    ],
)
def test_a_template_that_fails_is_the_reason_of_the_row(tmp_path, program, failure):
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    guard = "{% for message in messages %}{% if 'bad' in message['content'] %}" + program + "{% endif %}{% endfor %}"
    rows = [{"data": ["Hello", "Hi"]}, {"data": ["Hello", "bad"]}]
    for name in ("chatml", "marked"):
        tokenizer.chat_template = guard + FAMILIES[name].template
        data = made(tmp_path, rows, tokenizer, name)
        assert len(data) == 1 and f"line 2: the chat template fails: {failure}: " in data.summary["first"][0]
        with pytest.raises(ValueError, match=f"line 2: the chat template fails: {failure}"):
            made(tmp_path, rows, tokenizer, f"{name} strict", strict=True)


def test_a_missing_jinja_is_no_reason_of_a_row(monkeypatch):
    tokenizer = tokenizer_of(FAMILIES["chatml"])

    def apply(*messages, **options):
        raise ImportError("apply_chat_template requires jinja2>=3.1.6")

    monkeypatch.setattr(tokenizer, "apply_chat_template", apply)
    with pytest.raises(ImportError, match="requires jinja2"):
        choose_template(tokenizer).render(turns(1), asks=True)


def test_a_turn_that_a_template_leaves_out_is_a_reason(tmp_path):
    tool = {"role": "tool", "content": "3"}
    row, count = {"messages": [turns(1)[0], tool, turns(1)[1]]}, "<|im_start|>tool\n3<|im_end|>"
    chatml = tokenizer_of(FAMILIES["chatml"])
    assert count in chatml.decode(made(tmp_path, [row], chatml)[0].ids)
    chatml.chat_template = CHATML.replace(
        "{{ '<|im_start|>' + m", "{% if message.role != 'tool' %}{{ '<|im_start|>' + m"
    )
    chatml.chat_template = chatml.chat_template.replace("{% endfor %}", "{% endif %}{% endfor %}")
    data = made(tmp_path, [row, {"messages": turns(1)}], chatml, "deaf")
    assert len(data) == 1 and "the template leaves out turn 2, of the role 'tool'" in data.summary["reasons"]


def test_marks_of_the_template_keep_what_is_kept_without_them():
    greeting = {"role": "assistant", "content": "How can I help?"}
    for name in ("marked", "chatml"):
        tokenizer = tokenizer_of(FAMILIES[name])
        template = choose_template(tokenizer)
        (whole,) = conversation_samples(tokenizer, template, [SYSTEM, *turns(2)])
        (longer,) = conversation_samples(tokenizer, template, [SYSTEM, greeting, *turns(3)[:5]])
        assert tokenizer.decode(longer.ids).rstrip() == tokenizer.decode(whole.ids).rstrip()
        assert answers(tokenizer, longer) == answers(tokenizer, whole)
        with pytest.raises(RowError, match="no assistant turn after a user's"):
            conversation_samples(tokenizer, template, [SYSTEM, turns(1)[0]])


# --- texts that are rendered already


@pytest.mark.parametrize("name", [*PLAIN, "qwen-3", "r1"])
def test_a_text_that_is_rendered_already_is_refused_and_a_document_is_not(tmp_path, name):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    rendered = tokenizer.apply_chat_template(turns(2, family.system), tokenize=False)
    document = (family.bos or "") + "A chat about <think> and models.\nuser\n" + family.eos
    data = made(tmp_path, [{"text": rendered}, {"text": document}], tokenizer)
    (why,) = data.summary["reasons"]
    assert why.startswith("a text that a chat template has rendered already (") and len(data) == 1
    assert tokenizer.decode(data[0].ids) == document


def test_the_words_of_a_fastchat_template_are_known_too(tmp_path):
    tokenizer = tokenizer_of(FAMILIES["vicuna"])
    assert turn_marks(tokenizer, FastChatTemplate("vicuna_v1.1")) == ("ASSISTANT:",)
    rows = [{"text": FastChatTemplate("vicuna_v1.1").render(turns(2), asks=False)}, {"text": "A curious user."}]
    data = made(tmp_path, rows, tokenizer, template="vicuna_v1.1")
    assert len(data) == 1 and "rendered already ('ASSISTANT:' in it)" in data.summary["first"][0]


def test_a_document_has_one_bos_whether_it_brings_its_own_or_not():
    tokenizer = tokenizer_of(FAMILIES["llama-2"])
    one, own = document_sample(tokenizer, "Hello"), document_sample(tokenizer, "<s>Hello")
    assert one.ids.tolist() == own.ids.tolist() and one.ids.tolist().count(tokenizer.bos_token_id) == 1
    assert own.mask.all() and len(own.mask) == len(own.ids)
