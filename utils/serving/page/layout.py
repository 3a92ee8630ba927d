"""The page's fields and buttons, and what each is bound to."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from utils.generation.settings import Setting, settings_of
from utils.serving.page import words
from utils.serving.page.api import add_endpoints
from utils.serving.page.handlers import Handlers
from utils.serving.service import Service
from utils.serving.works import FAULT

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
        gr.Markdown(words.introduction(service.about))
        with gr.Row():
            settings = _settings(service)
            with gr.Column(scale=3, min_width=320):
                writing = _Writing.make(service, settings)
            with gr.Column(scale=2, min_width=280):
                _render(service, settings)
        add_endpoints(service)  # first: the names are theirs
        _bind(handlers, writing, settings)
        page.unload(handlers.stop)  # also where a tab goes before it listens to its texts
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
    output: gr.Textbox
    status: gr.Textbox
    look: gr.Button
    chart: gr.Label
    remark: gr.Textbox
    shown: gr.JSON

    @classmethod
    def make(cls, service: Service, settings: dict[str, Any]) -> _Writing:
        prompt = gr.Textbox(
            label="Prompt",
            info=words.PROMPT_HINT,
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
        # Not HTML: where a browser is busy, Gradio's component keeps an older text for good.
        output = gr.Textbox(
            label="Text",
            placeholder=words.NO_OUTPUT,
            lines=8,
            max_lines=30,
            interactive=False,
            buttons=["copy"],
            elem_id="output",
        )
        line = partial(gr.Textbox, show_label=False, interactive=False, max_lines=4)
        status = line(label="Status", elem_id="status")
        look = gr.Button("Show the likeliest next tokens", size="md", elem_id="look")
        chart = gr.Label(
            label=words.NEXT_TOKEN_HINT, show_heading=False, visible=False, elem_id="next_tokens"
        )
        remark = line(label="Remark", visible=False, elem_id="remark")
        shown = gr.JSON({}, visible=False)  # the chart's prompt, and what each of its bars appends
        return cls(
            prompt, examples, generate, stop, clear, output, status, look, chart, remark, shown
        )


def _settings(service: Service) -> dict[str, Any]:
    """A field for each setting, by its name, not yet on the page."""
    return {name: _field(name, found, service) for name, found in settings_of().items()}


def _field(name: str, found: Setting, service: Service) -> Any:
    """A slider, or a field for text. What a slider ends at may follow the model."""
    control = found.control
    common: dict[str, Any] = {"label": control.label, "info": _sentence(control.info or found.help)}
    common |= {"elem_id": "stop_strings" if name == "stop" else name, "render": False}
    if control.low is None:
        return gr.Textbox(max_lines=control.lines, **common)
    passes = service.engine.passes
    ends = {"context": service.max_tokens, "vocabulary": min(200, passes.vocab_size)}
    high: Any = ends[control.high] if isinstance(control.high, str) else control.high
    start = found.default if control.start is None else control.start
    if name in service.defaults:  # which may lie beyond what people usually want
        start = service.defaults[name]
        low, high = min(control.low, start), max(high, start)
    else:
        low, start = control.low, min(start, high)
    return gr.Slider(low, high, start, step=control.step, **common)


def _sentence(help: str) -> str:
    return help[0].upper() + help[1:] + "."


def _render(service: Service, settings: dict[str, Any]) -> None:
    """The column of the settings; those that few change are folded away."""
    controls = {name: found.control for name, found in settings_of().items()}
    for name, field in settings.items():
        if not controls[name].more:
            field.render()
    with gr.Accordion(words.MORE, open=False, elem_id="more"):
        for name, field in settings.items():
            if controls[name].more:
                field.render()
    context = service.engine.passes.sequence_length
    gr.Markdown(words.CONTEXT_HINT.format(context=context), elem_id="explanation")


def _examples(service: Service, prompt: gr.Textbox, settings: dict[str, Any]) -> gr.Dataset:
    examples = words.examples_for(service.about)
    return gr.Examples(
        [
            [e.prompt, min(e.num_tokens, service.max_tokens), e.temperature, e.stop]
            for e in examples
        ],
        inputs=[prompt, *(settings[name] for name in ("num_tokens", "temperature", "stop"))],
        example_labels=[example.name for example in examples],
        cache_examples=False,
        preload=False,
        api_visibility="private",
        elem_id="examples",
    ).dataset


def _bind(handlers: Handlers, writing: _Writing, settings: dict[str, Any]) -> None:
    """Values are not preprocessed where they are checked in words."""
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    written = [writing.output, writing.status]
    generating = gr.on(
        [writing.generate.click, writing.prompt.submit],
        handlers.generate,
        {writing.prompt, *settings.values()},
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
        handlers.clear,
        None,
        [writing.prompt, *cleared],
        cancels=[generating, looking, appending],
        queue=False,
        **hidden,
    ).then(handlers.settle, **hidden).then(
        # Again: a last text may have come in between. What is queued comes after it.
        handlers.cleared,
        None,
        cleared,
        **hidden,
    )
