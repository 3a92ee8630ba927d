"""The API as an application: what is at which address, and how its errors are answered."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import replace
from typing import Any

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from utils.serving.api.chat import ChatAnswer, plan_chat
from utils.serving.api.completions import CompletionAnswer, plan_completion
from utils.serving.api.constraints import Constraints
from utils.serving.api.errors import ApiError, form, of_validation
from utils.serving.api.metrics import Meter
from utils.serving.api.plan import Plan
from utils.serving.api.prompts import check_token_ids, text_of
from utils.serving.api.responses import Events, answer_unless_gone
from utils.serving.api.schema import ChatRequest, CompletionRequest, Detokenizing, Tokenizing
from utils.serving.service import Service
from utils.setup import UserError

TITLE = "BLOOM, by OpenAI's API"


def build_api(service: Service, meter: Meter) -> fastapi.FastAPI:
    """The API, `/health` and `/metrics`; a page may be mounted under it."""
    app = fastapi.FastAPI(title=TITLE, openapi_url=None)
    _add_errors(app)
    _add_health(app, service, meter)
    _add_models(app, service)
    _add_tokens(app, service)
    _add_completions(app, service)
    return app


def _add_errors(app: fastapi.FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: fastapi.Request, error: RequestValidationError) -> Response:
        return _answer(of_validation(error.errors()))

    @app.exception_handler(ApiError)
    async def refused(request: fastapi.Request, error: ApiError) -> Response:
        return _answer(error)

    @app.exception_handler(HTTPException)
    async def other(request: fastapi.Request, error: HTTPException) -> Response:
        body = form(error.status_code, str(error.detail))
        return JSONResponse(body, error.status_code, error.headers)


def _answer(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _add_health(app: fastapi.FastAPI, service: Service, meter: Meter) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        statistics = service.engine.statistics()
        status = {"status": "ok" if statistics.alive else "stopping"}
        code = 200 if statistics.alive else 503
        return JSONResponse(status | dataclasses.asdict(statistics), code)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(meter.text(), media_type=CONTENT_TYPE_LATEST)


def _add_models(app: fastapi.FastAPI, service: Service) -> None:
    begun = int(time.time())

    def model() -> dict[str, Any]:
        return {
            "id": service.about.name,
            "object": "model",
            "created": begun,
            "owned_by": "bloom",
            "max_model_len": service.engine.passes.sequence_length,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        check_model(service, name)
        return model()


def _add_tokens(app: fastapi.FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(body: Tokenizing) -> dict[str, Any]:
        check_model(service, body.model)
        special = body.add_special_tokens is not False
        try:
            ids = await service.ids(body.prompt, special=special)
        except UserError as error:
            raise ApiError(400, str(error), param="prompt") from None
        context = service.engine.passes.sequence_length
        return {"count": len(ids), "max_model_len": context, "tokens": ids}

    @app.post("/detokenize")
    async def detokenize(body: Detokenizing) -> dict[str, Any]:
        check_model(service, body.model)
        try:
            ids = check_token_ids(service, body.tokens)
        except UserError as error:
            raise ApiError(400, str(error), param="tokens") from None
        return {"prompt": text_of(service.tokenizer, ids)}


def _add_completions(app: fastapi.FastAPI, service: Service) -> None:
    constraints = Constraints(service)

    async def plan(make: Any, body: Any) -> Plan:
        check_model(service, body.model)
        found = await make(service, body)
        grammar = await constraints.of(body) if found.max_tokens else None
        return found if grammar is None else replace(found, constraint=grammar)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: fastapi.Request) -> Response:
        planned = await plan(plan_completion, body)
        return await answered(request, CompletionAnswer(service, planned, body))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: fastapi.Request) -> Response:
        planned = await plan(plan_chat, body)
        return await answered(request, ChatAnswer(service, planned, body))


async def answered(request: fastapi.Request, answer: CompletionAnswer) -> Response:
    """The answer as its body asks for it. Raises an `ApiError` where there is none."""
    try:
        await answer.begin()
        if answer.streamed:
            return Events(answer.chunks(), answer.close)
        try:
            return await answer_unless_gone(request, answer.whole())
        finally:
            await answer.close()
    except Exception as error:
        raise ApiError.of(error) from error


def check_model(service: Service, name: str | None) -> None:
    """Raises an `ApiError` where a request asks for another model than the one that is served."""
    own = service.about.name
    if name is not None and name != own and not name.endswith(f"/{own}"):
        raise ApiError(
            404, f"there is no model {name[:80]!r}: {own!r} is served", param="model",
            code="model_not_found",
        )  # fmt: skip
