"""What `fuzz_requests.py` begins with for the API: each parameter, in bodies that are right."""

from __future__ import annotations

from typing import Any

SECRET = "s3cret"
PET = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "kind": {"enum": ["cat", SECRET]}},
    "required": ["age"],
}
SAMPLING = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "typical_p": 0.9, "seed": 1,
    "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5,
}  # fmt: skip
BODY: dict[str, Any] = {"prompt": f"{SECRET} A dog is", "max_tokens": 3}
CHAT = {"messages": [{"role": "user", "content": f"{SECRET} A dog"}], "max_tokens": 2}
BODIES: list[dict[str, Any]] = [
    {**BODY, **SAMPLING},
    {**BODY, "prompt": [SECRET, "B"], "n": 2, "best_of": 3, "logprobs": 2},
    {**BODY, "prompt": [5, 6, 7], "echo": True, "logprobs": 1, "max_tokens": 0},
    {**BODY, "prompt": [[5], [6, 7]], "stream": True, "stream_options": {"include_usage": True}},
    {**BODY, "stop": [SECRET, "x"], "logit_bias": {"5": 2, "6": -100}, "user": SECRET},
    {**BODY, "ignore_eos": True, "stop_token_ids": [5], "add_special_tokens": False},
    {**BODY, "truncate_prompt_tokens": 2, "suffix": None, "model": "BLOOM"},
    {**BODY, "guided_json": PET, "max_tokens": 9},
    {**BODY, "guided_regex": "[a-z]{3}|(1|2)+", "stream": True},
    {**BODY, "guided_choice": ["a cat", SECRET]},
    {**BODY, "response_format": {"type": "json_object"}},
    {**BODY, "response_format": {"type": "json_schema", "json_schema": {"schema": PET}}},
]
ENDPOINTS: list[tuple[str, str, Any]] = [
    *[("POST", "/v1/completions", body) for body in BODIES],
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/tokenize", {"prompt": f"{SECRET} A dog", "add_special_tokens": True}),
    ("POST", "/detokenize", {"tokens": [5, 300, 7]}),
    *[("GET", path, None) for path in ("/v1/models", "/v1/models/BLOOM", "/metrics", "/v1/files")],
]
