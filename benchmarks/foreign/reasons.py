"""Why a test does not pass: the first rule that fits it says so."""

from __future__ import annotations

import re

from foreign.running import Result

OURS = "ours"
TEXTS = {
    "needs the package magma": r"\bmagma\.\w+(\.\w+)? is compiled code",
    "needs gradients": r"autodiff|popxl\.transforms|[Gg]radient|grad_graph|optimi[sz]er|recompute|"
    r"has no attribute 'transforms'|batch_serialisation",
    "needs Poplar's internals": r"_pb_\w|popart\._internal|\b_ir\b|_from_pb|popart\.\w+|"
    r"compiled code that is not here|No module named 'p(va|opart)'|PartOfPopart|"
    r"tryAttach|_to_device_info",
    "float8": r"float8|fp8|pow2scale",
    "needs the network": r"urlopen|Name or service not known|ConnectionError|Max retries|offline|"
    r"couldn't connect|LocalEntryNotFound|does not appear to have a file|is not a local folder",
    "needs several processes": r"mpi4py|MPI\b|poprun",
    "transformers' version": r"from 'transformers|No module named 'transformers\.",
    "needs Jupyter": r"NoSuchKernel|No module named 'nb",
    "took too long": r"took longer",
    "stops under the SDK, too": r"axes \(0, 3\), sizes \(4, 1\) and index attention",
}
"""Found in the error itself."""
SOURCES = {
    "needs a fork of transformers": r"finetuneanon",
    "needs gradients": r"autodiff\(|autodiff_with|transforms\.autodiff|optimi[sz]er_step|"
    r"mnist(_rts|_template)?\.py",
    "float8": r"float8|pow2scale",
}
"""Found in the test: it cannot pass, whatever it failed with."""
TENSORS = r"len\(\w+\.(tensors|variables|constants)\)"
"""The SDK's ops make other tensors inside: of offsets, of what is written in place."""
WORDS = r"Regex pattern did not match|e_info|excinfo|exc_info|str\(e\.value\)|e\.value\b"
OF_POPXL = ("popxl", "popxl_addons", "popdist")


def reason_of(result: Result) -> str:
    """One of a few reasons, `ours` where nothing excuses this runtime."""
    if result.outcome == "skipped":
        return "skipped by the test"
    if result.outcome == "xfailed":
        return "expected to fail"
    error = _error(result)
    reasons = [name for name, pattern in TEXTS.items() if re.search(pattern, error)]
    reasons += _of_other_packages(result, error)
    reasons += [name for name, text in SOURCES.items() if re.search(text, result.source)]
    if result.kind == "AssertionError" and re.search(TENSORS, result.text[-1500:]):
        reasons.append("counts the SDK's tensors")
    if result.kind in ("AssertionError", "Failed") and re.search(WORDS, result.text[-1500:]):
        reasons.append("checks an error message's words")
    return reasons[0] if reasons else OURS


def _error(result: Result) -> str:
    """The error's own lines: of a program that a test started, the end of its traceback."""
    text = result.message or result.text
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return f"{result.kind}: " + "\n".join(lines[-3:] if len(lines) > 8 else lines)


def _of_other_packages(result: Result, error: str) -> list[str]:
    missing = re.search(r"No module named '([\w.]+)'", error)
    if missing and missing[1].split(".")[0] not in OF_POPXL:
        return [f"needs the package {missing[1].split('.')[0]}"]
    ours = any("/runtime/popxl" in line for line in result.trace)
    theirs = any("/transformers/" in line for line in result.trace[-6:])
    in_torch = bool(result.trace) and "/torch/nn/" in result.trace[-1]
    return ["transformers' version"] if not ours and (theirs or in_torch) else []
