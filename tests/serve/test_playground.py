"""The playground: what its page shows in a browser, and what its own endpoints answer."""

import base64
import contextlib
import copy
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator

import httpx
import pytest
import torch
from numerics import tolerance
from served import running

from gpt.config import GPTConfig
from gpt.evaluation.inspection import attention_weights, logit_lens
from gpt.exchange.models import LoadedModel
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken
from gpt.serve import playground
from gpt.serve.service import Service
from gpt.text import requests, tales
from gpt.text.chat import add_chat_template, encode_chat
from gpt.tokenizer import CharTokenizer

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
PROMPT = "Once <b>upon</b> a time"


@contextlib.contextmanager
def served(loaded: LoadedModel, **guard) -> Iterator[tuple[str, Service]]:
    """Serve a copy of a model: hooks of one thread would see what another one computes."""
    loaded = dataclasses.replace(loaded, objective=copy.deepcopy(loaded.objective))
    with running(loaded, guard) as (service, url):
        yield url, service


@pytest.fixture(scope="module")
def loaded():
    """A random model of characters, with a chat template, that never ends a text by itself."""
    torch.manual_seed(3)
    tokenizer = add_chat_template(CharTokenizer(CHARACTERS))
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=1200, emb_dim=16, n_heads=2, n_layers=3, drop_rate=0.0
    )
    model = GPTModel(config).eval()
    with torch.no_grad():
        model.out_head.weight.normal_(0, 0.4)
        # the last hidden state is a normalized vector, whose entries sum to 0, plus 1: the logit of this token is -64
        model.final_norm.shift.fill_(1.0)
        model.out_head.weight[tokenizer.eot_id] = -4.0
    return LoadedModel("tiny", NextToken(model), tokenizer, False, None)


@pytest.fixture(scope="module")
def server(loaded):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playground, "_writes_tales", lambda loaded: True)
        with served(loaded) as found:
            yield found


@pytest.fixture(scope="module")
def api(server):
    with httpx.Client(base_url=server[0]) as client:
        yield client


def probabilities(loaded, ids):
    """Return what the model predicts after some tokens, (V,)."""
    with torch.no_grad():
        return loaded.objective.model(torch.tensor([ids]))[0, -1].softmax(-1)


def greedy(loaded, ids, n):
    """Return ids with the n likeliest tokens after them, each computed from the whole text."""
    for _ in range(n):
        ids = [*ids, int(probabilities(loaded, ids).argmax())]
    return ids


# --- endpoints --------------------------------------------------------------------------------------------------------


def test_inspect_is_what_the_model_computes(api, loaded):
    model, ids = loaded.objective.model, loaded.tokenizer.encode("a tale of")
    found = api.post("/playground/inspect", json={"token_ids": ids, "layer": 1}).json()
    weights = attention_weights(model, ids)  # (L, H, T, T)
    for name, expected in (("attention", weights[:, :, -1]), ("heads", weights[1])):
        values = torch.frombuffer(bytearray(base64.b64decode(found[name])), dtype=torch.uint8).view(expected.shape)
        torch.testing.assert_close(values / 255, expected, rtol=0, atol=0.5 / 255 + 1e-6)
    p, best = logit_lens(model, ids, 5)
    assert [[token["id"] for token in layer] for layer in found["lens"]] == best[:, -1].tolist()
    assert [[token["p"] for token in layer] for layer in found["lens"]] == p[:, -1].tolist()
    assert found["lens"][-1][0]["text"] == loaded.tokenizer.decode([int(probabilities(loaded, ids).argmax())])


@pytest.mark.parametrize(
    "body, words",
    [({"token_ids": [1] * 257}, "at most 256"), ({"token_ids": [9999]}, "vocabulary"),
     ({"token_ids": [1], "layer": 3}, "the 3 layers"), ({"token_ids": []}, "token_ids")],
)  # fmt: skip
def test_inspect_says_why_not(api, body, words):
    answer = api.post("/playground/inspect", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_tokens_of_a_text_and_of_a_conversation(api, loaded):
    encode, messages = loaded.tokenizer.encode, [{"role": "user", "content": "Hi"}]
    assert api.post("/playground/tokens", json={"text": "Hi"}).json() == {"token_ids": encode("Hi"), "n_start": 0}
    ids = encode_chat(loaded.tokenizer, messages)
    assert api.post("/playground/tokens", json={"messages": messages}).json() == {
        "token_ids": ids, "n_start": len(ids)
    }  # fmt: skip
    assert "'é'" in api.post("/playground/tokens", json={"text": "é"}).json()["error"]["message"]
    vocabulary = api.get("/playground/vocabulary").json()
    assert [vocabulary[i] for i in ids] == [loaded.tokenizer.decode([i]) for i in ids]


def test_the_verdict_is_the_grammar_s(api):
    (tale,) = tales.generate(1, seed=5)
    hero = tales.facts(tale).hero
    other = next(name for name in ("Mina", "Tom", "Ben", "Clara") if name != hero)

    def verdict(text, request=None):
        return api.post("/playground/verdict", json={"text": text, "request": request}).json()

    assert verdict(tale) == {"judged": True, "whole": True, "viable": len(tale), "rule": None}
    assert verdict(tale[:99]) == {"judged": True, "whole": False, "viable": 99, "rule": None}
    broken = tale[:99] + "###"
    assert verdict(broken) == {
        "judged": True, "whole": False, "viable": 99, "rule": tales.first_broken_rule(broken)
    }  # fmt: skip
    asked = verdict(tale, f"Tell me a tale about {other}.")
    assert not asked["whole"] and asked["rule"] == "hero"
    assert asked["viable"] == requests.viable_prefix({"hero": other}, tale) < len(tale)
    assert verdict(tale, "Who helped?") == {"judged": False}


# --- the page in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is a development dependency")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no chromium to open the page with")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextlib.contextmanager
def opened(browser, url, width=1440, scheme="light", expected=(), **settings):
    """Open the page with some settings. Whatever its console says but `expected` is a failure, as is another host."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(5000)
    errors, hosts = [], set()
    page.on("console", lambda message: message.type in ("error", "warning") and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/playground")[0].split("/v1")[0].rstrip("/")))
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    settings = {"temperature": 0, "max_tokens": 12} | settings
    page.evaluate("given => Object.entries(given).forEach(([name, value]) => set(name, value))", settings)
    yield page
    assert [text for text in errors if not any(words in text for words in expected)] == []
    assert {host for host in hosts if not host.startswith("data:")} == {url}
    context.close()


@pytest.fixture
def page(browser, server):
    with opened(browser, server[0]) as found:
        yield found


def shown(page, view="#mirror"):
    """The ids of the tokens that are shown, and their text."""
    ids = page.evaluate("view => [...document.querySelectorAll(`${view} .token`)].map((one) => one.token.id)", view)
    return ids, "".join(page.locator(f"{view} .token").all_text_contents())


def wait_for_tokens(page, n, view="#mirror"):
    page.wait_for_function(
        "([view, n]) => document.querySelectorAll(`${view} .token`).length === n && !job", arg=[view, n]
    )


def write(page, text=PROMPT, n=12):
    """Type a text and let the model continue it."""
    page.fill("#text", text)
    page.keyboard.press("Control+Enter")
    wait_for_tokens(page, len(text) + n)


def alternatives(page):
    """The alternatives that the panel shows: id -> probability."""
    rows = page.locator("#alternatives button").all()
    return {int(row.get_attribute("data-id")): float(row.get_attribute("data-p")) for row in rows}


def test_a_prompt_is_continued(page, loaded):
    write(page)
    ids, text = shown(page)
    assert ids == greedy(loaded, loaded.tokenizer.encode(PROMPT), 12)
    assert text == page.input_value("#text") == loaded.tokenizer.decode(ids)
    assert page.inner_text("#status").startswith("12 tokens in ")
    page.click("#generate")
    wait_for_tokens(page, len(PROMPT) + 24)
    page.click("#undo")
    assert shown(page)[0] == ids
    page.click("#undo")
    assert shown(page)[1] == page.input_value("#text") == PROMPT


def test_text_is_no_html(page):
    token = "<img src=x onerror='document.title = 1'>"
    page.evaluate(
        "text => (vocabulary[5] = text, show(draft.add(5, 'model', {p: 0.5, top: [{id: 5, p: 0.5}]})))", token
    )
    assert page.inner_text("#mirror") == token
    assert token.replace(" ", "␣") in page.inner_text("#alternatives")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("place", [3, len(PROMPT) + 5])
def test_a_token_shows_its_probability_and_the_alternatives(page, loaded, place):
    write(page)
    page.locator("#mirror .token").nth(place).hover()
    page.wait_for_selector("#inside:visible")
    ids, found = shown(page)[0], alternatives(page)
    expected = probabilities(loaded, ids[:place])
    assert list(found)[:10] == expected.topk(10).indices.tolist()
    for token, p in {**found, ids[place]: found[ids[place]]}.items():
        assert p == pytest.approx(float(expected[token]), rel=tolerance(1000, 10, dtype=torch.float32))
    assert f"surprise {-math.log2(expected[ids[place]]):.1f} bits" in page.inner_text("#figures")
    page.wait_for_selector("#layers tr")
    lens = page.locator("#layers .guess").all_text_contents()
    best = logit_lens(loaded.objective.model, ids[:place], 1)[1][:, -1, 0].tolist()
    assert lens == [loaded.tokenizer.decode([i]).replace(" ", "␣").replace("\n", "⏎") for i in best]
    weight = attention_weights(loaded.objective.model, ids[:place])[1, :, -1].mean(0)  # of the layer in the middle
    first = page.locator("#mirror .token").first.evaluate("one => Number(one.style.getPropertyValue('--a'))")
    assert first == pytest.approx(float(weight[0]), abs=1 / 255)


def test_another_token_is_taken(page, loaded):
    write(page)
    before, place = shown(page)[0], len(PROMPT) + 4
    page.locator("#mirror .token").nth(place).hover()
    page.wait_for_function("place => current === draft.tokens[place]", arg=place)
    chosen = list(alternatives(page))[3]
    page.locator(f"#alternatives button[data-id='{chosen}']").click()
    wait_for_tokens(page, place + 13)
    expected = greedy(loaded, [*before[:place], chosen], 12)
    assert shown(page)[0] == expected
    page.click("#undo")
    assert shown(page)[0] == before


def test_the_keyboard_is_enough(page, loaded):
    write(page)
    before = shown(page)[0]
    page.keyboard.press("Home")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("ArrowUp")  # the letter of the prompt is the last row
    other = int(page.evaluate("document.activeElement.dataset.id"))
    page.keyboard.press("Enter")
    wait_for_tokens(page, 15)
    assert shown(page)[0] == greedy(loaded, [*before[:2], other], 12)


def test_an_edited_text_is_read_anew(page, loaded):
    write(page)
    page.press("#text", "End")
    page.keyboard.type("!?")
    wait_for_tokens(page, len(PROMPT) + 14)
    page.wait_for_function("() => draft.tokens.every((token) => token.top)")
    ids = shown(page)[0]
    assert ids[-2:] == loaded.tokenizer.encode("!?")
    p = page.evaluate("draft.tokens.at(-1).p")
    expected = float(probabilities(loaded, ids[:-1])[ids[-1]])
    assert p == pytest.approx(expected, rel=tolerance(1000, 10, dtype=torch.float32))
    page.locator("#mirror .token").nth(4).click(position={"x": 1, "y": 9})  # the caret comes to where the click was
    page.keyboard.type("XY")
    assert page.input_value("#text").startswith(PROMPT[:4] + "XY" + PROMPT[4:])
    page.locator("#mirror .token").nth(1).dblclick()  # a word
    page.keyboard.type("Z")
    assert page.input_value("#text").startswith("Z" + PROMPT[4:5])


def test_stop(browser, server):
    url, service = server
    with opened(browser, url, max_tokens=1000) as page:
        page.fill("#text", PROMPT)
        page.click("#generate")
        page.wait_for_function("() => draft.tokens.length > 30")
        page.keyboard.press("Escape")
        page.wait_for_function("() => !job")
        n = page.locator("#mirror .token").count()
        assert n < 1000
        assert page.inner_text("#status") == "Stopped."
        time.sleep(0.2)
        assert page.locator("#mirror .token").count() == n
        assert service.engine._rows == []  # the server has stopped, too


def test_chat(page, loaded):
    tokenizer = loaded.tokenizer
    page.click("#tab-chat")
    page.fill("#message", "Who are you?")
    page.keyboard.press("Enter")
    wait_for_tokens(page, 12, "#messages")
    asked = encode_chat(tokenizer, [{"role": "user", "content": "Who are you?"}])
    ids = shown(page, "#messages")[0]
    assert ids == greedy(loaded, asked, 12)[len(asked) :]
    page.locator("#messages .token").nth(5).hover()
    page.wait_for_function("() => current === messages[1].passage.tokens[5]")
    chosen = list(alternatives(page))[2]
    page.locator(f"#alternatives button[data-id='{chosen}']").click()
    wait_for_tokens(page, 18, "#messages")
    answer = shown(page, "#messages")[0]
    assert answer == greedy(loaded, [*asked, *ids[:5], chosen], 12)[len(asked) :]
    page.fill("#message", "And I?")
    page.click("#send")
    wait_for_tokens(page, 30, "#messages")
    asked = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": tokenizer.decode(answer)}]
    asked = encode_chat(tokenizer, [*asked, {"role": "user", "content": "And I?"}])
    assert shown(page, "#messages")[0][18:] == greedy(loaded, asked, 12)[len(asked) :]
    page.locator("#messages .user button:visible").click()  # edit
    assert page.input_value("#message") == "And I?"
    assert page.locator(".message").count() == 2


def test_the_verdict_follows_the_text(page):
    (tale,) = tales.generate(1, seed=5)
    page.fill("#text", tale[:120])
    page.wait_for_selector("#verdict:has-text('can be the beginning of a tale')")
    page.fill("#text", tale)
    page.wait_for_selector("#verdict:has-text('A whole tale')")
    page.fill("#text", tale[:120] + "#!")
    page.wait_for_selector("#verdict:has-text('No tale continues like this')")
    wait_for_tokens(page, 122)
    page.wait_for_function("() => document.querySelectorAll('#mirror .token.bad').length === 2")


def test_what_goes_wrong_is_said(browser, server):
    refused = "responded with a status of 400"
    with opened(browser, server[0], expected=[refused]) as page:
        page.fill("#text", "x" * 1300)
        page.click("#generate")
        page.wait_for_selector("#error:has-text('a prompt of 1300 leaves room for 0')")
        page.click("#clear")
        assert not page.is_visible("#error")
        event = 'data: {"error": {"message": "the weights have diverged"}}\n\n'
        page.route("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=event))
        page.fill("#text", "a")
        page.click("#generate")
        page.wait_for_selector("#error:has-text('the weights have diverged')")


def test_the_key_is_asked_for(browser, loaded):
    with served(loaded, api_key="secret") as (url, _):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(5000)
        page.goto(url)
        for key in ("wrong", "secret"):
            page.fill("#key", key)
            page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")
        page.evaluate("set('max_tokens', 3)")
        write(page, "a", 3)
        context.close()


@pytest.mark.parametrize("width, scheme", [(390, "dark"), (1440, "light")])
def test_nothing_is_wider_than_the_window(browser, server, width, scheme):
    with opened(browser, server[0], width, scheme) as page:
        write(page, "A word thatislongerthanthewindowof" * 4)
        page.locator("#mirror .token").nth(9).click()
        page.wait_for_selector("#panel:visible #inside:visible")
        box, field = (page.locator(name).bounding_box() for name in ("#mirror", "#text"))
        assert box == field  # letter upon letter
        for scheme, background in (("dark", "rgb(20, 23, 26)"), ("light", "rgb(246, 247, 248)")):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == background
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.keyboard.press("Escape")
        page.click("#tab-chat")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
