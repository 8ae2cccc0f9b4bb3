"""Streamed text equals collected text, and stop strings end a row where `generate` ends it."""

import asyncio
import threading

import pytest
import torch
from pairs import ea_model
from same_call import both, small_base
from scripted import ScriptedDrafter
from streams import TARGET, Log, tokenizer
from transformers import (
    AsyncTextIteratorStreamer,
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

TEXT = "naïve café: 日本語のテスト, 🙂🚀 done.\nSTOP here"
PROMPT = "def"


class Say(LogitsProcessor):
    """Makes the model say a text: multi-byte characters come as several tokens."""

    def __init__(self, text: str) -> None:
        self.prompt = len(tokenizer()(PROMPT).input_ids)
        self.script = tokenizer()(text, add_special_tokens=False).input_ids

    def __call__(self, input_ids, scores):
        place = input_ids.shape[1] - self.prompt
        if place < len(self.script):
            scores = torch.full_like(scores, -1e9)
            scores[:, self.script[place]] = 0.0
        return scores


@pytest.fixture
def model(tmp_path):
    model = ea_model(tmp_path, small_base(len(tokenizer()), (tokenizer().eos_token_id,)), "eagle")
    model.base_model_name_or_path = str(TARGET)
    return model


def call(**extras):
    ids = tokenizer()([PROMPT], return_tensors="pt").input_ids
    say = LogitsProcessorList([Say(TEXT)])
    return {"ids": ids, "mask": None, "logits_processor": say, "do_sample": False, "max_new_tokens": 60, **extras}


def spoken(ids) -> str:
    return tokenizer().decode(ids[0, len(tokenizer()(PROMPT).input_ids) :], skip_special_tokens=True)


def test_the_text_has_characters_of_several_tokens(model):
    assert len(Say("日本語🙂").script) > 6
    want, got = both(model, **call())
    assert torch.equal(got, want) and spoken(got).startswith(TEXT)
    assert model.stats.acceptance_length > 1.5


@pytest.mark.parametrize("stop", ["STOP", "語の", ["zebra", "🚀"], "ïve", " done.\nST", "é"])
@pytest.mark.parametrize("where", ["call", "config", "model"])
def test_stop_strings_end_where_generate_ends(model, stop, where):
    config = model.base_model.generation_config
    arguments = call()
    ids = arguments.pop("ids")
    del arguments["mask"]
    if where == "config":
        own = type(config)(stop_strings=stop, do_sample=False, max_new_tokens=60)
        arguments = {"logits_processor": arguments["logits_processor"], "generation_config": own}
    elif where == "call":
        arguments["stop_strings"] = stop
    try:
        config.stop_strings = stop if where == "model" else None
        want = model.base_model.generate(ids, tokenizer=tokenizer(), **arguments)
        model.ea_layer = ScriptedDrafter(want, model.vocab_size, ids.shape[1], (tokenizer().eos_token_id,))
        assert torch.equal(model.generate(ids, **arguments), want)  # with the model's own tokenizer
        assert torch.equal(model.generate(ids, tokenizer=tokenizer(), **arguments), want)
    finally:
        config.stop_strings = None
    assert spoken(want) in TEXT and len(spoken(want)) < len(TEXT)


def test_text_is_streamed_token_by_token(model, capsys):
    want, _ = both(model, **call())
    capsys.readouterr()
    both(model, **call(streamer=TextStreamer(tokenizer(), skip_prompt=True)))
    printed = capsys.readouterr().out
    half = len(printed) // 2  # base.generate's, then ours
    assert printed[:half] == printed[half:] == spoken(want) + "\n"


@pytest.mark.parametrize("batch", [1, 2])
def test_a_streamer_is_given_what_generate_gives_it(model, batch):
    logs = [Log(), Log()]
    arguments = call(stop_strings="🙂", tokenizer=tokenizer())
    ids = arguments.pop("ids").repeat(batch, 1)
    del arguments["mask"]
    waiting = iter(logs)
    both(model, ids, None, **{"make streamer": lambda: next(waiting)}, **arguments)
    assert logs[0].given == logs[1].given and logs[0].ended and logs[1].ended
    assert len(logs[0].given) > 10


def speaking(model, streamer) -> threading.Thread:
    arguments = call(streamer=streamer)
    ids = arguments.pop("ids")
    del arguments["mask"]
    thread = threading.Thread(target=model.generate, args=(ids,), kwargs=arguments)
    thread.start()
    return thread


def test_an_iterator_in_another_thread_gets_the_text(model):
    want, _ = both(model, **call())
    streamer = TextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=60)
    thread = speaking(model, streamer)
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == spoken(want) and len(pieces) > 10


def test_an_asynchronous_iterator_gets_the_text(model):
    want, _ = both(model, **call())

    async def collect():
        streamer = AsyncTextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=60)
        thread = speaking(model, streamer)
        pieces = [piece async for piece in streamer]
        thread.join()
        return pieces

    assert "".join(asyncio.run(collect())) == spoken(want)


def test_a_pipeline_says_what_it_says_with_the_base(model):
    prompts = [PROMPT, "import os"]
    said = []
    tokenizer().pad_token = tokenizer().pad_token or tokenizer().eos_token
    for one in (model.base_model, model):
        pipe = pipeline("text-generation", model=one, tokenizer=tokenizer())
        torch.manual_seed(2)
        said.append(pipe(prompts, max_new_tokens=12, do_sample=True, batch_size=2))
        torch.manual_seed(2)
        said[-1] += pipe(prompts[0], max_new_tokens=12, do_sample=True, num_return_sequences=3)
    assert said[0] == said[1]
