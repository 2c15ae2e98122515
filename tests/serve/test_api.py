"""The API by OpenAI's own client: text, chat, streams, scores, stops, errors; against gpt.generation and the model."""

import json
import math

import httpx
import pytest
import torch
from served import running, tiny

from gpt.generation import generate
from gpt.serve import answers
from gpt.serve.engine import ScoredToken
from gpt.text.chat import encode_chat, stop_ids
from gpt.tokenizer import load_tokenizer

openai = pytest.importorskip("openai", reason="openai is a development dependency")
GREEDY = {"model": "tiny", "temperature": 0}
HELLO = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def served():
    with running(tiny()) as (service, url):
        yield service, url


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def write(served):
    """A function from a prompt to what the model writes after it by gpt.generation: ids and text."""
    model, tokenizer = served[0].model, served[0].tokenizer

    def written(ids, n, seed=0, ends=None, **settings):
        generator = torch.Generator().manual_seed(seed)
        new = generate(model, [torch.tensor(ids)], n, generator=generator, **settings)[0].tolist()[len(ids) :]
        ends = ends or {tokenizer.eot_id}
        end = next((n for n, i in enumerate(new) if i in ends), len(new))
        return new[:end], tokenizer.decode(new[:end])

    return written


def test_the_model_is_listed(client):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("tiny").id == "tiny"
    assert model.max_model_len == 64


def test_a_text_is_continued(client, write, served):
    tokenizer = served[0].tokenizer
    answer = client.completions.create(prompt="hello", max_tokens=20, **GREEDY)
    ids, text = write(tokenizer.encode("hello"), 20, temperature=0)
    assert answer.choices[0].text == text
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 20, 25)
    assert len(ids) == 20
    assert client.completions.create(prompt="hello", **GREEDY).usage.completion_tokens == 16, "as in OpenAI's API"
    assert client.completions.create(prompt="a" * 60, **GREEDY).usage.completion_tokens == 5, (
        "or as many as there is room"
    )


def test_prompts_seeds_and_settings(client, write, served):
    """Two prompts, one of them as ids, two texts each; settings of OpenAI and our own."""
    tokenizer = served[0].tokenizer
    prompts = [tokenizer.encode("a cat"), tokenizer.encode("hello")]
    settings = {"temperature": 1.4, "top_p": 0.9}
    extra = {"top_k": 12, "min_p": 0.01, "repetition_penalty": 1.2}
    answer = client.completions.create(
        model="tiny", prompt=prompts, n=2, seed=7, max_tokens=9, logit_bias={"4": 3}, extra_body=extra, **settings
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        ids, seed = prompts[choice.index // 2], 7 + choice.index % 2
        assert choice.text == write(ids, 9, seed, logit_bias={4: 3.0}, **settings, **extra)[1]
    assert len({choice.text for choice in answer.choices}) == 4
    text = client.completions.create(model="tiny", prompt="hello", seed=8, max_tokens=9).choices[0].text
    assert text == write(prompts[1], 9, 8)[1]
    drawn = {client.completions.create(model="tiny", prompt="hello").choices[0].text for _ in range(3)}
    assert len(drawn) == 3, "without a seed each text is another"


@pytest.mark.parametrize("stream", [False, True])
def test_scores_and_echo(client, served, stream):
    """token_logprobs are those of one pass over prompt and text; offsets are those of the tokens in the text."""
    model, tokenizer = served[0].model, served[0].tokenizer
    given = {"prompt": "hé😀", "max_tokens": 6, "logprobs": 3, "echo": True, "seed": 3, "model": "tiny"}
    answer = client.completions.create(**given, stream=stream)
    parts = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    text = "".join(part.text for part in parts)
    found = {
        name: [x for part in parts for x in getattr(part.logprobs, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset", "token_ids", "top_token_ids")
    }
    ids = found["token_ids"]
    assert text.startswith("hé😀") and len(ids) == 9
    assert text == "".join(found["tokens"]) == tokenizer.decode(ids)
    assert found["text_offset"] == [len(tokenizer.decode(ids[:n])) for n in range(9)]
    with torch.no_grad():
        expected = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    for n in range(1, 9):
        assert found["token_logprobs"][n] == pytest.approx(float(expected[n - 1, ids[n]]), abs=1e-5)
        values, best = expected[n - 1].topk(3)
        top = {answers.token_text(tokenizer, int(i)): float(x) for i, x in zip(best, values, strict=True)}
        assert found["top_logprobs"][n] == pytest.approx(top, abs=1e-5)
        assert found["top_token_ids"][n] == best.tolist()
    assert parts[-1].finish_reason == "length"


def test_the_start_of_a_document_is_not_echoed():
    """A model of documents reads its end-of-text token first, so that the first character has a probability too."""
    with running(tiny(prepend_eot=True)) as (service, url):
        eot = service.tokenizer.eot_id
        given = {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 0}
        (choice,) = httpx.post(f"{url}/v1/completions", json=given).json()["choices"]
        with torch.no_grad():
            expected = service.model(torch.tensor([[eot, *service.tokenizer.encode("a")]])).log_softmax(-1)[0]
        assert choice["text"] == "ab"
        ids = service.tokenizer.encode("ab")
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected[[0, 1], ids].tolist(), abs=1e-5)
        empty = httpx.post(f"{url}/v1/completions", json={"prompt": "", "temperature": 0, "max_tokens": 5}).json()
        alone = generate(service.model, [torch.tensor([eot])], 5, temperature=0, stop_id=eot)[0][1:].tolist()
        assert empty["choices"][0]["text"] == service.tokenizer.decode([i for i in alone if i != eot])
        assert empty["usage"]["prompt_tokens"] == 1


def test_a_conversation_is_answered(client, write, served):
    tokenizer = served[0].tokenizer
    ids = encode_chat(tokenizer, HELLO)
    settings = {"messages": HELLO, "seed": 5, "model": "tiny", "max_completion_tokens": 7}
    answer = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2)
    written, text = write(ids, 7, 5, ends=stop_ids(tokenizer))
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", text)
    assert [entry.token_id for entry in choice.logprobs.content] == written
    with torch.no_grad():
        expected = served[0].model(torch.tensor([ids + written])).log_softmax(-1)[0, len(ids) - 1 :]
    for n, entry in enumerate(choice.logprobs.content):
        assert entry.logprob == pytest.approx(float(expected[n, written[n]]), abs=1e-5)
        assert bytes(entry.bytes).decode() == entry.token == tokenizer.decode([written[n]])
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            expected[n].topk(2).values.tolist(), abs=1e-5
        )
    assert answer.usage.prompt_tokens == len(ids)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert not chunks[-1].choices and chunks[-1].usage == answer.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_messages_of_parts_and_of_a_developer(client, served):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    other = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    given = {"model": "tiny", "temperature": 0, "max_tokens": 5}
    texts = {client.chat.completions.create(messages=m, **given).choices[0].message.content for m in (HELLO, other)}
    assert len(texts) == 1
    whole = client.chat.completions.create(messages=HELLO, model="tiny", temperature=0)
    room = 65 - len(encode_chat(served[0].tokenizer, HELLO))
    assert whole.usage.completion_tokens == room or whole.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_a_text(client, write, served, stream):
    free = write(served[0].tokenizer.encode("hello"), 30, 1)[1]
    stop = free[6:9]
    answer = client.completions.create(
        model="tiny", prompt="hello", max_tokens=30, seed=1, stop=["zzz", stop], stream=stream
    )
    parts = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(part.text for part in parts) == free.partition(stop)[0]
    assert parts[-1].finish_reason == "stop"


LONG = "a" * 65


@pytest.mark.parametrize(
    "path, body, status, words",
    [
        ("completions", b"{", 400, "the body is not JSON"),
        ("completions", {"prompt": LONG}, 400, "the model's context has 64 tokens: a prompt of 65 leaves room for 0"),
        ("completions", {"prompt": ["a"] * 9}, 400, "there must be at most 8 prompts"),
        ("completions", {"prompt": "a", "max_tokens": 65}, 400, "a prompt of 1 leaves room for 64, not for 65"),
        ("completions", {"prompt": "A"}, 400, "prompt: the character 'A' (U+0041) is not among the characters"),
        ("completions", {"prompt": [99]}, 400, "prompt: token id 99 is outside the vocabulary of 33 tokens"),
        ("completions", {"prompt": "a", "n": 5}, 400, "n must be at most 4"),
        ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature: Input should be greater than or equal"),
        ("completions", {"prompt": "a", "max_tokens": "5"}, 400, "max_tokens: Input should be a valid integer"),
        (
            "completions",
            {"prompt": "a", "logit_bias": {"99": 1}},
            400,
            "logit_bias: token 99 is outside the vocabulary",
        ),
        ("completions", {"prompt": "a", "model": "gpt-4"}, 404, "the model 'gpt-4' is not served here: tiny is"),
        ("completions", {"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty"),
        ("completions", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
        ("chat/completions", {"messages": HELLO, "tools": [{}]}, 400, "tools"),
        ("chat/completions", {"messages": [{"role": "user", "content": LONG}]}, 400, "the model's context has 64"),
        ("nothing", {}, 404, "POST /v1/nothing: Not Found"),
        ("models", {}, 405, "POST /v1/models: Method Not Allowed"),
    ],
)
def test_mistakes_are_told_in_openais_form(served, path, body, status, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{served[1]}/v1/{path}", content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error" and {"param", "code"} <= error.keys()


def test_openais_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="a", temperature=-1)


def test_a_model_without_a_template_has_no_chat():
    with running(tiny(chat=False)) as (_, url):
        answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO})
        assert answer.status_code == 400
        assert "the model has no chat template: use /v1/completions" in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_gives_nan_is_a_500_and_the_server_lives_on(stream):
    loaded = tiny()
    with torch.no_grad():
        loaded.objective.model.tok_emb.weight[5] = math.nan
    letter = loaded.tokenizer.decode([5])
    with running(loaded) as (_, url):
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": letter, "stream": stream})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the model's logits are not finite: its weights have diverged"
        forced = {"prompt": "z", "max_tokens": 5, "logit_bias": {"5": 1000}, "stream": stream}
        answer = httpx.post(f"{url}/v1/completions", json=forced)
        if stream:  # the first token was sent already
            last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
            assert "not finite" in last["error"]["message"]
        else:
            assert answer.status_code == 500
        echoed = {"prompt": letter + "z", "echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
        answer = httpx.post(f"{url}/v1/completions", json=echoed)
        assert answer.status_code == 500 and "not finite" in answer.text
        fine = httpx.post(f"{url}/v1/completions", json={"prompt": "z", "logit_bias": {"5": -1000}})
        assert fine.status_code == 200


def test_bytes_that_are_no_character_are_told_as_bytes():
    gpt2 = load_tokenizer("gpt2")
    ids = gpt2.encode("a😀")
    scored = [ScoredToken(i, -1.0, []) for i in ids]
    found = answers.CompletionLogprobs(gpt2).lists(scored)
    assert found["tokens"][1].startswith("bytes:\\xf0\\x9f\\x98")
    assert found["text_offset"] == [0, *[1] * (len(ids) - 1)]
    raw = b"".join(bytes(entry["bytes"]) for entry in answers.chat_logprobs(gpt2, scored)["content"])
    assert raw.decode() == "a😀"
