"""Why a test does not pass: the first rule that fits it says so."""

from __future__ import annotations

import re

from foreign.running import Result

OURS = "ours"
TEXTS = {
    "needs the package magma": r"\bmagma\.\w+(\.\w+)? is compiled code",
    "needs gradients": r"(gradients|optimisers) are not (there|supported)",
    "trains on MNIST": r"torchvision::nms does not exist|torchvision/datasets/mnist",
    "needs Poplar's internals": r"_pb_\w|popart\._internal|\b_ir\b|_from_pb|popart\.\w+|"
    r"compiled code that is not here|No module named 'p(va|opart)'|PartOfPopart|"
    r"tryAttach|_to_device_info|has no attribute modifiesIndex",
    "float8": r"8-bit floats|no attribute 'max_value'",
    "needs the network": r"urlopen|Name or service not known|ConnectionError|Max retries|offline|"
    r"couldn't connect|LocalEntryNotFound|does not appear to have a file|is not a local folder",
    "needs several processes": r"mpi4py|MPI\b|directory: 'poprun'",
    "transformers' version": r"from 'transformers|No module named 'transformers\.",
    "needs Jupyter": r"NoSuchKernel|No module named 'nb",
    "took too long": r"took longer",
    "checks names that the SDK makes up": r"^KeyError: 100$",
    "reads the SDK's log": r"variable w_remote is float32 \(2, 2, 2\), a slot of|"
    r"Failed to find warning message .* in log",
    "stops under the SDK, too": r"axes \(0, 3\), sizes \(4, 1\) and index attention",
    "takes more than the SDK": r"DID NOT RAISE NotImplementedError",
    "reads what the SDK leaves undefined": r"IndexError: gather: index -?\d+ is outside the axis",
    "builds what cannot run": r"matmul: operands must have one dtype, but x is float32, input is "
    r"float16|swish_?: variable must hold floats, got int32|"
    r"nll_loss_with_softmax_grad: labels variable__1 must hold integers, got float32|"
    r"sparse_accumulate_: axis 1 is outside variable of shape \(2,\)|"
    r"dynamic_update_?: t_update must be of shape \(1, 5, 3\), variable__2 is \(1, 3\)|"
    r"leaves nothing of the sizes \(1, 1\)|the main graph takes no inputs|"
    r"variable v1 is float32 \(5, 3, 7, 7\), a slot of|"
    r"variable v1 of 735 elements, shared by \d+ replicas, has no parts",
}
"""Found in the error itself."""
TESTS = {
    "needs a fork of transformers": r"gptj/test_(attention|decoder_block|gptj|lm)_TP\.py::\w+ "
    r"(AssertionError|AttributeError)",  # GPT-Neo with rotary embeddings
    "needs Poplar's internals": r"test_sharding_valid_when_global_replication.* divisor|"
    r"TestCall::test_mismatch_inputs_error TypeError|"  # the test wants popart's exception
    r"test_modifying_ops\[modifying_subgraph_2-True\] TypeError",
    "takes more than the SDK": r"TestReplicaGroupingNonConst::test_constructor_checks .*NOT RAISE",
    "torchvision's stand-in": r"test_roi_align_batch AssertionError",
    "tunes an IPU": r"test_io_tile_exchange_failed_verify .*NOT RAISE",
}
"""Single tests that somebody looked at, with their error."""
STATEMENTS = {
    # The SDK's ops make other tensors inside: of offsets, of what is written in place.
    "counts the SDK's tensors": r"len\(\w+\.(tensors|variables|constants)\)",
    "checks an error message's words": r"\b(e|exc|e_info|excinfo|exc_info|exception)\.value|"
    r"\bin (msg|message|str\((e|exc|e_info|excinfo|exc_info)(\.value)?\))|pytest\.raises\(.*match=",
    "checks a repr's words": r"assert \(?\s*repr\(",
    "checks names that the SDK makes up": r"assert t\.name == exp_name",
    "reads the SDK's log": r"started_?[eE]ngine_?[cC]ompilation|len\(matches\) == |"
    r"assert_num_weights_to_host\(",
}
"""Found in the statement of the test whose assertion fails."""
PRIVATE = r"(has no attribute|cannot import name) '(_\w+|to_device_map|set_remote_buffer_info|ir_)'"
"""Private names, and public ones that PopXL's interface does not document."""
OF_POPXL = ("popxl", "popxl_addons", "popdist")


def reason_of(result: Result) -> str:
    """One of a few reasons, `ours` where nothing excuses this runtime."""
    if result.outcome == "skipped":
        return "skipped by the test"
    if result.outcome == "xfailed":
        return "expected to fail"
    error = _error(result)
    reasons = _fitting(TEXTS, error)
    reasons += _of_other_packages(result, error)
    reasons += _fitting(TESTS, f"{result.test} {error}")
    if result.kind == "AssertionError":
        reasons += _fitting(STATEMENTS, _statement(result))
    if re.search(PRIVATE, error) and not _in_runtime(result.trace[-1:]):
        reasons.append("needs PopXL's private names")
    return reasons[0] if reasons else OURS


def _fitting(patterns: dict[str, str], text: str) -> list[str]:
    return [name for name, pattern in patterns.items() if re.search(pattern, text)]


def _error(result: Result) -> str:
    """The error's own lines: of a program that a test started, the end of its traceback."""
    text = result.message or result.text
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return f"{result.kind}: " + "\n".join(lines[-3:] if len(lines) > 8 else lines)


def _statement(result: Result) -> str:
    """What pytest shows of the code where the test failed: the lines above the error's own."""
    lines = result.text.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"\S+:\d+: in ", line)]
    shown = lines[starts[-1] + 1 if starts else 0 :]
    errors = [i for i, line in enumerate(shown) if line.startswith("E ")]
    return "\n".join(shown[: errors[0]] if errors else shown)


def _in_runtime(trace: list[str]) -> bool:
    return any("/runtime/popxl" in line for line in trace)


def _of_other_packages(result: Result, error: str) -> list[str]:
    missing = re.search(r"No module named '([\w.]+)'", error)
    if missing and missing[1].split(".")[0] not in OF_POPXL:
        return [f"needs the package {missing[1].split('.')[0]}"]
    if _in_runtime(result.trace):
        return []
    last = result.trace[-6:]
    if any("/onnx/" in line for line in last):
        return ["onnx's version"]
    if last and "/scipy/" in last[-1]:
        return ["scipy's version"]
    theirs = any("/transformers/" in line for line in last) or "/torch/nn/" in "".join(last[-1:])
    return ["transformers' version"] if theirs else []
