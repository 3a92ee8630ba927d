"""Why a test does not pass: the first rule that fits it says so."""

from __future__ import annotations

import re

from foreign.running import Result

OURS = "ours"
NAMES = {
    "gradients": r"autodiff|gradient|grad_graph|_grad\b|optimi[sz]ers?\b|recompute",
    "Poplar's internals": r"_pb_|popart\._internal|_ir\b|popart\.\w+|"
    r"compiled code that is not here",
    "float8": r"float8|fp8|pow2scale",
    "the network": r"urlopen|Name or service not known|ConnectionError|Max retries|offline|"
    r"couldn't connect|LocalEntryNotFound|OfflineModeIsEnabled|does not appear to have a file|"
    r"is not a local folder",
    "several processes": r"mpi4py|MPI|poprun",
}
WORDS = r"Regex pattern did not match|e_info|excinfo|exc_info|str\(e\.value\)|e\.value\b"
OF_POPXL = ("popxl", "popxl_addons", "popdist")


def reason_of(result: Result) -> str:
    """One of a few reasons, `ours` where nothing excuses this runtime."""
    if result.outcome == "skipped":
        return "skipped by the test"
    if result.outcome == "xfailed":
        return "expected to fail"
    error = f"{result.kind}: {result.message}" if result.message else result.text[-1500:]
    for name, pattern in NAMES.items():
        if re.search(pattern, error):
            return f"needs {name}"
    if re.search(r"took longer", error):
        return "took too long"
    for name in ("gradients", "float8"):
        if re.search(NAMES[name], result.source + result.test):
            return f"needs {name}"
    missing = re.search(r"No module named '([\w.]+)'", error)
    if missing and missing[1].split(".")[0] not in OF_POPXL:
        return f"needs the package {missing[1].split('.')[0]}"
    if result.trace and "/transformers/" in result.trace[-1]:
        return "transformers' version"
    if result.kind in ("AssertionError", "Failed") and re.search(WORDS, result.text[-1500:]):
        return "checks an error message's words"
    return OURS
