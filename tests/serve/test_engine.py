"""Continuous batching against each text by itself, by gpt.generation and by reading it again."""

import contextlib
import queue
import threading
import time

import pytest
import torch
from blocks import BLOCKS
from served import tiny

from gpt.generation import Sampling, generate
from gpt.serve import engine as engines
from gpt.serve.engine import BusyError, End, Engine, Failure, Piece, Request
from gpt.variants.lstm import LSTMModel


class Client:
    """Requests given to an engine, and what comes back."""

    def __init__(self, engine):
        self.engine, self.events = engine, queue.Queue()

    def ask(self, number, prompt, max_new_tokens=8, **settings):
        """Submit a request, known by a number."""
        request = Request(prompt, max_new_tokens, lambda row, event: self.events.put((number, row, event)), **settings)
        self.engine.submit(request)
        return request

    @contextlib.contextmanager
    def paused(self):
        """A context in which the engine waits, so that it finds all requests at once."""
        go = threading.Event()
        self.engine.call(go.wait)
        try:
            yield
        finally:
            go.set()

    def answers(self, n):
        """Wait until n rows have ended; return their events by number and row."""
        found = {}
        while n:
            number, row, event = self.events.get(timeout=20)
            found.setdefault((number, row), []).append(event)
            n -= isinstance(event, End | Failure)
        return found


def text(events):
    return "".join(event.text for event in events if isinstance(event, Piece))


def ids(events):
    return [token.id for event in events if isinstance(event, Piece) for token in event.tokens]


@pytest.fixture
def served():
    """A function that returns a model, its tokenizer and a client of its engine, which is closed at the end."""
    opened = []

    def start(rows=4, queue=64, **shape):
        loaded = tiny(**shape)
        engine = Engine(loaded.objective.model, loaded.tokenizer, rows, queue)
        opened.append(engine)
        return loaded.objective.model, loaded.tokenizer, Client(engine)

    yield start
    for engine in opened:
        engine.close()


@BLOCKS
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.3, "top_k": 9}, "mixed"], ids=str)
def test_texts_that_come_and_go_are_what_each_would_be_alone(served, block, settings, monkeypatch):
    """20 prompts of 1 to 50 tokens on 4 rows, read in parts of 7 tokens; each has its own seed and length."""
    monkeypatch.setattr(engines, "PART_TOKENS", 7)
    model, tokenizer, client = served(**block)
    rng = torch.Generator().manual_seed(1)
    mixed = [{"temperature": 0.0}, {"repetition_penalty": 1.5}, {"top_p": 0.8}, {"min_p": 0.1, "logit_bias": {3: 2.0}}]
    asked = []
    for number in range(20):
        prompt = torch.randint(0, 30, (int(torch.randint(1, 51, (1,), generator=rng)),), generator=rng).tolist()
        n_new = int(torch.randint(1, 15, (1,), generator=rng))
        chosen = mixed[number % 4] if settings == "mixed" else settings
        asked.append((prompt, n_new, chosen))
        client.ask(number, prompt, n_new, sampling=Sampling(**chosen), seed=number, n_likeliest=0)
        if number % 3 == 0:
            time.sleep(0.005)
    found = client.answers(20)
    for number, (prompt, n_new, chosen) in enumerate(asked):
        generator = torch.Generator().manual_seed(number)
        alone = generate(model, [torch.tensor(prompt)], n_new, generator=generator, **chosen)[0][len(prompt) :].tolist()
        assert ids(found[number, 0]) == alone
        assert text(found[number, 0]) == tokenizer.decode(alone)
        assert found[number, 0][-1] == End("length", n_new)


def test_they_are_written_together(served):
    """Eight texts of 40 tokens take little more than 40 steps, not 320."""
    _, _, client = served(rows=8)
    with client.paused():
        for number in range(8):
            client.ask(number, [5, 6], 40)
    client.answers(8)
    assert 39 <= client.engine.n_steps < 45


def test_a_long_prompt_does_not_stop_the_others(served, monkeypatch):
    """While it is read, part by part, the other text grows."""
    monkeypatch.setattr(engines, "PART_TOKENS", 4)
    _, _, client = served()
    with client.paused():
        client.ask(0, [5], 50)
        client.ask(1, [6] * 40, 1)
    found, order = {}, []
    while len(found) < 2:
        number, _, event = client.events.get(timeout=20)
        order.append(number)
        if isinstance(event, End):
            found[number] = event
    assert order[: order.index(1)].count(0) == 11, "its first token, and a step after each of ten parts"


def test_scores_are_those_of_the_model(served):
    """Of prompt and text: the log-softmax of the logits of one pass over all of it."""
    model, _, client = served(rows=3)
    prompt = [4, 9, 2, 7, 7]
    client.ask(0, prompt, 6, n=3, seed=5, n_likeliest=4, echo=True)
    found = client.answers(3)
    texts = []
    for row in range(3):
        scored, *rest = found[0, row]
        tokens = [*scored, *(token for event in rest if isinstance(event, Piece) for token in event.tokens)]
        texts.append([token.id for token in tokens])
        with torch.no_grad():
            logprobs = model(torch.tensor([texts[row][:-1]])).log_softmax(-1)[0]
        assert tokens[0].logprob is None
        for before, token in enumerate(tokens[1:]):
            assert token.logprob == pytest.approx(float(logprobs[before, token.id]), abs=1e-5)
            values, best = logprobs[before].topk(4)
            assert [i for i, _ in token.likeliest] == best.tolist()
            assert [value for _, value in token.likeliest] == pytest.approx(values.tolist(), abs=1e-5)
        alone = generate(model, [torch.tensor(prompt)], 6, generator=torch.Generator().manual_seed(5 + row))[0]
        assert texts[row] == alone.tolist(), "text i of a prompt has the seed i later"
    assert len({tuple(ids) for ids in texts}) == 3


@pytest.mark.parametrize("n_new", [0, 1])
def test_a_prompt_can_be_scored_without_or_with_one_token(served, n_new):
    _, _, client = served()
    client.ask(0, [4, 9, 2], n_new, n_likeliest=1, echo=True)
    events = client.answers(1)[0, 0]
    assert [token.id for token in events[0]] == [4, 9, 2]
    assert len(ids(events[1:])) == n_new
    assert events[-1] == End("length", n_new)


def test_a_text_ends_at_a_token_or_a_string(served):
    model, tokenizer, client = served()
    generator, letters = torch.Generator().manual_seed(2), {"logit_bias": dict.fromkeys((30, 31, 32), -1e9)}
    free = generate(model, [torch.tensor([5, 6, 7])], 30, generator=generator, **letters)[0].tolist()[3:]
    whole = tokenizer.decode(free)
    stop = whole[9:11]
    assert stop not in whole[:10]
    end = next(n for n, i in enumerate(free) if n > 3 and i not in free[:n])
    client.ask("string", [5, 6, 7], 30, sampling=Sampling(**letters), seed=2, stops=["zzzz", stop], n_likeliest=0)
    client.ask("token", [5, 6, 7], 30, sampling=Sampling(**letters), seed=2, stop_ids={free[end]}, n_likeliest=0)
    found = client.answers(2)
    assert text(found["string", 0]) == whole.partition(stop)[0]
    assert tokenizer.decode(ids(found["string", 0])) == text(found["string", 0]), "no token of the stop is told"
    assert found["string", 0][-1] == End("stop", whole.index(stop) + 2)
    assert ids(found["token", 0]) == free[: end + 1], "the end has a probability, but no text"
    assert text(found["token", 0]) == tokenizer.decode(free[:end])
    assert found["token", 0][-1] == End("stop", end + 1)


def test_a_cancelled_text_leaves_its_row_to_the_next(served):
    _, _, client = served(rows=1)
    first = client.ask(0, [5], 60)
    client.ask(1, [6], 3)
    client.ask(2, [7], 3).cancelled = True
    client.events.get(timeout=20)
    first.cancelled = True
    while True:
        number, _, event = client.events.get(timeout=20)
        if number == 1 and isinstance(event, End):
            break
    assert client.engine.n_tokens < 40, "the first was not written to its end"
    deadline = time.monotonic() + 20
    while client.engine._rows and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not client.engine._rows and not client.engine._slots.keys, "the memory is given back"
    assert client.events.empty(), "the cancelled ones have no end"


def test_more_than_the_queue_holds_is_refused(served):
    _, _, client = served(rows=1, queue=2)
    with client.paused():
        for number in (1, 2):
            client.ask(number, [5], 1)
        with pytest.raises(BusyError):
            client.ask(3, [5], 1)
        with pytest.raises(ValueError, match="n must be at most 1"):
            client.ask(4, [5], 1, n=2)
        with pytest.raises(ValueError, match="at most 2 prompts"):
            client.engine.submit(*[Request([5], 1, print) for _ in range(3)])
    assert len(client.answers(2)) == 2


def test_a_text_that_is_not_finite_fails_alone(served):
    """A token whose embedding is NaN; its row is used again afterwards."""
    model, _, client = served(rows=2)
    with torch.no_grad():
        model.tok_emb.weight[8] = float("nan")
    forbidden = Sampling(logit_bias={8: -1e9})
    alone = generate(model, [torch.tensor([5])], 40, generator=torch.Generator().manual_seed(1), logit_bias={8: -1e9})
    client.ask(0, [5], 40, sampling=forbidden, seed=1, n_likeliest=0)
    client.ask(1, [6, 8, 6], 4)
    client.ask(2, [5], 40, sampling=forbidden, seed=1, n_likeliest=0)
    found = client.answers(3)
    assert found[1, 0] == [Failure(engines.NOT_FINITE)]
    assert ids(found[0, 0]) == ids(found[2, 0]) == alone[0].tolist()[1:]


def test_a_text_that_becomes_nan_leaves_nothing_behind(served):
    """It is forced to write the token with NaN next to another text, whose row it shares afterwards."""
    model, _, client = served(rows=2)
    with torch.no_grad():
        model.tok_emb.weight[8] = float("nan")
    forced, forbidden = Sampling(logit_bias={8: 1e9}), Sampling(temperature=0.0, logit_bias={8: -1e9})
    client.ask(0, [5], 40, sampling=forbidden, n_likeliest=0)
    client.ask(1, [6] * 30, 4, sampling=forced)
    client.answers(1)
    client.ask(2, [5], 20, sampling=forbidden, n_likeliest=0)
    found = client.answers(2)
    assert (
        ids(found[2, 0])
        == generate(model, [torch.tensor([5])], 20, temperature=0, logit_bias={8: -1e9})[0][1:].tolist()
    )


def test_the_engine_lives_on_after_an_error(served, monkeypatch):
    _, _, client = served()

    def broken(*args, **kwargs):
        raise RuntimeError("no memory\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(client.engine._slots, "step", broken)
        client.ask(0, [5], 5)
        assert client.answers(1)[0, 0][-1] == Failure("no memory")
    with monkeypatch.context() as patch:
        patch.setattr(client.engine.model, "hidden_states", broken)
        client.ask(1, [5], 5)
        assert client.answers(1)[1, 0] == [Failure("no memory")]
    for name in ("join", "leave"):
        with monkeypatch.context() as patch:
            patch.setattr(client.engine._slots, name, broken)
            client.ask(name, [5], 5, n=2)
            ended = set()
            while ended != {(name, 0), (name, 1)}:  # after its end a row may have another one
                number, row, event = client.events.get(timeout=20)
                ended |= {(number, row)} if event in (Failure("no memory"), End("length", 5)) else set()
    client.ask(2, [5], 5)
    while (2, 0, End("length", 5)) != client.events.get(timeout=20):
        pass


def test_memory_is_what_the_texts_need(served):
    """Rows and columns grow by doubling, but not beyond the rows and the context that there can be."""
    model, _, client = served(rows=5)
    with client.paused():
        for number in range(5):
            client.ask(number, [5] * (60 if number == 4 else 2), 4)
    shapes = set()
    while len(shapes) < 20:
        found = client.engine.call(lambda: client.engine._slots.keys[0].shape if client.engine._slots.keys else None)
        shapes.add(found.result(timeout=20))
        if not client.engine._rows:
            break
    client.answers(5)
    rows = max(shape[0] for shape in shapes if shape)
    columns = max(shape[2] for shape in shapes if shape)
    assert rows <= 5 and columns <= model.config.context_length + 64


def test_a_closed_engine_ends_what_it_has(served):
    _, _, client = served(rows=1)
    with client.paused():
        client.ask(0, [5], 60)
        client.ask(1, [5], 60)
        closing = threading.Thread(target=client.engine.close)
        closing.start()
        while not client.engine._closed:
            time.sleep(0.001)
    found = client.answers(2)
    assert found[0, 0][-1] == found[1, 0][-1] == Failure("the server is shutting down")
    closing.join(timeout=20)
    with pytest.raises(BusyError):
        client.ask(2, [5], 5)


def test_functions_run_between_steps(served):
    _, _, client = served()
    client.ask(0, [5], 50)
    assert client.engine.call(lambda: threading.current_thread().name).result(timeout=20).startswith("engine")
    with pytest.raises(ZeroDivisionError):
        client.engine.call(lambda: 1 / 0).result(timeout=20)
    assert client.answers(1)[0, 0][-1] == End("length", 50)


def test_an_lstm_is_refused():
    loaded = tiny()
    config = {"vocab_size": 30, "context_length": 8, "emb_dim": 8, "n_heads": 1, "n_layers": 1, "backbone": "lstm"}
    with pytest.raises(ValueError, match="LSTM"):
        Engine(LSTMModel(config), loaded.tokenizer)
