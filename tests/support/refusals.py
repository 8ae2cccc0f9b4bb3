"""How everything wrong is refused: one sentence of ours, raised by our own code, soon and cheaply."""

import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import eagle

PACKAGE = Path(eagle.__file__).parent
SECONDS, BYTES, LETTERS = 10, 2 << 30, 600
KINDS = (ValueError, TypeError, NotImplementedError, OSError)


def fault_of(work: Callable[[], Any]) -> tuple[str | None, str]:
    """Do what is wrong; return what is wrong with how it was refused, None where nothing is, and the words."""
    started, before = time.perf_counter(), psutil.Process().memory_info().rss
    try:
        answer = work()
        for _ in answer if hasattr(answer, "__next__") else ():
            pass
    except KINDS as refusal:
        words, last = str(refusal), traceback.extract_tb(refusal.__traceback__)[-1]
    else:
        return "silence", ""
    if time.perf_counter() - started > SECONDS:
        return "a long wait", words
    if psutil.Process().memory_info().rss - before > BYTES:
        return "gigabytes", words
    if PACKAGE not in Path(last.filename).parents or not (last.line or "").startswith("raise"):
        return f"{last.filename}:{last.lineno} raises {words!r}", words
    is_sentence = 10 < len(words) < LETTERS and "Traceback" not in words and "weights_only" not in words
    return (None if is_sentence else f"no sentence: {words!r}"), words


def assert_refused_in_words(work: Callable[[], Any], *patterns: str) -> None:
    """Check that it is refused as everything is, in words that match every pattern."""
    fault, words = fault_of(work)
    assert fault is None, fault
    assert all(re.search(pattern, words) for pattern in patterns), words
