"""What the body of a request may have: OpenAI's parameters, and each setting of the house by name.

A setting is typed, described and bounded by its field in `utils.generation.settings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from utils.generation.settings import Setting, settings_of

RENAMED = ("num_tokens", "stop")
"""Settings that OpenAI's API names or writes otherwise."""

TokenId = Annotated[int, Field(ge=0)]
MOST_BIAS = 100.0


class Body(BaseModel):
    """Of any request: nothing that is not known, and no text in place of a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    """What a stream has besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    """A schema, and what its sender calls it."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What a text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Generating(Body):
    """Parameters of completions and chats alike; those that are null have their defaults."""

    model: str | None = None
    max_tokens: int | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-MOST_BIAS, le=MOST_BIAS)]] | None = None
    user: str | None = Field(None, description="taken, and not used")
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None


class Completing(Generating):
    """Parameters of completions alone."""

    prompt: Any = Field(
        description="a text, a list of texts, token ids, or a list of lists of token ids"
    )
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    suffix: Any = Field(None, description="refused: the model continues texts, and fills no gaps")


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """Of a chat."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """With its content as one text, as templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


class Chatting(Generating):
    """Parameters of chats alone."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None


class Tokenizing(Body):
    """A text to be cut into tokens."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None


class Detokenizing(Body):
    """Tokens to be put together."""

    model: str | None = None
    tokens: list[TokenId]


def _field(name: str, found: Setting) -> tuple[Any, Any]:
    def check(value: Any) -> Any:
        if value is not None:
            found.check(name, value)
        return value

    kind: Any = found.kind
    return Annotated[kind | None, AfterValidator(check)], Field(None, description=found.help)


SETTINGS = {name: _field(name, s) for name, s in settings_of().items() if name not in RENAMED}
CompletionRequest: Any = create_model("CompletionRequest", __base__=Completing, **SETTINGS)  # type: ignore[call-overload]
ChatRequest: Any = create_model("ChatRequest", __base__=Chatting, **SETTINGS)  # type: ignore[call-overload]
