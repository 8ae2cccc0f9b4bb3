"""Answers from a server: any that speaks OpenAI's chat completions and serves the target, as vLLM and SGLang do.

A server says texts. Their ids are those of the template with the answer in it, up to the token that ends the turn.
"""

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from eagle.chat import Message, RowError, Template
from eagle.data.answer_rules import AnswerRules, loops
from eagle.data.answers import Answer, Question
from eagle.data.samples import conversation_samples

KEY = "OPENAI_API_KEY"
TRIES = 8  # with waits that double from a second on: about two minutes
LONGEST_WAIT = 60.0
SECONDS = 600.0  # until an answer is given up, and asked for again
SHOWN = 200  # characters of what a server says
# Servers take a model's own defaults, often filters and penalties, where a request does not say otherwise.
WHOLE = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
NO_LIST = (404, 405, 501)  # a server that does not list its models
logger = logging.getLogger(__name__)


class EndpointAuthor:
    """A server as the author of answers; it is asked what it serves before any work.

    Args:
        endpoint: its URL, with or without `/v1`.
        model: what it calls the target.
        tokenizer, template: of the conversations.
        temperatures: 0 is greedy, else the whole distribution, without any filter; of several every conversation
            takes one.
        max_new_tokens: most tokens of an answer.
        seed: of sampling; every question has its own.
        concurrency: questions that are asked at once.
        max_length: most tokens of a conversation; answers are not written beyond.
        wait: seconds before the second try; they double with each more.
        seconds: until a request is given up.

    Attributes:
        longest: most tokens of a prompt that is answered.

    Raises:
        ConnectionError: no server answers there.
        PermissionError: it wants a key.
        ValueError: it does not serve the model, or is no such server.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        tokenizer: Any,
        template: Template,
        *,
        temperatures: Sequence[float] = (0.0,),
        max_new_tokens: int = 512,
        seed: int = 0,
        concurrency: int = 32,
        max_length: int | None = None,
        wait: float = 1.0,
        seconds: float = SECONDS,
    ) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"--endpoint {endpoint} must be a URL, as http://localhost:8000/v1")
        self.url = endpoint.rstrip("/") if endpoint.rstrip("/").endswith("/v1") else f"{endpoint.rstrip('/')}/v1"
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.concurrency, self.wait = concurrency, wait
        self.tokens_made: Callable[[int], None] | None = None
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request
        key = os.environ.get(KEY)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(seconds, connect=min(seconds, 10)),
            limits=httpx.Limits(max_connections=concurrency + 1, max_keepalive_connections=concurrency + 1),
        )
        self._stopped = threading.Event()
        limits = [limit for limit in (max_length, self._positions()) if limit]
        self.rules = AnswerRules(
            tokenizer=tokenizer,
            ends=[],
            temperatures=temperatures,
            max_new_tokens=max_new_tokens,
            most=min(limits, default=None),
            seed=seed,
        )
        self.longest = self.rules.longest

    def write(self, take: Callable[[], Question | None]) -> Iterator[Answer]:
        """Yield answers, many questions at a time; see `eagle.data.answers.Author`.

        Raises:
            ConnectionError, PermissionError, ValueError: an answer that does not come, after the others that do.
        """
        asked: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        given: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        self._stopped.clear()
        threads = [
            threading.Thread(target=self._work, args=(asked, given), daemon=True) for _ in range(self.concurrency)
        ]
        for thread in threads:
            thread.start()
        waiting, failure = 0, None
        try:
            while True:
                while failure is None and waiting < self.concurrency and (question := take()) is not None:
                    asked.put(question)
                    waiting += 1
                if not waiting:
                    break
                answer = given.get()
                waiting -= 1
                if isinstance(answer, Answer):
                    yield self._with_ids(answer)  # here: one tokenizer does not work for several threads
                elif failure is None:
                    failure = answer
                    self._stopped.set()  # nothing is tried again
        finally:
            self._stopped.set()
            for _ in threads:
                asked.put(None)
        if failure is not None:
            raise failure

    def _work(
        self, asked: "queue.SimpleQueue[Question | None]", given: "queue.SimpleQueue[Answer | Exception]"
    ) -> None:
        while (question := asked.get()) is not None:
            answer: Answer | Exception = RuntimeError("a thread has died")
            try:
                answer = self._answer(question)
            except (OSError, ValueError) as failure:
                answer = failure
            finally:
                given.put(answer)

    def _answer(self, question: Question) -> Answer:
        temperature = self.rules.temperature(question)
        body = {
            **{"model": self.model, "messages": list(question.messages), "max_tokens": self.rules.room(question)},
            **{"temperature": temperature, **WHOLE},
            # That any server's integers hold.
            **({"seed": self.rules.noise_seed(question) >> 32} if temperature else {}),
        }
        said = self._sent("POST", "chat/completions", body)
        try:
            (choice,) = said["choices"]
            message, ended = choice["message"], choice["finish_reason"] != "length"
            text = (message.get("content") or "").strip() if not message.get("tool_calls") else ""
        except (KeyError, TypeError, ValueError, AttributeError) as other:
            raise ValueError(f"{self.url} answers what is no chat completion: {_short(said)}") from other
        if message.get("reasoning_content") or message.get("reasoning"):
            raise ValueError(
                f"{self.url} takes thoughts out of what the model says: start the server without a reasoning parser"
            )
        return Answer(question, [], text, ended)

    def _with_ids(self, answer: Answer) -> Answer:
        ids = self._ids(answer.question, answer.text, answer.ended)
        if self.tokens_made is not None:
            self.tokens_made(len(ids))
        return replace(answer, ids=ids, looped=not answer.ended and loops(ids))

    def _ids(self, question: Question, text: str, ended: bool) -> list[int]:
        """Return the ids of an answer as the template writes it, without its end where it came to none."""
        answer: Message = {"role": "assistant", "content": text}
        if not text:
            return []
        plain: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        try:
            sample = conversation_samples(self.tokenizer, self.template, [*question.messages, answer])[-1]
        except RowError:
            return plain
        last = sample.ids[np.flatnonzero(~sample.mask)[-1] + 1 :].tolist()
        if sample.ids[: len(question.prompt)].tolist() == question.prompt:
            last = sample.ids[len(question.prompt) :][sample.mask[len(question.prompt) :]].tolist()
        added = set(self.tokenizer.get_added_vocab().values())
        while last and not ended and last[-1] in added:
            last.pop()
        return last

    def _positions(self) -> int | None:
        """See that the model is served; return how many tokens it may have, where the server says so."""
        try:
            said = self._sent("GET", "models", None, tries=2)
        except FileNotFoundError:
            return None
        try:
            models = {one["id"]: one.get("max_model_len") for one in said["data"]}
        except (KeyError, TypeError, AttributeError) as other:
            raise ValueError(f"{self.url}/models lists no models: {_short(said)}") from other
        if self.model not in models:
            raise ValueError(f"{self.url} does not serve {self.model!r}, but {', '.join(models) or 'nothing'}")
        found = models[self.model]
        return found if isinstance(found, int) else None

    def _sent(self, method: str, path: str, body: dict[str, Any] | None, tries: int | None = None) -> Any:
        """Send a request until it is answered, and return the JSON of that.

        Raises:
            FileNotFoundError: the server knows no such path.
            ConnectionError: none answers, or says it cannot, however often it is tried.
            PermissionError: it wants a key.
            ValueError: it refuses the request, or does not answer in JSON.
        """
        tries = tries or TRIES
        for number in range(1, tries + 1):
            wait = self.wait * 2 ** (number - 1)
            try:
                answer = self._client.request(method, f"{self.url}/{path}", json=body)
            except httpx.InvalidURL as failure:
                raise ValueError(f"--endpoint {self.url} is no URL: {failure}") from failure
            except httpx.TransportError as failure:
                why = str(failure) or type(failure).__name__
            else:
                if (answer.status_code != 429 and answer.status_code < 500) or answer.status_code in NO_LIST:
                    return self._read(answer)
                why = f"status {answer.status_code}, {_short(answer.text)}"
                wait = max(wait, _seconds(answer.headers.get("retry-after")))
            if number < tries and self._stopped.wait(min(wait, LONGEST_WAIT)):
                break
        raise ConnectionError(f"no answer from {self.url}, tried {number} times ({why})")

    def _read(self, answer: httpx.Response) -> Any:
        if answer.status_code in NO_LIST:
            message = f"{self.url} knows no such path or model (status {answer.status_code}, {_short(answer.text)})"
            raise FileNotFoundError(message)
        if answer.status_code in (401, 403):
            raise PermissionError(f"{self.url} wants another key in {KEY} (status {answer.status_code})")
        if answer.status_code != 200:
            raise ValueError(f"{self.url} refuses (status {answer.status_code}): {_short(answer.text)}")
        try:
            return answer.json()
        except ValueError as broken:
            raise ValueError(f"{self.url} does not answer in JSON: {_short(answer.text)}") from broken


def _short(said: Any) -> str:
    words = " ".join(str(said).split())
    return words if len(words) <= SHOWN else words[: SHOWN - 1] + "…"


def _seconds(words: str | None) -> float:
    """Return the seconds that a server asks to wait; 0 where it does not say, or says a date."""
    try:
        return max(0.0, float(words or 0))
    except ValueError:
        return 0.0
