"""How near the program comes to the machine's limits: one table, a row for each demand.

    python benchmarks/speed.py
    python benchmarks/speed.py --config bloom_7B1 --rows decode_16 decode_4

Each value is a share of a limit, or a ratio of two things, that were measured in turn in the same
run. `needed` is the least that is acceptable. Settings may be given by name, as for every script.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import speed_rows as rows  # noqa: E402 - what it needs is found just above
from speed_rows import Bench, NotMeasuredError, Value  # noqa: E402

from utils.setup import UserError, run_script, setup_logging  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One demand.

    Attributes:
        form: how values are written.
        needed, aim: of the value; with `less` it must be at most these, not at least.
    """

    what: str
    needed: float
    aim: float
    measure: Callable[[Bench], Value]
    form: str = "{:.0%}"
    less: bool = False

    def verdict(self, value: float) -> str:
        sign = -1 if self.less else 1
        if sign * value >= sign * self.aim:
            return "aim reached"
        return "enough" if sign * value >= sign * self.needed else "SHORT"


ROWS = {
    "decode_16": Row("decode, 16-bit weights, of bandwidth", 0.85, 0.95, rows.decode),
    "decode_8": Row(
        "decode, 8-bit weights, of bandwidth",
        0.75,
        0.90,
        lambda b: rows.decode(b, "--weight_precision", "int8"),
    ),
    "decode_4": Row(
        "decode, 4-bit weights, of bandwidth",
        0.60,
        0.85,
        lambda b: rows.decode(b, "--weight_precision", "int4"),
    ),
    "context": Row("decode, context 1000 against 100", 0.85, 0.95, rows.context, "{:.2f} x"),
    "batch": Row("decode, batch 8 against 1, tokens/s", 5, 7, rows.batch, "{:.2f} x"),
    "batch_bf16": Row(
        "the same in bfloat16", 5, 7, lambda b: rows.batch(b, "--precision", "bfloat16"), "{:.2f} x"
    ),
    "prompt": Row("prompt of 512, bfloat16, of matmul rate", 0.70, 0.85, rows.prompt),
    "sharded": Row("decode, 4 x 4 shards against 1 x 1", 0.6, 0.85, rows.sharded, "{:.2f} x"),
    "hf_decode": Row(
        "decode, against transformers", 3, 4, lambda b: rows.transformers(b, "decode"), "{:.2f} x"
    ),
    "hf_prompt": Row(
        "prompt, against transformers", 1.5, 2, lambda b: rows.transformers(b, "prompt"), "{:.2f} x"
    ),
    "launch": Row("second launch to first token", 8, 3, rows.launch, "{:.1f} s", less=True),
}


def main() -> None:
    """Measure the rows that are asked for and print each when it is there."""
    arguments, words = _arguments()
    setup_logging("warning")
    with _folder(arguments.work_dir) as folder:
        bench = Bench(words, arguments.repeats, folder)
        bench.config()  # settings that are not possible end here
        print(_line("", "measured", "needed", "aim", "verdict", "against"), flush=True)
        for name in arguments.rows:
            row = ROWS[name]
            demands = row.form.format(row.needed), row.form.format(row.aim)
            try:
                found = row.measure(bench)
            except NotMeasuredError as reason:
                print(_line(row.what, "-", *demands, "not available", str(reason)), flush=True)
                continue
            finally:
                gc.collect()  # a session is large, and may be in cycles
            shown, verdict = row.form.format(found.value), row.verdict(found.value)
            print(_line(row.what, shown, *demands, verdict, found.against), flush=True)


# --- the command line ---


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="bloom_560M", help="preset whose shape is used")
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each row, 1 or more")
    parser.add_argument("--work_dir", help="of the maps of `launch`, kept; else temporary")
    arguments, settings = parser.parse_known_args()
    if unknown := [name for name in arguments.rows if name not in ROWS]:
        raise UserError(f"rows must be of {', '.join(ROWS)}, not {', '.join(unknown)}")
    if arguments.repeats < 1:
        raise UserError(f"repeats must be 1 or more, not {arguments.repeats}")
    return arguments, ["--config", arguments.config, *settings]


@contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    """The folder given, which is kept, or one that is gone afterwards."""
    folder = Path(given).expanduser() if given else Path(tempfile.mkdtemp(prefix="popxl_speed_"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not given:
            shutil.rmtree(folder, ignore_errors=True)


def _line(what: str, measured: str, needed: str, aim: str, verdict: str, against: str) -> str:
    return f"{what:<40} {measured:>9} {needed:>8} {aim:>8}  {verdict:<13}  {against}".rstrip()


if __name__ == "__main__":
    run_script(main)
