"""Clients of the page's server, in a process of their own; `serving.py` starts it.

Reads a JSON object from standard input: `address`, `prompts`, `new_tokens`. Each prompt has a
client of its own. Writes one with `at_once` and `in_turn`, each with the `seconds` that all took
and the `answers`: text, number of tokens, and seconds to the first one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gradio_client import Client


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n\n")[0]).parse_args()
    task = json.load(sys.stdin)
    prompts = task["prompts"]
    clients = [Client(task["address"], verbose=False) for _ in prompts]

    def ask(number: int) -> dict[str, Any]:
        return asked(clients[number], prompts[number], task["new_tokens"])

    ask(0)  # what is made at first use
    numbers = range(len(prompts))
    with ThreadPoolExecutor(len(prompts)) as pool:
        at_once = timed(lambda: list(pool.map(ask, numbers)))
    in_turn = timed(lambda: [ask(number) for number in numbers])
    json.dump({"at_once": at_once, "in_turn": in_turn}, sys.stdout)


def asked(client: Client, prompt: str, new_tokens: int) -> dict[str, Any]:
    """One request, streamed to its end."""
    begin, first, update = time.perf_counter(), 0.0, {}
    for update in client.submit(prompt, num_tokens=new_tokens, api_name="/generate"):
        if not first and update["generated_tokens"]:
            first = time.perf_counter() - begin
    return {"text": update["text"], "tokens": update["generated_tokens"], "first": first}


def timed(run: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    begin = time.perf_counter()
    answers = run()
    return {"seconds": time.perf_counter() - begin, "answers": answers}


if __name__ == "__main__":
    main()
