"""How the page looks: the system's fonts, and colours that hold in light and dark."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.Theme:
    """Gradio's own, without fonts to be fetched, and its small print dark enough to be read."""
    base = gr.themes.Default(
        primary_hue="teal",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return base.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
    )


CSS = """
#output .text {
    white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
    font-size: var(--text-lg); min-height: 1.6em; line-height: 1.6; margin-top: 0.5em;
}
#output .prompt { color: var(--neutral-500); }
#output .continuation { color: var(--neutral-900); background: var(--primary-100); }
.dark #output .prompt { color: var(--neutral-400); }
.dark #output .continuation { color: var(--neutral-50); background: var(--primary-950); }
#status.error textarea { color: var(--error-text-color) !important; font-weight: 600; }
input[type=range]::-webkit-slider-thumb { box-shadow: 0 0 0 2px var(--primary-600) !important; }
input[type=range]::-moz-range-thumb { box-shadow: 0 0 0 2px var(--primary-600) !important; }
#next_tokens meter { height: 0.6em; background: var(--primary-500); }
#next_tokens meter::-webkit-meter-bar, #next_tokens meter::-webkit-meter-optimum-value,
#next_tokens meter::-webkit-meter-suboptimum-value,
#next_tokens meter::-webkit-meter-even-less-good-value { background: none; }
#next_tokens meter::-moz-meter-bar { background: none; }
#next_tokens dd.confidence { display: none; }  /* whole per cent; the name has it to a tenth */
#next_tokens dt.text { overflow-wrap: anywhere; white-space: pre-wrap; }
footer > div { display: none; }  /* what would divide its one link from others */
"""
