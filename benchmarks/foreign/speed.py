"""How fast public programs run, each in the environment of its time.

python benchmarks/foreign/speed.py FOLDER_OF_CLONES
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from foreign.environment import DRIVERS, make_environment, variables  # noqa: E402 - found just above
from foreign.groups import ROTARY  # noqa: E402

PROGRAMS = {
    "llama_speed.py": ("nlp/llama/popxl", f"modelling.rotary_pos_embed.rotary_pos_embed={ROTARY}"),
    "bloom_speed.py": ("nlp/bloom/popxl",),
}
"""Of each driver: the folder of the program, and what is substituted in it."""


def speed(clones: Path, python: Path, drivers: Sequence[str] = tuple(PROGRAMS)) -> list[dict]:
    """A row for each driver: its name, the share of the machine's limit, seconds, the limit.

    Raises:
        subprocess.CalledProcessError: where a program fails; what it said is shown.
    """
    rows = []
    for driver in drivers:
        folder, *substitutes = PROGRAMS[driver]
        place = clones / "examples" / folder
        command = [str(python), "-m", "popxl_torch.run", "--standins", "--python38"]
        for text in substitutes:
            command += ["--substitute", text]
        environment = variables(python, clones, [place])
        with tempfile.TemporaryDirectory() as scratch:
            done = subprocess.run(
                [*command, str(DRIVERS / driver)],
                cwd=scratch,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return rows


def show(row: dict) -> str:
    """A row in one line."""
    share, seconds, limit = row["share"], row["seconds"], row["limit"] / 1e9
    return f"{row['name']}: {share:.0%} of {limit:.1f} G{row['unit']}, {seconds * 1e3:.1f} ms"


def main() -> None:
    clones, *drivers = sys.argv[1:]
    python = make_environment(Path.home() / ".cache" / "popxl" / "foreign" / "venv")
    for row in speed(Path(clones).resolve(), python, drivers or tuple(PROGRAMS)):
        print(show(row))


if __name__ == "__main__":
    main()
