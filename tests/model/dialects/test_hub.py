"""Heads on the Hub: a server on this machine stands in for it, found by HF_ENDPOINT as any other would be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from architectures import base_model
from hub_server import hub
from pairs import random_head

from eagle.model.dialects.checkpoint import save_head

# Answers a line of JSON with another, in a process of its own: HF_ENDPOINT is read when the client is imported.
WORKER = """
import json, sys
from transformers import AutoConfig
from eagle.model.dialects.checkpoint import load_head
from eagle.model.dialects.publish import push_folder
target = AutoConfig.for_model("llama", hidden_size=32, vocab_size=89, num_hidden_layers=7)
print("ready", flush=True)
for line in sys.stdin:
    what, arguments = json.loads(line)
    try:
        if what == "push":
            answer = ["pushed", push_folder(repository="someone/head", private=True, **arguments)]
        else:
            head = load_head("someone/head", target, **arguments)
            answer = ["read", float(sum(weight.double().sum() for weight in head.parameters()))]
    except (OSError, ValueError) as refusal:
        answer = [type(refusal).__name__, str(refusal)]
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process whose Hub is the server."""

    def __init__(self, address: str, folder: Path) -> None:
        more = {"HF_ENDPOINT": address, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
        more["HF_HUB_OFFLINE"] = "0"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], env={**os.environ, **more}, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, what: str, **arguments: object) -> list:
        self.process.stdin.write(json.dumps([what, arguments]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    save_head(random_head(base_model("llama"), "eagle3"), folder / "repository")
    (folder / "repository" / "README.md").write_text("a head\n")
    with hub(folder / "repository") as server:
        server.client = Client(f"http://127.0.0.1:{server.server_address[1]}", folder / "home")
        yield server
        server.client.process.kill()
        server.client.process.wait()


@pytest.fixture
def load(served, tmp_path):
    """Load the head with an empty cache."""
    served.mode = ""
    served.asked.clear()
    return lambda **arguments: served.client.ask("load", cache_dir=str(tmp_path / "cache"), **arguments)


def test_a_head_is_downloaded_once_and_found_offline(served, load):
    head = random_head(base_model("llama"), "eagle3")
    wanted = float(sum(weight.double().sum() for weight in head.parameters()))
    assert load(revision="v1") == ["read", pytest.approx(wanted)]
    assert all("/v1/" in path for path, _ in served.asked if path.startswith("/someone"))
    served.mode = "404"
    assert load(revision="v1", local_files_only=True) == ["read", pytest.approx(wanted)]


FAULTS = {
    "401": ("401", {}, "FileNotFoundError", "'someone/head' may not be read: pass token= or run `hf auth login`"),
    "404": ("404", {}, "FileNotFoundError", "neither a folder nor a Hub repository that may be read"),
    "gated": ("gated", {}, "FileNotFoundError", "is gated: ask for access on its page, then pass token="),
    "revision": ("", {"revision": "v9"}, "FileNotFoundError", "has no revision 'v9'"),
    "truncated": ("truncated", {}, "OSError", "model.safetensors of Hub repository 'someone/head' could not be downl"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_hub_refuses_is_said_in_words(served, load, fault):
    served.mode, keywords, kind, words = FAULTS[fault]
    found = load(**keywords)
    assert found[0] == kind and words in found[1] and len(found[1]) < 600, found


def test_an_empty_cache_offline_says_that_nothing_is_there(load):
    kind, words = load(local_files_only=True)
    assert kind == "FileNotFoundError" and "is not in the cache" in words and "download it while online" in words


def test_a_token_opens_a_private_repository(served, load):
    served.mode = "private"
    assert load(token="secret")[0] == "read"
    assert {token for _, token in served.asked} >= {"Bearer secret"}


def test_a_push_sends_every_file_as_it_is_and_a_stranger_s_is_refused_in_words(served):
    served.pushed.clear()
    folder = Path(served.folder)
    found = served.client.ask("push", folder=str(folder), token="secret")
    assert found[0] == "pushed" and "/someone/head/commit/" in found[1], found
    assert served.pushed == {file.name: file.read_bytes() for file in folder.iterdir()}
    served.pushed.clear()
    kind, words = served.client.ask("push", folder=str(folder), token="wrong")
    assert kind == "OSError" and "'someone/head' could not be written to" in words and not served.pushed
