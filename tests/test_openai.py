"""OpenAI's API, by OpenAI's own client."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
import torch
from byte_level import byte_level_tokenizer
from serving import ReferencePasses, Served, generated_text, served
from transformers import BloomForCausalLM, PreTrainedTokenizerFast
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

PROMPT = "A dog is"
MODEL = "BLOOM"


@pytest.fixture(scope="module")
def site(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[Served]:
    with served(ReferencePasses(model, batch_size=2), tokenizer, page=False) as site:
        yield site


@pytest.fixture
def client(site: Served) -> Iterator[openai.OpenAI]:
    with client_of(site) as client:
        yield client


def client_of(site: Served, key: str = "none", **options: object) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{site.url}/v1", api_key=key, max_retries=0, timeout=20, **options
    )


# --- completions ---


def test_a_completion_is_the_text_of_generate(
    client: openai.OpenAI, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)
    (choice,) = found.choices
    assert choice.text == generated_text(model, tokenizer, PROMPT, 12)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    count = len(tokenizer(PROMPT).input_ids)
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (count, 12)
    assert usage.total_tokens == count + 12


def text_of(client: openai.OpenAI, prompt: object = PROMPT, **parameters: object) -> str:
    return completed(client, prompt, **parameters).choices[0].text


def completed(client: openai.OpenAI, prompt: object = PROMPT, **parameters: object) -> object:
    extra = {name: parameters.pop(name) for name in EXTENSIONS if name in parameters}
    parameters = {"max_tokens": 8, "temperature": 0, **parameters}
    return client.completions.create(model=MODEL, prompt=prompt, extra_body=extra, **parameters)


EXTENSIONS = (
    *("top_k", "min_p", "typical_p", "repetition_penalty", "ignore_eos", "stop_token_ids"),
    *("add_special_tokens", "truncate_prompt_tokens", "guided_json", "guided_regex"),
    *("guided_choice", "response_format", "unheard_of"),
)


@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists"])
def test_a_prompt_is_texts_or_tokens(
    client: openai.OpenAI, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, form: str
) -> None:
    texts = [PROMPT, "Où est le garçon"][: 2 if form in ("texts", "lists") else 1]
    ids = [tokenizer(text).input_ids for text in texts]
    prompt = {"text": texts[0], "texts": texts, "ids": ids[0], "lists": ids}[form]
    found = completed(client, prompt)
    assert [choice.index for choice in found.choices] == list(range(len(texts)))
    assert [choice.text for choice in found.choices] == [
        generated_text(model, tokenizer, text, 8) for text in texts
    ]
    assert found.usage.prompt_tokens == sum(map(len, ids))


def test_a_stream_adds_up_to_the_text_and_tells_the_usage_last(client: openai.OpenAI) -> None:
    whole = completed(client, n=2)
    chunks = list(completed(client, n=2, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    for choice in whole.choices:
        own = [c for part in parts for c in part.choices if c.index == choice.index]
        assert "".join(c.text for c in own) == choice.text
        assert [c.finish_reason for c in own][-1] == choice.finish_reason
        assert {c.finish_reason for c in own[:-1]} <= {None}
    assert (last.choices, last.usage) == ([], whole.usage)
    assert {part.usage for part in parts} == {None} and len({part.id for part in chunks}) == 1


def test_log_likelihoods_are_those_of_the_model(
    client: openai.OpenAI, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    (choice,) = completed(client, echo=True, logprobs=3, max_tokens=5).choices
    told = choice.logprobs
    ids = tokenizer(PROMPT).input_ids
    text = generated_text(model, tokenizer, PROMPT, 5)
    assert choice.text == PROMPT + text
    with torch.no_grad():
        output = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
        expected = torch.log_softmax(model(output).logits[0].double(), -1)
    following = output[0, 1:].tolist()
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs[1:] == pytest.approx(
        [expected[place, token].item() for place, token in enumerate(following)], abs=1e-4
    )
    for place, likeliest in enumerate(told.top_logprobs[1:]):
        best = expected[place].topk(3).values.tolist()
        assert sorted(likeliest.values(), reverse=True) == pytest.approx(best, abs=1e-4)
    starts = [len(tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]
    assert told.text_offset[: len(starts)] == starts
    assert told.text_offset == sorted(told.text_offset)


def test_a_prompt_is_scored_without_a_token_more(
    site: Served, client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast
) -> None:
    with_text = completed(client, echo=True, logprobs=1, max_tokens=1)
    site.passes.log.clear()
    alone = completed(client, echo=True, logprobs=1, max_tokens=0)
    assert {kind for kind, _ in site.passes.log} == {"score"}
    (choice,) = alone.choices
    assert (choice.text, alone.usage.completion_tokens) == (PROMPT, 0)
    scored = with_text.choices[0].logprobs.token_logprobs
    assert choice.logprobs.token_logprobs == scored[: len(tokenizer(PROMPT).input_ids)]


def test_a_stream_has_the_log_likelihoods_too(client: openai.OpenAI) -> None:
    (whole,) = completed(client, echo=True, logprobs=2).choices
    parts = [
        c for part in completed(client, echo=True, logprobs=2, stream=True) for c in part.choices
    ]
    told = [part.logprobs for part in parts if part.logprobs is not None]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for one in told for x in getattr(one, name)] == getattr(whole.logprobs, name)


def test_a_token_that_is_part_of_a_character_is_named_by_its_bytes(client: openai.OpenAI) -> None:
    (choice,) = completed(client, "犭", echo=True, logprobs=1, max_tokens=0).choices
    data = b"".join(
        bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
        for name in choice.logprobs.tokens
    )
    assert data.decode() == "犭"


def test_greedy_text_with_a_repetition_penalty_is_transformers(
    client: openai.OpenAI, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    given = {"repetition_penalty": 1.7}
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    output = model.generate(ids, max_new_tokens=8, do_sample=False, **given)
    expected = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert text_of(client, **given) == expected


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 1.5}])
def test_a_penalty_is_subtracted_for_what_was_generated(
    client: openai.OpenAI,
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    penalty: dict,
) -> None:
    presence, frequency = penalty.get("presence_penalty", 0), penalty.get("frequency_penalty", 0)
    prompt = tokenizer(PROMPT).input_ids
    ids = list(prompt)
    for _ in range(8):  # as OpenAI's documentation defines it, on transformers' logits
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        counts = torch.bincount(torch.tensor(ids[len(prompt) :], dtype=int), minlength=len(logits))
        ids.append(int((logits - presence * (counts > 0) - frequency * counts).argmax()))
    assert text_of(client, **penalty) == tokenizer.decode(ids[len(prompt) :])


RULES = [{"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.2}]


@pytest.mark.parametrize(
    "rules", [*RULES, {"temperature": 1.4, "top_k": 20, "top_p": 0.8, "min_p": 0.03}]
)
def test_tokens_are_drawn_as_transformers_rules_have_it(
    client: openai.OpenAI,
    model: BloomForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rules: dict,
) -> None:
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
    warped = TemperatureLogitsWarper(rules.get("temperature", 1.0))(ids, logits)
    kinds = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    for name, kind in kinds.items():
        warped = kind(rules[name])(ids, warped) if name in rules else warped
    chances = warped.softmax(-1)[0].double().numpy()
    given = {"temperature": 1.0, "max_tokens": 1, "logprobs": 0, "n": 128, **rules}
    drawn = [completed(client, seed=seed, **given).choices for seed in (1, 2)]
    told = [choice.logprobs.token_logprobs[0] for choices in drawn for choice in choices]
    each = logits.log_softmax(-1)[0].double().numpy()
    tokens = [int(abs(each - value).argmin()) for value in told]
    counts = np.bincount(tokens, minlength=len(chances))
    assert 2 < (chances > 0).sum() < len(chances) / 2
    assert not counts[chances == 0].any()
    assert counts[chances > 0.04].all()
    expected = len(tokens) * chances[chances > 0]
    error = ((counts[chances > 0] - expected) ** 2 / expected).sum()
    assert error < len(expected) + 4 * math.sqrt(2 * len(expected))  # chi-square, 4 deviations


def test_a_bias_makes_a_token_certain_or_impossible(
    client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast
) -> None:
    (dog,) = tokenizer(" dog").input_ids
    assert text_of(client, logit_bias={str(dog): 100}, max_tokens=3) == " dog dog dog"
    first = completed(client, logprobs=1, max_tokens=1).choices[0].logprobs.tokens[0]
    token = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(first))[0]
    assert text_of(client, logit_bias={str(token): -100}, max_tokens=1) != first


def test_sampling_follows_its_seed_and_each_choice_has_its_own(client: openai.OpenAI) -> None:
    sampled = {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "min_p": 0.001, "seed": 5}
    texts = [choice.text for choice in completed(client, n=3, **sampled).choices]
    assert texts == [choice.text for choice in completed(client, n=3, **sampled).choices]
    assert texts[0] == text_of(client, **sampled) and len(set(texts)) == 3


def test_the_best_are_those_with_the_likeliest_tokens(client: openai.OpenAI) -> None:
    sampled = {"temperature": 1.0, "seed": 5, "logprobs": 0}
    all_of_them = completed(client, n=5, **sampled)

    def mean(choice: object) -> float:
        found = choice.logprobs.token_logprobs
        return sum(found) / len(found)

    expected = sorted((mean(choice) for choice in all_of_them.choices), reverse=True)[:2]
    best = completed(client, n=2, best_of=5, **sampled)
    assert [mean(choice) for choice in best.choices] == pytest.approx(expected)
    assert best.usage.completion_tokens == all_of_them.usage.completion_tokens


def test_a_text_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    text = text_of(client, max_tokens=12)
    stop = text[3:5]
    found = completed(client, max_tokens=12, stop=[stop, "never"]).choices[0]
    assert (found.text, found.finish_reason) == (text[: text.index(stop)], "stop")
    assert text_of(client, max_tokens=12, stop=stop) == found.text


def test_tokens_can_end_a_text_or_not(
    client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast
) -> None:
    (dog,) = tokenizer(" dog").input_ids
    bias = {str(dog): 100}
    found = completed(client, logit_bias=bias, stop_token_ids=[dog])
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("stop", 1)
    bias = {str(tokenizer.eos_token_id): 100}
    found = completed(client, logit_bias=bias)
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("stop", 1)
    found = completed(client, logit_bias=bias, ignore_eos=True)
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("length", 8)


def test_the_last_tokens_of_a_prompt_are_kept(
    client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = "A dog is an animal. " * 40
    ids = tokenizer(long).input_ids[-5:]
    found = completed(client, long, truncate_prompt_tokens=5, echo=True)
    assert found.usage.prompt_tokens == 5
    assert found.choices[0].text == tokenizer.decode(ids) + text_of(client, ids)
    assert text_of(client, add_special_tokens=False) == text_of(client)  # BLOOM's has none


def test_a_text_ends_where_the_context_does(client: openai.OpenAI) -> None:
    found = completed(client, [5] * 60, max_tokens=1000, ignore_eos=True)
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("length", 5)


@pytest.mark.parametrize(
    ("parameters", "param", "message"),
    [
        ({"suffix": "end"}, "suffix", "suffix is not possible"),
        ({"prompt": "ЖЖ" * 90}, "prompt", "the context .* holds 64: shorten the prompt"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "at least one token"),
        ({"prompt": [1, 400]}, "prompt", "from 0 to 399"),
        ({"prompt": [["a"]]}, "prompt", "a text, a list of texts"),
        ({"prompt": {"a": 1}}, "prompt", "a text, a list of texts"),
        ({"prompt": ["A"] * 129}, "prompt", "128 prompts, not 129"),
        ({"n": 129}, "n", "128 texts"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 2, "best_of": 1}, "best_of", "at least n = 2"),
        ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        ({"max_tokens": -1}, "max_tokens", "0 or more, not -1"),
        ({"max_tokens": 0}, "max_tokens", "0 with echo"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "temperature must be .* not -1"),
        ({"top_p": 2}, "top_p", "top_p must be .* not 2"),
        ({"seed": -1}, "seed", "seed must be"),
        ({"logprobs": 21}, "logprobs", "at most 20"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids are from 0 to 399"),
        ({"logit_bias": {"400": 1}}, "logit_bias", "token ids are from 0 to 399"),
        ({"logit_bias": {"4": 101}}, "logit_bias", "less than or equal to 100"),
        ({"stop_token_ids": [400]}, "stop_token_ids", "token ids are from 0 to 399"),
        ({"stop": ["x"] * 65}, None, "64 texts"),
        ({"stop": [""]}, None, "not empty"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream alone"),
        ({"unheard_of": 1}, "unheard_of", "there is no parameter 'unheard_of'"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_refused_in_a_sentence(
    client: openai.OpenAI, parameters: dict, param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        completed(client, **parameters)
    assert raised.value.param == param and raised.value.type == "invalid_request_error"


# --- constrained texts ---

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ["guided_json", "guided_json text", "response_format"])
def test_a_text_follows_a_schema(client: openai.OpenAI, name: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
    given: dict = {
        "guided_json": {"guided_json": SCHEMA},
        "guided_json text": {"guided_json": json.dumps(SCHEMA)},
        "response_format": {"response_format": schema},
    }[name]
    for seed in range(3):
        found = completed(client, temperature=1.0, seed=seed, max_tokens=60, top_k=5, **given)
        if found.choices[0].finish_reason == "stop":  # else the integer is long
            value = json.loads(found.choices[0].text)
            assert value.keys() == {"age", "kind"} and type(value["age"]) is int
            assert value["kind"] in ("cat", "dog")
        else:
            assert re.match(r'\{ ?"age" ?: ?-?[0-9]', found.choices[0].text)


def test_a_text_is_a_json_object(client: openai.OpenAI) -> None:
    text = text_of(client, response_format={"type": "json_object"}, max_tokens=1)
    assert text.startswith("{")


def test_a_text_follows_an_expression(client: openai.OpenAI) -> None:
    (choice,) = completed(client, guided_regex="[0-9]{3}-(é|犬){2}", max_tokens=30).choices
    assert re.fullmatch("[0-9]{3}-(é|犬){2}", choice.text)
    assert choice.finish_reason == "stop"


def test_a_text_is_one_of_the_choices(client: openai.OpenAI) -> None:
    choices = ["yes (it is)", "no [never]*", "犬"]
    texts = {
        text_of(client, guided_choice=choices, temperature=2.0, seed=seed, max_tokens=30)
        for seed in range(6)
    }
    assert texts <= set(choices) and len(texts) > 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"guided_regex": "((("}, "regex cannot be followed"),
        ({"guided_json": {"type": "fish"}}, "json schema cannot be followed"),
        ({"guided_json": "{"}, "is not JSON"),
        ({"guided_choice": []}, "at least one text"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "at once"),
        ({"guided_regex": "a" * 70_000}, "65536 bytes"),
        ({"response_format": {"type": "json_schema"}}, "schema must be given"),
    ],
)
def test_a_constraint_that_is_none_is_refused(
    client: openai.OpenAI, parameters: dict, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        completed(client, **parameters)


# --- chats, models, tokens ---

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def chatting(model: BloomForCausalLM) -> Iterator[Served]:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with served(ReferencePasses(model, batch_size=2), tokenizer, page=False) as site:
        yield site


def test_a_chat_continues_what_its_template_makes(
    chatting: Served, model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    messages: list = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "A do"}, {"type": "text", "text": "g"}],
        },
    ]
    expected = generated_text(model, tokenizer, "system: Be kind.\nuser: A dog\nassistant:", 6)
    with client_of(chatting) as client:
        create = client.chat.completions.create
        asked: dict = {"model": MODEL, "messages": messages, "temperature": 0}
        found = create(**asked, max_completion_tokens=6, logprobs=True, top_logprobs=2)
        (choice,) = found.choices
        assert (choice.message.role, choice.message.content) == ("assistant", expected)
        assert choice.finish_reason == "length" and found.usage.completion_tokens == 6
        content = choice.logprobs.content
        assert bytes(b for one in content for b in one.bytes).decode(errors="replace") == expected
        assert all(one.top_logprobs[0].logprob == one.logprob for one in content)  # greedy
        parts = [c for part in create(**asked, max_tokens=6, stream=True) for c in part.choices]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == expected
        with pytest.raises(openai.BadRequestError, match="no such role"):
            create(model=MODEL, messages=[{"role": "bad", "content": "x"}])


def test_a_chat_with_a_model_that_has_no_template_is_told_why(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "A"}])


def test_the_model_is_listed_and_no_other_is_answered_for(client: openai.OpenAI) -> None:
    (one,) = client.models.list().data
    assert (one.id, one.max_model_len, client.models.retrieve(MODEL).id) == (MODEL, 64, MODEL)
    assert client.completions.create(model=f"owner/{MODEL}", prompt="A").choices
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'") as raised:
        client.completions.create(model="gpt-4", prompt="A")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_texts_are_tokens_and_back(site: Served, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Où est 犬?"
    tokens = httpx.post(f"{site.url}/tokenize", json={"prompt": text}).json()
    assert tokens["tokens"] == tokenizer(text).input_ids
    assert tokens["count"] == len(tokens["tokens"])
    back = httpx.post(f"{site.url}/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert back == {"prompt": text}
    assert httpx.post(f"{site.url}/detokenize", json={"tokens": [400]}).status_code == 400
