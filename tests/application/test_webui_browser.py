"""The page in a real browser: what a person types, sees, stops, edits and closes."""

import re
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from pages import CHROMIUM, HOSTILE, ScriptedSession, chat_model, served, step, tree

from eagle.application.session import Session

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'eagle-decoding[dev]'")
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Chromium: apt install chromium")
TEXT = "def read_lines(path):\n    "
PATIENCE = 120_000
"""Milliseconds: test machines are busy."""
abroad: list[str] = []
watched = {"now": False}


def watch(event, arguments):
    """Note whom this process wants to speak to while the page is up."""
    if not watched["now"]:
        return
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        host = str(arguments[0] if event == "socket.getaddrinfo" else arguments[1][0])
        if host not in ("127.0.0.1", "localhost", "::1", "None"):
            abroad.append(host)


@pytest.fixture(scope="module")
def model():
    return chat_model()


@pytest.fixture(scope="module")
def site(model):
    """A page that chats and continues, and its address."""
    sys.addaudithook(watch)
    watched["now"] = True  # its start too
    with served(lambda: Session(model), chats=True, most=400) as site:
        yield site
        watched["now"] = False


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, site):
    """Open the page in a window of its own; errors in its console fail the test."""
    context, wrong = browser.new_context(viewport={"width": 1200, "height": 900}), []

    def open_tab(address=site[1], **viewport):
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        if viewport:
            page.set_viewport_size(viewport)
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", "blob:", site[1], address)) or wrong.append(request.url),
        )
        page.goto(address)
        page.get_by_role("button", name="Send").wait_for()
        return page

    yield open_tab
    context.close()
    assert not wrong


def box(page):
    return page.locator("#box textarea")


def ask(page, text, waits=True):
    before = page.locator(".turn").count()
    box(page).fill(text)
    box(page).press("Enter")
    if waits:
        page.locator(".turn").nth(before).wait_for()
        done(page)


def done(page):
    """Wait until nothing is being written."""
    page.locator(".cursor").wait_for(state="detached")
    page.get_by_role("button", name="Send").wait_for()


def press(page, name):
    """Press a button that has the last answer written anew, or compared, and wait for that."""
    page.locator(".turn").last.evaluate("turn => { turn.dataset.old = 1 }")  # goes with what is written over it
    page.get_by_role("button", name=name, exact=True).click()
    if name == "Compare":
        page.locator(".verdict *").first.wait_for()
    else:
        page.locator(".turn[data-old]").wait_for(state="detached")
    done(page)


def settle(page, **values):
    """Set what stands under sampling and limits."""
    if not page.get_by_label("Stop strings").is_visible():
        page.get_by_text("Sampling and limits").click()
    # What is typed before the page has filled its fields in would be lost.
    sync_api.expect(page.get_by_label("number input for Most new tokens").first).to_have_value(re.compile(r"\d"))
    for name, value in values.items():
        page.get_by_label(name.replace("_", " ")).first.fill(str(value))
        page.get_by_label(name.replace("_", " ")).first.press("Tab")


def completes(page, most=40):
    """Switch to continuing texts."""
    settle(page, number_input_for_Most_new_tokens=most)
    page.get_by_label("completion").check()


def expected(model, text, new=40, **keywords):
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    out = model.base_model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, **keywords
    )
    return model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def said(page, turn=-1):
    """Return what the model said in a turn."""
    words = (
        page.locator(".turn .text")
        .all()[turn]
        .evaluate("e => [...e.childNodes].filter(n => n.className !== 'given').map(n => n.textContent).join('')")
    )
    return str(words)


def marks(page):
    return "".join(page.locator(".turn").last.locator("mark").all_text_contents())


def soon(holds):
    """Wait for something that no page shows."""
    end = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_text_is_continued_as_generate_does_with_drafted_tokens_marked(tab, model):
    page = tab()
    completes(page)
    text = expected(model, TEXT)
    ask(page, TEXT)
    assert said(page) == text
    assert 0 < len(marks(page)) < len(said(page))
    page.get_by_label("EAGLE").uncheck()
    press(page, "Regenerate")
    assert said(page) == text and marks(page) == ""
    assert page.locator("#figures td").nth(2).inner_text() != "–"


def test_an_answer_streams_and_stop_ends_it_midway(tab, site):
    page = tab()
    completes(page, most=400)
    ask(page, TEXT, waits=False)
    page.locator(".turn mark").first.wait_for()
    assert page.locator(".cursor").count() == 1
    speeds = page.locator("#figures")
    before = speeds.inner_text()
    page.wait_for_function("before => document.querySelector('#figures').innerText !== before", arg=before)
    page.get_by_role("button", name="Stop").click()
    done(page)
    assert "stopped" in page.locator(".turn .note").inner_text()
    (visitor,) = [one for one in site[0].visitors._visitors.values() if one.turns]
    steps = visitor.turns[-1].answer.stats.steps
    assert 0 < len(visitor.turns[-1].answer.ids) < 400
    time.sleep(0.3)
    assert visitor.turns[-1].answer.stats.steps == steps
    settle(page, number_input_for_Most_new_tokens=8)
    ask(page, TEXT)
    assert page.locator(".turn").count() == 2


def test_a_chat_goes_on_is_edited_regenerated_and_cleared(tab):
    page = tab()
    settle(page, number_input_for_Most_new_tokens=16)
    ask(page, "Say something")
    ask(page, "And more")
    assert page.locator(".question .text").all_text_contents() == ["Say something", "And more"]
    run, _, prompt = page.locator("#figures tr", has_text="prompt run").locator("td").first.inner_text().split()
    assert int(run) < int(prompt)  # the history was in the cache
    settle(page, number_input_for_Temperature=1)
    notes = []
    for _ in range(2):
        press(page, "Regenerate")
        notes.append(re.search(r"seed (\d+)", page.locator(".note").last.inner_text())[1])
    assert notes[0] != notes[1] and page.locator(".turn").count() == 2
    page.locator(".edit").first.click()
    page.get_by_text("Sending replaces text 1 and what follows it").wait_for()
    assert box(page).input_value() == "Say something"
    ask(page, "Say nothing", waits=False)
    page.get_by_text("Say nothing").wait_for()
    done(page)
    assert page.locator(".question .text").all_text_contents() == ["Say nothing"]
    page.get_by_role("button", name="Clear").click()
    page.locator(".turn").wait_for(state="detached")
    assert box(page).input_value() == "" and page.locator(".draft-tree").count() == 0


def test_both_ways_are_compared_beside_each_other(tab):
    page = tab()
    settle(page, number_input_for_Most_new_tokens=16, number_input_for_Temperature=0.8)
    page.get_by_label("Compare", exact=True).check()
    ask(page, "Say something")
    page.get_by_text(re.compile(r"the same \d+ tokens")).wait_for()
    row = page.locator("#figures tr", has_text="tokens/s").locator("td").all_inner_texts()
    assert all(float(speed) > 0 for speed in row) and len(row) == 2
    page.get_by_label("Compare", exact=True).uncheck()
    press(page, "Regenerate")
    assert page.get_by_text(re.compile(r"the same \d+ tokens")).count() == 0
    press(page, "Compare")
    assert page.get_by_text(re.compile(r"the same \d+ tokens")).count() == 1


def test_the_tree_of_any_step_is_drawn(tab):
    page = tab()
    completes(page, most=24)
    ask(page, TEXT)
    words = page.locator(".turn .step").nth(2)
    words.click()
    caption = page.locator("#tree .caption")
    caption.filter(has_text="Step 3 of").wait_for()
    accepted = page.locator(".draft-tree .node.accepted").count()
    assert accepted == words.locator("mark").count()
    assert page.locator(".draft-tree .edge.accepted").count() == accepted
    assert page.locator(".draft-tree .confidence").count() == page.locator(".draft-tree .node").count() - 2
    page.locator("#step input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    caption.filter(has_text="Step 2 of").wait_for()
    page.get_by_role("img", name="draft tree of step 2 of").wait_for()


def test_two_tabs_are_answered_one_after_the_other_each_with_its_own(tab, model):
    one, two = tab(), tab()
    for page in (one, two):
        completes(page, most=400 if page is one else 24)
    ask(one, TEXT, waits=False)
    one.locator(".turn mark").first.wait_for()
    ask(two, "import os\n", waits=False)
    two.get_by_text("Waiting").wait_for()
    time.sleep(0.5)
    assert two.get_by_text("Waiting").count() == 1 and one.locator(".cursor").count() == 1
    one.get_by_role("button", name="Stop").click()
    done(two)
    done(one)
    assert said(two) == expected(model, "import os\n", 24)
    begins, text = said(one), expected(model, TEXT)
    assert begins and (begins.startswith(text) or text.startswith(begins))


def test_what_waits_can_be_stopped_and_its_text_comes_back(tab):
    one, two = tab(), tab()
    completes(one, most=400)
    ask(one, TEXT, waits=False)
    one.locator(".turn mark").first.wait_for()
    ask(two, "Me too", waits=False)
    two.get_by_text("Waiting").wait_for()
    two.get_by_role("button", name="Stop").click()
    two.get_by_role("button", name="Send").wait_for()
    assert box(two).input_value() == "Me too" and two.locator(".turn").count() == 0
    one.get_by_role("button", name="Stop").click()
    done(one)
    settle(two, number_input_for_Most_new_tokens=4)
    ask(two, "Me again")
    assert two.locator(".turn .note").count() == 1


def test_closing_the_page_stops_the_work_and_frees_the_caches(tab, site):
    page = tab()
    soon(lambda: len(site[0].visitors) == 0)  # those of the tests before
    completes(page, most=400)
    ask(page, TEXT, waits=False)
    page.locator(".turn mark").first.wait_for()
    (visitor,) = site[0].visitors._visitors.values()
    page.close()
    soon(lambda: visitor.gone and not visitor.is_busy)
    steps = visitor.turns[-1].answer.stats.steps
    time.sleep(0.3)
    answer = visitor.turns[-1].answer
    assert answer.stats.steps == steps and len(answer.ids) < 400 and answer.finished == "stopped"
    assert len(visitor.session._prefix) == 0 and len(site[0].visitors) == 0


def test_words_that_would_run_are_shown(tab):
    last = step(HOSTILE, 3, tree(HOSTILE), "eos")
    with served(lambda: ScriptedSession([step(HOSTILE[:1], 0), last])) as (_, address):
        page = tab(address)
        ask(page, " ".join(HOSTILE))
        assert said(page) == HOSTILE[0] + "".join(HOSTILE)
        page.locator(".draft-tree").wait_for()
        page.locator(".edit").click()
        page.locator("#problem").get_by_text("Sending replaces").wait_for()
        assert box(page).input_value() == " ".join(HOSTILE)
        assert page.evaluate("window.struck") is None
        assert page.locator(".turn script, .turn img, .turn b, #tree script, #tree img, #tree b").count() == 0


def test_what_is_wrong_is_said_and_the_page_stays_usable(tab):
    page = tab()
    completes(page, most=16)
    ask(page, "word " * 2100, waits=False)
    problem = page.get_by_role("alert")
    problem.wait_for()
    done(page)
    assert "shorten the prompt" in problem.inner_text() and box(page).input_value().startswith("word word")
    ask(page, TEXT)
    assert problem.count() == 0 and page.locator(".turn").count() == 1
    settle(page, Seed="x")
    ask(page, TEXT, waits=False)
    problem.wait_for()
    assert "whole number" in problem.inner_text() and box(page).input_value() == TEXT
    settle(page, Seed="", Stop_strings="lines of\\n")
    ask(page, TEXT)
    box(page).fill("")
    box(page).press("Enter")
    problem.wait_for()
    assert "no text" in problem.inner_text()


def test_shift_enter_begins_a_line_and_enter_sends(tab):
    page = tab()
    settle(page, number_input_for_Most_new_tokens=4)
    box(page).press_sequentially("a")
    box(page).press("Shift+Enter")
    box(page).press_sequentially("b")
    assert page.locator(".turn").count() == 0
    box(page).press("Enter")
    done(page)
    assert page.locator(".question .text").inner_text() == "a\nb"


def test_everything_fits_400_pixels_and_has_a_name(tab):
    page = tab(width=400, height=800)
    settle(page, number_input_for_Most_new_tokens=24)
    ask(page, "x" * 300)
    page.locator(".draft-tree").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for button in page.get_by_role("button").all():
        if button.is_visible():
            place = button.bounding_box()
            assert place["x"] >= 0 and place["x"] + place["width"] <= 400
            assert button.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    names = page.locator("input:visible, textarea:visible").evaluate_all(
        "all => all.map(e => e.ariaLabel || [...e.labels].map(l => l.innerText).join(' '))"
    )
    assert len(names) > 8 and all(name.strip() for name in names)


def test_nothing_is_sent_to_other_machines(tab):
    page = tab()
    settle(page, number_input_for_Most_new_tokens=4)
    ask(page, "Say something")  # what the page asks for is watched in every test
    assert abroad == []


def test_a_password_guards_all_of_it(browser):
    with served(lambda: ScriptedSession([step(["One"], 0, (), "eos")]), auth=("me", "secret")) as (_, address):
        for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=abc"):
            assert httpx.get(f"{address}{path}").status_code == 401
        data = {"data": [], "fn_index": 0, "session_hash": "abc"}
        assert httpx.post(f"{address}gradio_api/queue/join", json=data).status_code == 401
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("secret")
        page.get_by_role("button", name="Login").click()
        page.get_by_role("button", name="Send").wait_for()
        ask(page, "Hi")
        assert said(page) == "One"
        page.close()
