"""The page's fields and buttons, and what each is bound to."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import Any

import gradio as gr

from utils.serving.given_settings import GivenSettings
from utils.serving.page import words
from utils.serving.page.api import add_endpoints
from utils.serving.page.handlers import Handlers, told_apart
from utils.serving.service import FAULT, Service

logger = logging.getLogger(__name__)

SPARE_SLOTS = 64
"""Calls besides those that the engine runs and has in its queue: refusals, stops, clears."""

HIDDEN = '{__type__: "update", visible: false}'
NO_CHART = f"() => [{HIDDEN}, {HIDDEN}]"
CHART_IF_IT_FITS = '(prompt, shown) => [{__type__: "update", visible: prompt === shown.prompt}]'
"""What a browser does by itself: take chart and remark away; leave a chart of this prompt alone."""


def build_page(service: Service) -> gr.Blocks:
    """The page, and its named endpoints for clients."""
    handlers = Handlers(service)
    with _Page(title=words.TITLE, analytics_enabled=False) as page:
        gr.Markdown(words.INTRODUCTION)
        with gr.Row():
            settings = _settings(service)
            with gr.Column(scale=3, min_width=320):
                writing = _Writing.make(service, settings)
            with gr.Column(scale=2, min_width=280):
                for setting in settings:
                    setting.render()
                gr.Markdown(words.EXPLANATION, elem_id="explanation")
        add_endpoints(service)  # first: the names are theirs
        _bind(handlers, writing, settings)
    for function in page.fns.values():  # what is not queued could be run without a tab
        function.queue = function.fn is not None
    served = service.engine.passes.batch_size + service.engine.max_queue
    # Gradio keeps 60 kB of a tab until so many others have come. The page needs none of it.
    page.state_session_capacity = served
    page.max_threads = served + SPARE_SLOTS
    # Without `api_open`, what is queued cannot be run past the queue.
    return page.queue(max_size=page.max_threads, default_concurrency_limit=None, api_open=False)


class _Page(gr.Blocks):
    """Keeps what was sent in a call that fails out of the log, where Gradio writes it."""

    async def preprocess_data(self, block_fn: Any, *arguments: Any, **named: Any) -> list[Any]:
        """The values of a call as a function has them.

        Raises:
            gr.Error: they are not what the page sends.
        """
        try:
            return await super().preprocess_data(block_fn, *arguments, **named)
        except gr.Error:
            raise
        except Exception:
            raise gr.Error(
                f"{block_fn.api_name} does not take these values", print_exception=False
            ) from None

    async def process_api(
        self, block_fn: Any, inputs: list[Any], *arguments: Any, **named: Any
    ) -> Any:
        """Run a function of the page or an endpoint; `inputs` are as they were sent.

        Raises:
            gr.Error: with what the one who called may know.
        """
        needed = len(block_fn.inputs)
        if len(inputs) != needed:
            raise gr.Error(
                f"{block_fn.api_name} takes {needed} values, not {len(inputs)}",
                print_exception=False,
            )
        try:
            return await super().process_api(block_fn, inputs, *arguments, **named)
        except gr.Error:
            raise
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__  # its text may be about the prompt
        # Past the handler: a log that cannot be written to would print the error with its text.
        logger.error("a call of %s failed by %s\n%s", block_fn.api_name, kind, where)
        raise gr.Error(FAULT, print_exception=False)


@dataclass(frozen=True)
class _Writing:
    """The column of the text."""

    prompt: gr.Textbox
    examples: gr.Dataset
    generate: gr.Button
    stop: gr.Button
    clear: gr.Button
    output: gr.HTML
    status: gr.Textbox
    look: gr.Button
    chart: gr.Label
    remark: gr.Textbox
    shown: gr.JSON

    @classmethod
    def make(cls, service: Service, settings: list[Any]) -> _Writing:
        prompt = gr.Textbox(
            label="Prompt",
            lines=6,
            max_lines=20,
            placeholder=words.PROMPT_PLACEHOLDER,
            elem_id="prompt",
        )
        examples = _examples(service, prompt, settings)
        with gr.Row():
            generate = gr.Button(
                "Generate", variant="primary", scale=2, min_width=120, elem_id="generate"
            )
            stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
            clear = gr.Button("Clear", scale=1, min_width=80, elem_id="clear")
        output = gr.HTML(
            told_apart("", ""), container=True, padding=True, apply_default_css=False,
            elem_id="output",
        )  # fmt: skip
        status = gr.Textbox(
            label="Status", show_label=False, interactive=False, max_lines=4, elem_id="status"
        )
        look = gr.Button("Show the likeliest next tokens", size="md", elem_id="look")
        chart = gr.Label(
            label=words.NEXT_TOKEN_HINT, show_heading=False, visible=False, elem_id="next_tokens"
        )
        remark = gr.Textbox(
            label="Remark", show_label=False, interactive=False, visible=False, max_lines=4,
            elem_id="remark",
        )  # fmt: skip
        shown = gr.JSON({}, visible=False)  # the chart's prompt, and what each of its bars appends
        return cls(
            prompt, examples, generate, stop, clear, output, status, look, chart, remark, shown
        )


def _settings(service: Service) -> list[Any]:
    """The fields of `GivenSettings`, in order, not yet on the page.

    What the sliders end at follows the model.
    """
    default, passes = GivenSettings(), service.engine.passes
    most = service.max_tokens
    return [
        gr.Slider(
            1, most, min(default.num_tokens, most), step=1, label="Number of tokens",
            info=words.NUM_TOKENS_HINT.format(context=passes.sequence_length),
            elem_id="num_tokens", render=False,
        ),
        gr.Slider(
            0, 2, default.temperature, step=0.05, label="Temperature",
            info="0: always the likeliest token.", elem_id="temperature", render=False,
        ),
        gr.Slider(
            0, min(200, passes.vocab_size), default.top_k, step=1, label="Top-k",
            info="Choose among so many; 0 is off.", elem_id="top_k", render=False,
        ),
        gr.Slider(
            0.05, 1, default.top_p, step=0.05, label="Top-p",
            info="Choose among those of this probability; 1 is off.", elem_id="top_p", render=False,
        ),
        gr.Slider(
            1, 2, default.repetition_penalty, step=0.05, label="Repetition penalty",
            info="1 is off.", elem_id="repetition_penalty", render=False,
        ),
        gr.Textbox(
            label="Seed", info="Repeats what chance drew; empty: a new one.", max_lines=1,
            elem_id="seed", render=False,
        ),
        gr.Textbox(
            label="Stop strings", info=words.STOP_HINT, max_lines=4, elem_id="stop_strings",
            render=False,
        ),
    ]  # fmt: skip


def _examples(service: Service, prompt: gr.Textbox, settings: list[Any]) -> gr.Dataset:
    num_tokens, temperature, *_, stop = settings
    return gr.Examples(
        [
            [e.prompt, min(e.num_tokens, service.max_tokens), e.temperature, e.stop]
            for e in words.EXAMPLES
        ],
        inputs=[prompt, num_tokens, temperature, stop],
        example_labels=[example.name for example in words.EXAMPLES],
        cache_examples=False,
        preload=False,
        api_visibility="private",
        elem_id="examples",
    ).dataset


def _bind(handlers: Handlers, writing: _Writing, settings: list[Any]) -> None:
    """Values are not preprocessed where they are checked in words."""
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    written = [writing.output, writing.status]
    generating = gr.on(
        [writing.generate.click, writing.prompt.submit],
        handlers.generate,
        [writing.prompt, *settings],
        written,
        preprocess=False,
        **hidden,
    )
    writing.stop.click(handlers.stop, queue=False, **hidden)
    charted = [writing.chart, writing.shown, writing.remark]
    looking = writing.look.click(handlers.look, writing.prompt, charted, preprocess=False, **hidden)
    appending = writing.chart.select(
        handlers.append, [writing.prompt, writing.shown], [writing.prompt, *charted], **hidden
    )
    for changing in writing.prompt.input, writing.examples.click:
        changing(None, None, [writing.chart, writing.remark], js=NO_CHART, **hidden)
    for found in looking, appending:  # in the meantime the prompt may have been changed
        given = [writing.prompt, writing.shown]
        found.then(None, given, writing.chart, js=CHART_IF_IT_FITS, **hidden)
    cleared = [*written, *charted]
    writing.clear.click(
        lambda: (None, *handlers.clear()),
        None,
        [writing.prompt, *cleared],
        cancels=[generating, looking, appending],
        queue=False,
        **hidden,
    ).then(handlers.settle, **hidden).then(
        # Again: a last text may have come in between. What is queued comes after it.
        handlers.clear,
        None,
        cleared,
        **hidden,
    )
