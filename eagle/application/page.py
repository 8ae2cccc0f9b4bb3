"""The page: its parts, what their events do, and how it is served. It needs gradio; whoever imports it says so.

All that it shows of a visitor comes from `page_html`. Answers share one place in gradio's queue, so that one is
written at a time and its speed is its own; everything else, stop above all, never waits.
"""

import html
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from eagle.application.page_html import (
    drafted_steps,
    figures_html,
    newest_html,
    past_html,
    problem_html,
    shown_step,
    tree_html,
)
from eagle.application.session import Session, SessionSettings
from eagle.application.visitors import Visitor, Visitors

PACE = 0.08
"""Seconds between two looks at an answer that is being written."""
STYLE = Path(__file__).with_name("page.css")
FONT, FONT_OF_ONE_WIDTH = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # nothing to download
CLICKS = """
element.addEventListener('click', (event) => {
  const edit = event.target.closest('[data-edit]');
  if (edit) { trigger('revise', {turn: Number(edit.dataset.edit)}); return; }
  const step = event.target.closest('[data-step]');
  if (step && !String(getSelection()))
    trigger('pick', {turn: Number(step.dataset.turn), step: Number(step.dataset.step)});
});
"""
LEGEND = (
    '<p class="legend"><mark>drafted by the head and accepted</mark> <span>chosen by the target itself</span> '
    "<span>click a word to see the tree of its step</span></p>"
)
CHAT, COMPLETION = "chat", "completion"


@dataclass(frozen=True)
class PageOptions:
    """What a page is made for.

    Attributes:
        target, head: names to show.
        chats: whether the model has a chat template.
        most: most new tokens that a visitor may ask for.
        rounds: whether the model computes in half precision.
    """

    target: str
    head: str
    chats: bool
    most: int
    rounds: bool = False


def view(**options: Any) -> gr.HTML:
    """Return an element whose value is HTML text that was escaped where it was made.

    The template has to be `${value}`: what stands in `{{value}}` would be run as a JavaScript template.
    """
    return gr.HTML(html_template="${value}", apply_default_css=False, **options)


class Page:
    """One page for all visitors.

    Args:
        session: makes a session; every visitor gets an own one.
        options: what it is made for.

    Attributes:
        visitors: who has it open.
        blocks: gradio's.
    """

    def __init__(self, session: Callable[[], Session], options: PageOptions) -> None:
        self.visitors, self.options = Visitors(session), options
        with gr.Blocks(title="EAGLE", analytics_enabled=False, fill_width=True) as self.blocks:
            gr.HTML(_heading(options), apply_default_css=False)
            with gr.Row(elem_classes="main"):
                with gr.Column(scale=3, min_width=300):
                    self._conversation()
                with gr.Column(scale=2, min_width=300):
                    self._settings()
            self._tree()
            self._connect()
        self.blocks.queue(default_concurrency_limit=None, api_open=False)

    def launch(self, host: str, port: int | None, *, share: bool, auth: tuple[str, str] | None) -> tuple[str, str]:
        """Serve the page in the background; return its local and its public address, the latter empty without one.

        Raises:
            OSError: the port is taken.
        """
        _, local, public = self.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=auth,
            theme=gr.themes.Default(font=FONT, font_mono=FONT_OF_ONE_WIDTH),
            css_paths=[STYLE],
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
        )
        return local, public or ""

    def close(self) -> None:
        """Stop all answers and the server."""
        self.visitors.close()
        self.blocks.close(verbose=False)

    def _conversation(self) -> None:
        options = self.options
        with gr.Column(elem_classes="conversation"), gr.Column():
            self.past = view(js_on_load=CLICKS, elem_classes="turns")
            self.live = view(value=newest_html(self._nobody()), js_on_load=CLICKS, elem_classes="turns")
        gr.HTML(LEGEND, apply_default_css=False)
        self.problem = view(elem_id="problem")
        self.box = gr.Textbox(
            label="Message" if options.chats else "Text to continue",
            placeholder="Enter sends, Shift+Enter begins a new line",
            lines=1,
            max_lines=10,
            elem_id="box",
            autofocus=True,
        )
        with gr.Row(elem_classes="buttons"):
            self.send = gr.Button("Send", variant="primary", min_width=80, elem_id="send")
            self.stop = gr.Button("Stop", variant="stop", min_width=80, visible=False, elem_id="stop")
            self.again = gr.Button("Regenerate", min_width=80, interactive=False, elem_id="again")
            self.compare = gr.Button("Compare", min_width=80, interactive=False, elem_id="compare")
            self.clear = gr.Button("Clear", min_width=80, elem_id="clear")
            self.cancel = gr.Button("Cancel edit", min_width=80, visible=False, elem_id="cancel")

    def _settings(self) -> None:
        options = self.options
        with gr.Row(elem_classes="switches"):
            self.drafts = gr.Checkbox(True, label="EAGLE", info="off: plain decoding", min_width=120, elem_id="drafts")
            self.compares = gr.Checkbox(
                False, label="Compare", info="decode every answer the other way too", min_width=120, elem_id="compares"
            )
        self.figures = view(value=figures_html(None), elem_id="figures")
        with gr.Accordion("Sampling and limits", open=False):
            self.mode = gr.Radio(
                [CHAT, COMPLETION], value=CHAT if options.chats else COMPLETION, label="Mode", visible=options.chats
            )
            self.temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 is greedy")
            self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1 is off")
            self.most = gr.Slider(1, options.most, options.most, step=1, label="Most new tokens")
            self.stops = gr.Textbox(label="Stop strings", info=r"one per line; \n is a line end", lines=2)
            self.seed = gr.Textbox(label="Seed", info="empty: another one for every answer")

    def _tree(self) -> None:
        with gr.Column(elem_classes="trees"):
            self.step = gr.Slider(
                1, 2, 1, step=1, label="Draft tree of step", visible=False, elem_id="step", buttons=[]
            )
            self.tree = view(value=tree_html(self._nobody()), elem_id="tree")

    def _connect(self) -> None:
        sampling = [self.drafts, self.compares, self.temperature, self.top_p, self.most, self.stops, self.seed]
        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        outputs = [self.past, self.live, self.problem, self.box, self.send, self.stop, self.again, self.compare]
        outputs += [self.cancel, self.figures, self.step, self.tree]

        def then_work(wish: Any) -> None:
            wish.then(
                self._work,
                None,
                outputs,
                concurrency_id="model",
                concurrency_limit=1,
                trigger_mode="multiple",
                show_progress="hidden",
                api_visibility="private",
            )

        then_work(
            gr.on([self.send.click, self.box.submit], self._ask, [self.box, self.mode, *sampling], outputs, **at_once)
        )
        then_work(self.again.click(self._ask_again, sampling, outputs, **at_once))
        then_work(self.compare.click(self._compare, None, outputs, **at_once))
        self.stop.click(self._stop, None, outputs, **at_once)
        self.clear.click(self._clear, None, outputs, **at_once)
        self.cancel.click(self._cancel, None, outputs, **at_once)
        for turns in (self.past, self.live):
            turns.revise(self._revise, None, outputs, **at_once)
            turns.pick(self._pick, None, [self.step, self.tree, self.past, self.live], **at_once)
        chosen = [self.tree, self.past, self.live]
        self.step.input(self._choose, self.step, chosen, trigger_mode="always_last", **at_once)
        self.blocks.unload(self._leave)

    # What events do. gradio names a visitor's page by its session hash.

    def _ask(self, request: gr.Request, text: str, mode: str, *sampling: Any) -> dict[Any, Any]:
        def ask(visitor: Visitor) -> None:
            visitor.ask(text, self._asked(*sampling), chats=mode == CHAT and self.options.chats, compares=sampling[1])

        return self._wish(request, ask, text="")

    def _ask_again(self, request: gr.Request, *sampling: Any) -> dict[Any, Any]:
        return self._wish(request, lambda who: who.ask_again(self._asked(*sampling), compares=sampling[1]))

    def _compare(self, request: gr.Request) -> dict[Any, Any]:
        return self._wish(request, lambda who: who.compare())

    def _wish(self, request: gr.Request, wish: Callable[[Visitor], None], **box: str) -> dict[Any, Any]:
        visitor = self.visitors.greet(str(request.session_hash))
        try:
            wish(visitor)
        except ValueError as refusal:
            visitor.problem = str(refusal)
            return self._all(visitor)
        return self._all(visitor, **box)

    def _asked(
        self, drafts: bool, _: bool, temperature: float, top_p: float, most: float, stops: str | None, seed: str | None
    ) -> SessionSettings:
        seed = (seed or "").strip()  # None while its part of the page was never unfolded
        if seed and not re.fullmatch(r"\d{1,18}", seed, re.ASCII):
            raise ValueError(f"seed={seed[:40]} must be a whole number of at most 18 digits, or empty")
        lines = [line.replace("\\n", "\n").replace("\\t", "\t") for line in (stops or "").split("\n")]
        return SessionSettings(
            temperature=float(temperature),
            top_p=float(top_p),
            max_new_tokens=min(int(most), self.options.most),
            stop=tuple(line for line in lines if line),
            drafts=bool(drafts),
            seed=int(seed) if seed else None,
        )

    def _work(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        visitor = self.visitors.known(str(request.session_hash))
        if visitor is None:
            return
        looked = 0.0
        with closing(visitor.work()) as work:
            for _ in work:
                if time.monotonic() - looked >= PACE:
                    yield self._newest(visitor)
                    looked = time.monotonic()
        if not visitor.gone:
            yield self._all(visitor)

    def _stop(self, request: gr.Request) -> dict[Any, Any]:
        visitor = self.visitors.greet(str(request.session_hash))
        visitor.stop()
        # What is being written ends with a last look of its own.
        return {self.problem: problem_html(visitor)} if visitor.is_busy else self._all(visitor)

    def _clear(self, request: gr.Request) -> dict[Any, Any]:
        visitor = self.visitors.greet(str(request.session_hash))
        visitor.clear()
        return self._all(visitor, text="")

    def _cancel(self, request: gr.Request) -> dict[Any, Any]:
        visitor = self.visitors.greet(str(request.session_hash))
        visitor.editing = None
        return self._all(visitor, text="")

    def _revise(self, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        visitor = self.visitors.greet(str(request.session_hash))
        try:
            text = visitor.edit(int(event.turn))
        except ValueError as refusal:
            visitor.problem = str(refusal)
            return {self.problem: problem_html(visitor)}
        return self._all(visitor, text=text)

    def _pick(self, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        visitor = self.visitors.greet(str(request.session_hash))
        visitor.shown = (int(event.turn), int(event.step))
        return self._steps(visitor) | {self.past: past_html(visitor), self.live: newest_html(visitor)}

    def _choose(self, step: float, request: gr.Request) -> dict[Any, Any]:
        visitor = self.visitors.greet(str(request.session_hash))
        chosen = shown_step(visitor)
        if chosen is not None:
            visitor.shown = (chosen[0], int(step) - 1)
        return {self.tree: tree_html(visitor), self.past: past_html(visitor), self.live: newest_html(visitor)}

    def _leave(self, request: gr.Request) -> None:
        self.visitors.leave(str(request.session_hash))

    # What parts show of a visitor.

    def _all(self, visitor: Visitor, text: str | None = None) -> dict[Any, Any]:
        busy, text = visitor.is_busy, visitor.returned or text
        visitor.returned = ""
        shown: dict[Any, Any] = {} if text is None else {self.box: text}
        return (
            shown
            | self._newest(visitor)
            | {
                self.past: past_html(visitor),
                self.send: gr.update(visible=not busy),
                self.stop: gr.update(visible=busy),
                self.again: gr.update(interactive=bool(visitor.turns) and not busy),
                self.compare: gr.update(interactive=bool(visitor.turns) and not busy),
                self.cancel: gr.update(visible=visitor.editing is not None),
            }
        )

    def _newest(self, visitor: Visitor) -> dict[Any, Any]:
        turns = visitor.turns[-1:]
        return self._steps(visitor) | {
            self.live: newest_html(visitor),
            self.figures: figures_html(turns[0] if turns else None, self.options.rounds),
            self.problem: problem_html(visitor),
        }

    def _steps(self, visitor: Visitor) -> dict[Any, Any]:
        chosen = shown_step(visitor)
        if chosen is None:
            return {self.step: gr.update(visible=False), self.tree: tree_html(visitor)}
        steps = len(drafted_steps(visitor.turns[chosen[0]]))
        where = gr.update(visible=steps > 1, maximum=max(2, steps), value=chosen[1] + 1)
        return {self.step: where, self.tree: tree_html(visitor)}

    def _nobody(self) -> Visitor:
        return Visitor(None, lambda: None)  # type: ignore[arg-type,return-value]


def _heading(options: PageOptions) -> str:
    names = f"{html.escape(options.target)} with {html.escape(options.head)}"
    return f'<header class="heading"><h1>EAGLE</h1><p>{names}</p></header>'
