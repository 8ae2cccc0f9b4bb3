"""The page's command line: local unless a password guards it, the pair that is meant, refusals in words."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from pages import PAIR, ScriptedSession, free_port, step

from eagle.application import loading, webui
from eagle.application.page import Page, PageOptions
from eagle.chat import FastChatTemplate

NAMED = ["--base-model-path", f"{PAIR}/target", "--ea-model-path", f"{PAIR}/eagle3_head"]


@pytest.fixture
def launched(monkeypatch):
    """How pages are launched, in place of launching them; loading is left out too."""
    found = SimpleNamespace(loaded=[], launched=[])

    class Idle:
        def launch(self, *place, **keywords):
            found.launched.append((place, keywords))
            return "http://127.0.0.1:7860/", ""

        def close(self):
            pass

    monkeypatch.setattr(webui, "load", lambda *pair: found.loaded.append(pair) or Idle())
    monkeypatch.setattr(webui, "wait", lambda page: None)
    monkeypatch.delenv("EAGLE_WEBUI_AUTH", raising=False)
    return found


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--share"], "--share opens the page to the internet: give --auth"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 opens the page to other machines: give --auth"),
        (["--host", "my-machine"], "--auth"),
        (["--host", "::"], "--auth"),
        (["--share", "--auth", "me"], "USER:PASSWORD"),
        (["--auth", ":secret"], "USER:PASSWORD"),
        (["--base-model-path", "x"], "--ea-model-path go together"),
        (["--ea-model-path", "x"], "--ea-model-path go together"),
        (["--load-in-8bit", "--load-in-4bit"], "exclude each other"),
        (["--max-new-token", "0"], "--max-new-token"),
        (["--port", "70000"], "--port"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_loaded(launched, capsys, argv, words):
    assert webui.main(argv) == 2
    assert words in capsys.readouterr().err and not launched.loaded


def test_the_page_is_local_and_not_shared_unless_asked_with_a_password(launched, monkeypatch):
    assert webui.main(NAMED) == 0
    assert webui.main([*NAMED, "--host", "localhost", "--port", "7999"]) == 0
    assert webui.main([*NAMED, "--share", "--host", "0.0.0.0", "--auth", "me:a:b"]) == 0
    monkeypatch.setenv("EAGLE_WEBUI_AUTH", "you:secret")
    assert webui.main([*NAMED, "--host", "0.0.0.0"]) == 0
    local, chosen, shared, guarded = launched.launched
    assert local == (("127.0.0.1", None), {"share": False, "auth": None})
    assert chosen == (("localhost", 7999), {"share": False, "auth": None})
    assert shared == (("0.0.0.0", None), {"share": True, "auth": ("me", "a:b")})
    assert guarded == (("0.0.0.0", None), {"share": False, "auth": ("you", "secret")})


def test_no_environment_shares_the_page_and_no_analytics_are_sent(monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    page = Page(lambda: ScriptedSession([step(["a"], 0)]), PageOptions("a", "b", False, 8))
    asked = {}
    monkeypatch.setattr(page.blocks, "launch", lambda **keywords: asked.update(keywords) or (None, "here", None))
    assert page.launch("127.0.0.1", None, share=False, auth=None) == ("here", "")
    assert asked["share"] is False and asked["server_name"] == "127.0.0.1" and not page.blocks.analytics_enabled
    assert "fonts.googleapis.com" not in str(asked["theme"]._stylesheets)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--base-model-path", "no/such", "--ea-model-path", "no/head"], "no/"),
        ([*NAMED, "--no-eagle3"], "use_eagle3=False"),
        ([*NAMED, "--model-type", "llama3"], "has none"),
        ([*NAMED, "--model-type", "vicunna"], "vicuna"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_in_words(capsys, argv, words):
    pytest.importorskip("fastchat")
    assert webui.main(argv) == 1
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_without_arguments_it_is_the_chat_pair_where_it_is_installed_else_the_tiny_pair(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "eagle", SimpleNamespace(__file__=str(tmp_path / "site-packages/eagle/__init__.py")))
    none = SimpleNamespace(base_model_path=None, ea_model_path=None)
    with pytest.raises(ValueError, match="no pair is shipped"):
        loading.paths_of(none)
    for target, head in reversed(loading.PAIRS):
        for folder in (target, head):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
        assert loading.paths_of(none) == (str(target), str(head))
    assert loading.paths_of(SimpleNamespace(base_model_path="a", ea_model_path="b")) == ("a", "b")


def test_trees_are_what_is_fastest_unless_a_size_is_asked(launched):
    assert webui.main([]) == webui.main(NAMED) == webui.main([*NAMED, "--total-token", "8"]) == 0
    assert [args.total_token for _, _, args in launched.loaded] == [-1, -1, 8]


def test_a_missing_gradio_is_named_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert webui.main(NAMED) == 1
    assert "pip install 'eagle-decoding[webui]'" in capsys.readouterr().err


def test_the_reference_s_model_types_are_templates():
    pytest.importorskip("fastchat")
    assert {"vicuna", "llama2", "llama3"} <= set(webui.TEMPLATES)
    for name in set(webui.TEMPLATES.values()) - {webui.OWN}:
        FastChatTemplate(name)


def test_help_names_the_reference_s_flags_and_loads_nothing():
    code = (
        "import sys; from eagle.application.webui import main; status = main(['--help']);"
        "assert not {'torch', 'gradio', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    flags = "ea-model-path base-model-path model-type total-token max-new-token load-in-8bit load-in-4bit no-eagle3"
    for flag in (*flags.split(), "port", "host", "share", "auth"):
        assert f"--{flag}" in said


def test_the_command_serves_until_ctrl_c():
    port = free_port()
    code = (  # a shell's background jobs would ignore Ctrl-C
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from eagle.application.webui import main; sys.exit(main())"
    )
    argv = [sys.executable, "-c", code, *NAMED, "--port", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().split() == [NAMED[1], "with", NAMED[3]]
        assert f"open http://127.0.0.1:{port}/ in a browser on this machine" in process.stdout.readline()
        assert "EAGLE" in httpx.get(f"http://127.0.0.1:{port}/").text
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert rest == "closed\n" and process.returncode == 0 and "Traceback" not in errors


def test_a_port_that_is_taken_is_said(capsys):
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PYTHONUNBUFFERED": "1"},
    ) as other:
        port = other.stdout.readline().split("port ")[1].split()[0]
        try:
            assert webui.main([*NAMED, "--port", port]) == 1
        finally:
            other.terminate()
    assert port in capsys.readouterr().err


def test_the_style_is_part_of_the_package():
    pyproject = Path("pyproject.toml").read_text()
    assert "application/*.css" in pyproject and Path("eagle/application/page.css").is_file()
