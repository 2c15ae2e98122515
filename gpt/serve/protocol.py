"""Requests and errors in the form of OpenAI's API: completions and chat completions, as pydantic models.

Settings that change nothing here, such as `user`, are ignored. Settings that would change the answer but are not
implemented, such as `tools`, are refused. `top_k`, `min_p` and `repetition_penalty` are additions, named as elsewhere.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gpt.generation import Sampling

MAX_LIKELIEST = 20  # log-probabilities at each position
MAX_STOPS, MAX_PROMPTS = 8, 64


def _whole(low: int, high: int | None = None) -> Any:
    """Return the type of a whole number within bounds, which may be written as 5.0."""
    as_int = BeforeValidator(lambda x: int(x) if isinstance(x, float) and x.is_integer() else x)
    return Annotated[int, Field(ge=low, le=high), as_int]


TokenIds = Annotated[list[_whole(0)], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
LogitBias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,8}$")], Annotated[float, Field(ge=-1000, le=1000)]]
OnlyZero = Annotated[float, Field(ge=0, le=0)] | None


class ApiError(Exception):
    """An answer other than 200, in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.status, self.body = status, {"message": message, "type": kind, "param": param, "code": code}


class Body(BaseModel):
    """A body whose settings have the types they say, with no conversions; unknown ones are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None


class _Settings(Body):
    """The settings of both kinds of request."""

    model: str | None = Field(None, description="the id in /v1/models; left out: the model that is served")
    temperature: float | None = Field(None, ge=0, le=100, description="0: the likeliest token; default 1")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: _whole(0) | None = Field(None, description="sample from the k likeliest tokens; 0: from all")
    min_p: float | None = Field(None, ge=0, le=1, description="least probability, as a share of the likeliest token's")
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: LogitBias | None = Field(None, description="numbers added to the logits of token ids")
    seed: _whole(-(2**63), 2**63 - 1) | None = Field(None, description="the same seed gives the same text")
    n: _whole(1, 128) | None = Field(None, description="texts for each prompt")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: OnlyZero = Field(None, description="not implemented: only 0")
    frequency_penalty: OnlyZero = Field(None, description="not implemented: only 0")

    def sampling(self) -> Sampling:
        """Return the sampling settings; what is left out is as in the model's own distribution."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
        )

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionBody(_Settings):
    """POST /v1/completions: continue a text or some, given as text or as token ids."""

    prompt: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)] = ""
    max_tokens: _whole(0) | None = Field(None, description="tokens to write; default 16")
    logprobs: _whole(0, MAX_LIKELIEST) | None = Field(None, description="likeliest tokens to report at each position")
    echo: bool | None = Field(None, description="begin with the prompt")
    stop_token_ids: Annotated[list[_whole(0)], Field(max_length=MAX_PROMPTS)] | None = None
    suffix: Literal[""] | None = Field(None, description="not implemented")
    best_of: Literal[1] | None = Field(None, description="not implemented")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if is_one else self.prompt


class TextPart(Body):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    def plain(self) -> dict[str, str]:
        """Return the message as gpt/text/chat.py reads it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": role, "content": content}


class ResponseFormat(Body):
    """The form of the answer: text."""

    type: Literal["text"]


class ChatBody(_Settings):
    """POST /v1/chat/completions: answer a conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_tokens: _whole(1) | None = Field(None, description="tokens to write; default: what the context has room for")
    max_completion_tokens: _whole(1) | None = Field(None, description="the same, under its newer name")
    logprobs: bool | None = None
    top_logprobs: _whole(0, MAX_LIKELIEST) | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="not implemented")
    functions: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="not implemented")
    response_format: ResponseFormat | None = None


def parse(kind: type[Body], body: bytes) -> Any:
    """Return the request in a body. ApiError 400 names the first setting that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ApiError(400, f"the body is not JSON: {first['ctx']['error']}") from None
        # of a union each alternative is an error of its own, with its name in the place
        parts = [part for part in map(str, first["loc"]) if part not in ("str", "int", "float")]
        place = [part for part in parts if part.replace("_", "").isalnum()]
        name = ".".join(place) or "the body"
        raise ApiError(
            400, f"{name}: {first['msg']}", code="invalid_value", param=place[0] if place else None
        ) from None
