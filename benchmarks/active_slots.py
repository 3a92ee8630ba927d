"""How decoding pays for slots: tokens a second with so many in use, and of the machine's limits.

    python benchmarks/active_slots.py --config bloom_560M --precision bfloat16 --batch_size 32

Weights and prompts are random. All slots are filled once, then requests are cancelled, so that ever
fewer decode. The limit of a step is the longer of two times: weights and filled caches at the read
bandwidth, and operations at the rate of large matrix products, both sampled round each measurement.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from config import parse_arguments  # noqa: E402 - found just above
from config.options import field  # noqa: E402
from utils.benchmark.limits import ROWS_AT_MOST, MachineLimits  # noqa: E402
from utils.benchmark.measuring import Greedy  # noqa: E402
from utils.benchmark.work import Work, work_of  # noqa: E402
from utils.checkpoints.random_weights import fill_randomly  # noqa: E402
from utils.generation.engine import Engine  # noqa: E402
from utils.generation.loading import build  # noqa: E402
from utils.generation.passes import Passes  # noqa: E402
from utils.generation.ticket import Ticket  # noqa: E402
from utils.setup import UserError, run_script, setup_logging  # noqa: E402

WARM_UP = 2


@dataclass
class ActiveSlotsArguments:
    """What to measure."""

    active: tuple[int, ...] = field(
        default=(1, 2, 4, 8, 16, 17, 24, 32), help="slots in use, ascending, at most batch_size"
    )
    prompt: int = field(default=128, help="tokens of each prompt")
    steps: int = field(default=8, help="steps that are measured of each number of slots")
    json: bool = field(default=False, help="print one JSON object a line")


@dataclass(frozen=True)
class Row:
    """Decoding with so many slots in use; `share` is of the machine's limit."""

    active: int
    seconds: float
    tokens_per_second: float
    share: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark's command line."""
    config, arguments = parse_arguments(
        argv, extra=ActiveSlotsArguments, prog="active_slots.py", description=__doc__
    )
    setup_logging("warning")
    active, slots = arguments.active, config.execution.batch_size
    ends = arguments.prompt + len(active) * (arguments.steps + WARM_UP) + 2
    if not active or sorted(set(active)) != [*active] or not 1 <= active[0] <= active[-1] <= slots:
        raise UserError(f"active must be ascending from 1 to batch_size = {slots}, not {active}")
    if arguments.prompt < 1 or arguments.steps < 1 or ends > config.model.sequence_length:
        raise UserError(f"the context must hold {ends} tokens, not {config.model.sequence_length}")
    session = build(config)
    fill_randomly(session, np.random.default_rng(0))
    limits, work = MachineLimits.of(config, ROWS_AT_MOST), work_of(config, session)
    with session:
        engine = Engine(Passes(config, session), prefill_first=True, max_queue=slots)
        random = np.random.default_rng(1)
        prompts = random.integers(config.model.vocab_size, size=(active[-1], arguments.prompt))
        room = config.model.sequence_length - arguments.prompt
        tickets = [engine.submit(Greedy(prompt, room)) for prompt in prompts]
        while not all(ticket.generated_tokens for ticket in tickets):
            engine.step()
        for count in reversed(active):
            for ticket in tickets[count:]:
                ticket.cancel()
            show(measured(engine, tickets[:count], arguments.steps, limits, work), arguments.json)
    return 0


def measured(
    engine: Engine, tickets: list[Ticket], steps: int, limits: MachineLimits, work: Work
) -> Row:
    """Steps of decoding of these requests, which are all that run."""
    bandwidth, matmuls = limits.bandwidth(), limits.matmuls()
    for _ in range(WARM_UP):
        seconds_a_token(engine, tickets)
    bandwidth.begin()
    matmuls.begin()
    seconds = [seconds_a_token(engine, tickets) for _ in range(steps)]
    count, filled = len(tickets), len(tickets[0].work.ids)
    reading = work.step_bytes(count, filled) / bandwidth.end()
    each = work.layer_operations + work.head_operations + filled * work.attention_operations
    least = max(reading, count * each / matmuls.end())
    median = statistics.median(seconds) * count
    return Row(count, median, count / median, least / median)


def seconds_a_token(engine: Engine, tickets: list[Ticket]) -> float:
    """Of one pass; it gives a token to as many requests as it has room for, in turn."""
    before = sum(len(ticket.work.ids) for ticket in tickets)
    step = engine.step()
    assert step is not None
    return step.seconds / (sum(len(ticket.work.ids) for ticket in tickets) - before)


def show(row: Row, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(row)), flush=True)
    else:
        print(
            f"{row.active:4d} slots in use: {1000 * row.seconds:7.1f} ms, "
            f"{row.tokens_per_second:7.1f} tokens/s, {row.share:5.0%} of the limit",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main)
