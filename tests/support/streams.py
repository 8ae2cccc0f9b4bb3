"""A real tokenizer, and a streamer that writes down what it gets."""

from functools import cache

from places import PAIR
from transformers import (
    AutoTokenizer,
)
from transformers.generation.streamers import BaseStreamer

TARGET = PAIR / "target"


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(TARGET)


class Log(BaseStreamer):
    """Remembers what it was given."""

    def __init__(self):
        self.given, self.ended = [], False

    def put(self, value):
        self.given.append(value.tolist())

    def end(self):
        self.ended = True
