"""gpt/evaluation/requests.py: answers written by hand in a model's place, judged by hand."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from gpt.evaluation import requests as answered
from gpt.evaluation.requests import answer_requests, describe_requests, holds_requests, unseen_requests
from gpt.objectives.documents import Completion
from gpt.objectives.rewards import USER
from gpt.text import requests, tales, tasks
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus

CONVERSATIONS = [json.loads(line)["messages"] for line in requests.generate(40, seed=5)]
REQUESTS = [messages[0]["content"] for messages in CONVERSATIONS]
TALES = [messages[1]["content"] for messages in CONVERSATIONS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The conversations, of which the first 32 are the training split."""
    return prepare_data(open_corpus("requests:40:5"), "char", tmp_path_factory.mktemp("requests"), 0.2)


@pytest.fixture
def model():
    """A model that has weights and a context, and no more."""
    return SimpleNamespace(config=SimpleNamespace(context_length=2000), parameters=lambda: iter([torch.zeros(1)]))


def test_no_request_is_in_the_training_split(data, monkeypatch):
    assert holds_requests(data) and data.train.documents == 32
    found = unseen_requests(data, 30, seed=0)
    assert len(found) == 30 and not {*found} & {*REQUESTS[:32]}
    assert found == unseen_requests(data, 40, seed=0)[:30] != unseen_requests(data, 30, seed=1)
    monkeypatch.setattr(requests, "conversations", lambda seed, follow_ups: iter(CONVERSATIONS))
    assert unseen_requests(data, 8, seed=0) == REQUESTS[32:]


def test_answers_are_judged(data, model, monkeypatch):
    """Ten requests: six tales that obey, one about others, one that breaks a rule, one cut, and one that is no tale.
    Of the seven questions two are answered wrongly, one because the answer does not end."""
    hero = tales.facts(TALES[6]).hero
    asked = [*REQUESTS[:6], f"Tell me a tale about {'Tom' if hero != 'Tom' else 'Ida'}.", *REQUESTS[7:10]]
    assert len({*asked}) == 10
    wrong = TALES[7][: TALES[7].rindex(tales.facts(TALES[7]).thing)] + TALES[6][-30:]
    rule = tales.first_broken_rule(wrong)
    written = [*TALES[:7], wrong, TALES[8], "No."]
    questions = []

    def reply(model, prompts, stop_ids, most, temperature, generator):
        """The tale asked for; of a tale, the answer to the question about it, but not to the third and the fourth."""
        assert most == 2000 - max(map(len, prompts)) and temperature == 0.5
        for ids in prompts:
            messages = USER.findall(data.tokenizer.decode(ids))
            if len(messages) == 1:
                number = asked.index(messages[0])
                yield Completion(data.tokenizer.encode(written[number]), number != 8)
                continue
            questions.append(messages[1])
            right = tasks.answers(written[asked.index(messages[0])])[messages[1]]
            answer = "The ." if len(questions) == 3 else right
            yield Completion(data.tokenizer.encode(answer), len(questions) != 4)

    monkeypatch.setattr(answered, "complete", reply)
    found = answer_requests(model, data.tokenizer, asked, 0.5)
    assert (found.obeyed, found.asked, found.right) == (6, 7, 5)
    assert found.failures == Counter(["hero", f"grammar: {rule}", "no end", "grammar: unknown sentence"])
    assert len({*questions}) > 1
    assert [messages[0]["content"] for messages in found.conversations] == asked
    assert [messages[1]["content"] for messages in found.conversations] == written
    assert [len(messages) for messages in found.conversations] == [4] * 7 + [2] * 3
    text = describe_requests({"greedy": found, "temperature 1": answered.Answers(conversations=found.conversations)})
    rows = [line.rsplit(maxsplit=2) for line in text.partition("\n\n")[0].splitlines()[1:]]
    assert rows[0] == ["obeyed", "60.0%", "0.0%"] and rows[-1][1:] == ["71.4%", "-"]
    assert ["not kept: hero", "10.0%", "0.0%"] in rows
    assert f"user       {asked[0]}\nassistant  {TALES[0]}\nuser       {questions[0]}\nassistant  " in text
