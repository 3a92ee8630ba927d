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
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }

#output textarea {
    font-size: var(--text-lg); line-height: 1.6; color: var(--neutral-900);
    -webkit-text-fill-color: currentColor; overflow-wrap: anywhere; unicode-bidi: plaintext;
}
.dark #output textarea { color: var(--neutral-50); }

.form:has(> :is(#status, #remark)) { border: none; background: none; }
:is(#status, #remark) { border: none; background: none; padding: 0 0.3em; }
:is(#status, #remark) textarea {
    border: none; background: none; padding: 0; box-shadow: none;
    color: var(--neutral-600); -webkit-text-fill-color: currentColor;
    font-variant-numeric: tabular-nums;
}
.dark :is(#status, #remark) textarea { color: var(--neutral-300); }
:is(#status, #remark).error textarea { color: #b91c1c; font-weight: 600; }
.dark :is(#status, #remark).error textarea { color: #fca5a5; }

input[type=range]::-webkit-slider-thumb { box-shadow: 0 0 0 2px var(--primary-600) !important; }
input[type=range]::-moz-range-thumb { box-shadow: 0 0 0 2px var(--primary-600) !important; }
.dark input[type=range] { --neutral-200: var(--neutral-700); }  /* the part not chosen */

#next_tokens .inner-wrap {
    display: grid; grid-template-columns: minmax(0, min(15em, 60%)) minmax(4em, 1fr);
    align-items: center;
}
#next_tokens .confidence-set { margin: 0; padding: 0.2em 0.4em; border-radius: var(--radius-md); }
#next_tokens .confidence-set:hover { background: var(--button-secondary-background-fill); }
#next_tokens dl { order: -1; margin: 0; }
#next_tokens dt.text { overflow-wrap: anywhere; white-space: pre-wrap; text-align: left; }
#next_tokens .line { display: none; }
#next_tokens dd.confidence { display: none; }  /* whole per cent; the name has it to a tenth */
#next_tokens meter {
    align-self: center; height: 0.9em; margin: 0; background: var(--primary-500) !important;
}
#next_tokens meter::-webkit-meter-bar, #next_tokens meter::-webkit-meter-optimum-value,
#next_tokens meter::-webkit-meter-suboptimum-value,
#next_tokens meter::-webkit-meter-even-less-good-value { background: none; }
#next_tokens meter::-moz-meter-bar { background: none; }

#next_tokens > label > span, #examples .label svg { display: none; }
#explanation { padding: 0 0.3em; }
#explanation .md * { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
@media (max-width: 640px) {  /* phones zoom in on a field with smaller print */
    :is(#prompt, #seed, #stop_strings) :is(textarea, input) { font-size: 16px; }
}
@media (pointer: coarse) { #prompt .info-text { display: none; } }  /* of a key it has not */
footer > div { display: none; }  /* what would divide its one link from others */
"""
