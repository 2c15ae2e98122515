"""The OpenAPI description of the API, made from the pydantic models that check the requests."""

from typing import Any

from pydantic.json_schema import models_json_schema

from gpt.serve.protocol import ChatBody, CompletionBody

VERSION = "1"


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [*properties], "properties": properties}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
NULLABLE = {"type": ["object", "null"]}
REASON = {"enum": ["stop", "length", None]}
USAGE = _object(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
CARD = _object(id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT, max_model_len=COUNT)
ERROR = _object(
    error=_object(message=TEXT, type=TEXT, param={"type": ["string", "null"]}, code={"type": ["string", "null"]})
)


def _answer(kind: str, **choice: dict[str, Any]) -> dict[str, Any]:
    choices = {"type": "array", "items": _object(index=COUNT, logprobs=NULLABLE, finish_reason=REASON, **choice)}
    return _object(id=TEXT, object={"const": kind}, created=COUNT, model=TEXT, choices=choices, usage=USAGE)


COMPLETION = _answer("text_completion", text=TEXT)
CHAT = _answer("chat.completion", message=_object(role={"const": "assistant"}, content=TEXT))
ERRORS = {
    400: "the request is wrong; the message says where",
    401: "the key is missing or wrong",
    403: "the request comes from another site's page",
    404: "the model is not served here",
    408: "the body did not come in time",
    413: "the body is too large",
    429: "too many requests wait",
    500: "the model or the server failed",
}


def _response(description: str, schema: dict[str, Any], streamed: bool = False) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    if streamed:
        content["text/event-stream"] = {}
    return {"description": description, "content": content}


def _operation(summary: str, result: dict[str, Any], body: str = "", *, errors=(401, 403), **more: Any) -> dict:
    answers = {"200": _response("the answer", result, streamed=bool(body))}
    answers |= {str(status): _response(ERRORS[status], ERROR) for status in errors}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
    return {
        "summary": summary,
        "responses": answers,
        **({"requestBody": {"required": True, "content": content}} if body else {}),
        **more,
    }


def _limit_ids(schema: Any, vocab_size: int) -> None:
    """Let the integers of a schema be ids of tokens."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            schema["maximum"] = vocab_size - 1
        schema = [*schema.values()]
    if isinstance(schema, list):
        for part in schema:
            _limit_ids(part, vocab_size)


def describe_api(model: str, vocab_size: int, max_rows: int) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the API that serves `model`, at most max_rows texts at once."""
    kinds = [(kind, "validation") for kind in (CompletionBody, ChatBody)]
    _, schemas = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    _limit_ids(schemas["$defs"]["CompletionBody"]["properties"]["prompt"], vocab_size)
    for kind in ("CompletionBody", "ChatBody"):
        properties = schemas["$defs"][kind]["properties"]
        properties["model"] = {"enum": [model, None], "description": "the id in /v1/models"}
        properties["n"]["anyOf"][0]["maximum"] = max_rows
        properties["logit_bias"]["anyOf"][0]["additionalProperties"] = False
    name = {"name": "name", "in": "path", "required": True, "schema": TEXT}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gpt",
            "version": VERSION,
            "description": "OpenAI's completions and chat completions, by one local model. top_k, min_p and "
            "repetition_penalty are additions. With stream: true the answer is a stream of server-sent events.",
        },
        "paths": {
            "/v1/models": {"get": _operation("the model", _object(object={"const": "list"}, data={"type": "array"}))},
            "/v1/models/{name}": {
                "get": _operation("the model, by its id", CARD, errors=(401, 403, 404), parameters=[name])
            },
            "/v1/completions": {
                "post": _operation("continue texts", COMPLETION, "CompletionBody", errors=ERRORS),
            },
            "/v1/chat/completions": {
                "post": _operation("answer a conversation", CHAT, "ChatBody", errors=ERRORS),
            },
            "/health": {"get": _operation("whether the server runs", _object(status=TEXT), errors=(403,))},
        },
        "components": {"schemas": schemas["$defs"]},
    }
