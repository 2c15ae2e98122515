"""The page that shows a model at work, and what it asks for in addition to the API: looks inside, and the verdict of
the tales' grammar."""

import asyncio
import base64
import importlib.resources
import json
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from gpt.evaluation.inspection import attention_weights, logit_lens
from gpt.exchange.models import LoadedModel
from gpt.serve.answers import token_text
from gpt.serve.protocol import ApiError, Body, ChatMessage, TokenIds, parse
from gpt.serve.service import Service, unless_gone
from gpt.system.paths import find_path
from gpt.text import requests, tales
from gpt.text.chat import stop_ids
from gpt.token_files import load_data

MAX_INSPECTED = 256  # tokens whose attention is shown
LIKELIEST = 5  # tokens of each layer
# one program, in reading order
SCRIPTS = ("server", "passage", "writing", "text", "tales", "chat", "panel", "inside", "settings", "playground")


class InspectBody(Body):
    """POST /playground/inspect: look inside the model while it reads some tokens, and at the heads of one layer."""

    token_ids: Annotated[TokenIds, Field(max_length=MAX_INSPECTED)]
    layer: Annotated[int, Field(ge=0)] = 0


class VerdictBody(Body):
    """POST /playground/verdict: judge a tale as far as it is written, after the request it answers, if any."""

    text: Annotated[str, Field(max_length=10_000)]
    request: str | None = None


class TokensBody(Body):
    """POST /playground/tokens: the tokens of a text, or of a conversation up to where the answer begins."""

    text: Annotated[str, Field(max_length=200_000)] = ""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] | None = None


class Playground:
    """The page and its requests."""

    def __init__(self, service: Service):
        self.service = service
        self.is_about_tales = _writes_tales(service.loaded)
        self.page, tokenizer = _page(), service.tokenizer
        self.texts = json.dumps([token_text(tokenizer, i) for i in range(tokenizer.vocab_size)])

    def routes(self) -> list[Route]:
        """Return the routes, which are not part of the API's description."""
        return [
            Route("/", self.index),
            Route("/playground/model", self.model),
            Route("/playground/vocabulary", self.vocabulary),
            Route("/playground/tokens", self.tokens, methods=["POST"]),
            Route("/playground/inspect", self.inspect, methods=["POST"]),
            Route("/playground/verdict", self.verdict, methods=["POST"]),
        ]

    async def index(self, http: Request) -> Response:
        """Return the page. It asks for nothing but this server's answers."""
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
        policy += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        return HTMLResponse(self.page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    async def model(self, http: Request) -> Response:
        """Return what the page shows of the model, and which of its views make sense."""
        service, config = self.service, self.service.model.config
        return JSONResponse(
            {
                "id": service.name,
                "name": service.loaded.name,
                "parameters": sum(p.numel() for p in service.model.parameters()),
                "context_length": config.context_length,
                "n_layers": config.n_layers,
                "n_heads": config.n_heads,
                "vocab_size": service.tokenizer.vocab_size,
                "stop_ids": sorted(stop_ids(service.tokenizer) - {None}),
                "eot_id": service.tokenizer.eot_id,
                "chat": service.tokenizer.chat_template is not None,
                "tales": self.is_about_tales,
                "max_inspected": min(MAX_INSPECTED, config.context_length),
            }
        )

    async def vocabulary(self, http: Request) -> Response:
        """Return the texts of all tokens, by id."""
        return Response(self.texts, media_type="application/json")

    async def tokens(self, http: Request) -> Response:
        """Return the ids that the model reads: of a text, as /v1/completions does, or of a conversation up to where the
        answer begins, as /v1/chat/completions does. The first `n_start` of them are not in the text."""
        service, body = self.service, parse(TokensBody, await http.body())
        if body.messages:
            ids = service.encode_chat(body.messages)
            return JSONResponse({"token_ids": ids, "n_start": len(ids)})
        ids, n_start = service.encode(body.text)
        return JSONResponse({"token_ids": ids, "n_start": n_start})

    async def inspect(self, http: Request) -> Response:
        """Return how the prediction after the last token comes about.

        `lens`: the likeliest next tokens of each layer, the logit lens. `attention`: the weights of the last token in
        each head of each layer, (L, H, T). `heads`: those of all tokens in one layer, (H, T, T). Weights are bytes,
        in 1/255, as base64: as lists they would be several times as long.
        """
        body = parse(InspectBody, await http.body())
        ids, model, tokenizer = body.token_ids, self.service.model, self.service.tokenizer
        if max(ids) >= tokenizer.vocab_size or len(ids) > self.service.context_length:
            raise ApiError(400, "token_ids: a token is outside the vocabulary, or they exceed the context")
        if body.layer >= model.config.n_layers:
            raise ApiError(400, f"layer: {body.layer} is not among the {model.config.n_layers} layers, from 0 on")

        def look() -> dict[str, Any]:
            weights = (attention_weights(model, ids) * 255).round().byte().cpu()  # (L, H, T, T)
            k = min(LIKELIEST, tokenizer.vocab_size)
            probabilities, likeliest = (x[:, -1].tolist() for x in logit_lens(model, ids, k))  # (L + 1, k)
            lens = [
                [{"id": i, "text": token_text(tokenizer, i), "p": p} for i, p in zip(*layer, strict=True)]
                for layer in zip(likeliest, probabilities, strict=True)
            ]
            return {"lens": lens, "attention": _base64(weights[:, :, -1]), "heads": _base64(weights[body.layer])}

        try:
            return JSONResponse(await unless_gone(http, self.service.call(look)))
        except ValueError as error:  # such as a model with a prefix
            raise ApiError(400, str(error)) from None

    async def verdict(self, http: Request) -> Response:
        """Return how far a text may be the beginning of a tale, in characters, and the first rule it breaks if not."""
        if not self.is_about_tales:
            raise ApiError(404, "this model does not write tales")
        body = parse(VerdictBody, await http.body())
        return JSONResponse(await asyncio.to_thread(_judge, body.text, body.request))


def _judge(text: str, request: str | None) -> dict[str, Any]:
    """Return what the grammar says of a text: whether it is a whole tale, or how far it can be the beginning of one."""
    viable, rule, failures = tales.viable_prefix(text), tales.first_broken_rule(text), []
    if request is not None:
        try:
            constraints = requests.parse(request)
        except ValueError:  # a question about the tale
            return {"judged": False}
        viable = min(viable, requests.viable_prefix(constraints, text))
        failures = [] if rule else requests.kinds_of_failure(constraints, text)
    is_whole = rule is None and not failures
    return {
        "judged": True,
        "whole": is_whole,
        "viable": viable,
        "rule": None if is_whole or viable == len(text) else (failures or [rule])[0],
    }


def _base64(weights: Tensor) -> str:
    return base64.b64encode(weights.numpy().tobytes()).decode()


def _writes_tales(loaded: LoadedModel) -> bool:
    """Return whether a run was trained on tales, or on requests for some. False if its data are gone."""
    if loaded.checkpoint is None:
        return False
    try:
        source = load_data(find_path(loaded.checkpoint.config.data.path)).source
    except (ValueError, OSError):
        return False
    return source.partition(":")[0] in ("tales", "requests", "single-requests")


def _page() -> str:
    """Return the page with its style and its programs inlined: it loads nothing else."""
    assets = importlib.resources.files("gpt.serve") / "assets"
    page, style = ((assets / f"playground.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
    scripts = "\n".join((assets / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    return page.replace("/*playground.css*/", style).replace("/*playground.js*/", scripts)
