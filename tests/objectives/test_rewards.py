"""gpt/objectives/rewards.py: rewards of texts by hand, rewards of one's own, and the errors of those that fail."""

import json
import math
import re
import sys
from fractions import Fraction

import numpy as np
import pytest

from gpt.objectives.rewards import REWARDS, Reward, find_reward, friends, viable_tale
from gpt.text import countdown, forms, requests, tales

TALES = tales.generate(60, seed=8)


def rewarded(name, prompt, completion, answer=""):
    return find_reward(name).score(prompt, completion, answer)


def chat(*contents):
    """A prompt in ChatML: user and assistant in turn, up to where the assistant's answer begins."""
    turns = "".join(
        f"<|im_start|>{('user', 'assistant')[i % 2]}\n{content}<|im_end|>\n" for i, content in enumerate(contents)
    )
    return f"<|im_start|>system\nYou tell tales.<|im_end|>\n{turns}<|im_start|>assistant\n"


# --- the rewards ------------------------------------------------------------------------------------------------------


def test_a_tale_is_rewarded_with_or_without_its_beginning():
    for tale in TALES:
        for cut in (0, 1, 40, len(tale) // 2, len(tale)):
            assert rewarded("tales", tale[:cut], tale[cut:]) == 1.0
            assert rewarded("tales", tale[:cut], tale[cut:] + " ") == rewarded("tales", tale[:cut], "Amen.") == 0.0
        assert rewarded("tales", chat("Tell me a tale with a giant."), tale) == 1.0
        assert rewarded("tales", "Tell me a tale.\n", tale) == 1.0
        assert rewarded("tales", tale[:40], tale) == 0.0  # begins once more
        assert rewarded("tales", chat("Tell me a tale with a giant."), tale[:-1]) == 0.0


@pytest.mark.parametrize(
    ("completion", "answer", "value"),
    [(" Two.", "Two.", 1), ("Two.\n", " Two.", 1), ("", "", 1), ("two.", "Two.", 0), ("Two. ", "Two", 0), ("", "x", 0)],
)
def test_exact_match(completion, answer, value):
    assert rewarded("exact_match", "anything", completion, answer) == value


def test_the_last_message_of_a_conversation_is_what_counts():
    others = TALES[::-1]
    for line, other in zip(requests.generate(60, seed=3), others, strict=True):
        contents = [message["content"] for message in json.loads(line)["messages"]]
        request, tale = contents[:2]
        assert rewarded("requests", chat(request), tale) == rewarded("requests", f"{request}\n", tale) == 1.0
        assert rewarded("requests", chat(request), tale + "\n") == rewarded("requests", chat(request), "The fox.") == 0
        constraints = requests.parse(request)
        assert rewarded("requests", chat(request), other) == requests.obeys(constraints, other)
        assert rewarded("requests", chat("Who took it?", "The fox.", request), tale) == 1.0
        for i in range(2, len(contents), 2):
            prompt, answer = chat(*contents[: i + 1]), contents[i + 1]
            assert rewarded("requests", prompt, answer, answer) == 1.0
            assert rewarded("requests", prompt, f"{answer} ", f" {answer}") == 1.0
            assert rewarded("requests", prompt, tale, answer) == rewarded("requests", prompt, "No.", answer) == 0.0


def test_countdown():
    for line in countdown.generate(50):
        pair = json.loads(line)
        assert rewarded("countdown", pair["prompt"], pair["target"]) == 1.0
        assert rewarded("countdown", pair["prompt"], pair["target"] + "+1") == 0.0
    for prompt in ("Reach 24 with 3 8 1:", chat("Reach 9 with 1 2 3:", "3*(1+2)", "Reach 24 with 3 8 1:")):
        assert rewarded("countdown", prompt, "1*8*3", "3*8*1") == 1.0
    with pytest.raises(ValueError, match=r"the reward 'countdown' raised ValueError \('Reach me' is no puzzle"):
        rewarded("countdown", "Reach me", "3*8*1")


def test_forms():
    """A quarter for the form, and one for each value."""
    prompt, record = (
        forms.PROMPT.format(sentence="Ada Wolf left Rome on May 3, 1998."),
        '"1998-05-03", "place": "Rome"}',
    )
    for text in (prompt, chat(prompt), chat("Hello", "Hello!", prompt)):
        assert rewarded("forms", text, f'{{"name": "Ada Wolf", "date": {record}') == 1.0
        assert rewarded("forms", text, f'{{"name": "Ada", "date": {record}') == 0.75
        assert rewarded("forms", text, '{"name": "Wolf", "date": "1998-05-04", "place": "Rome"}') == 0.5
        assert rewarded("forms", text, '{"name": "", "date": "0000-00-00", "place": ""}') == 0.25
        assert rewarded("forms", text, f'{{"date": {record}') == 0.0
    with pytest.raises(ValueError, match=r"the reward 'forms' raised ValueError \('Hello' asks for no record"):
        rewarded("forms", chat(prompt, "Yes?", "Hello"), "Hello!")


def test_every_reward_judges_any_completion():
    prompts = {"forms": forms.PROMPT.format(sentence="Ada Wolf left Rome on May 3, 1998.")}
    for name in REWARDS:
        for completion in ("", "\0", "((((", "<|im_start|>user\n", "Once upon a time " * 2000):
            assert rewarded(name, prompts.get(name, "Reach 24 with 3 8 1:"), completion, "24") == 0.0


# --- rewards of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A working folder with a module of rewards."""
    (tmp_path / "my_own_rewards.py").write_text(
        "short = lambda prompt, completion, answer: 1 / len(completion)\nnumber = 3\n"
    )
    (tmp_path / "my_broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    sys.modules.pop("my_own_rewards", None)


def test_a_reward_of_ones_own_is_found(mine):
    assert rewarded("my_own_rewards:short", "", "four") == 0.25
    assert find_reward("math:dist").function is math.dist


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tale",
            "no reward 'tale': it is tales, exact_match, requests, countdown, forms, or 'module:function' for one",
        ),
        ("", "no reward '': it is tales"),
        (":", "no reward ':': it is tales"),
        ("math:", "no reward 'math:': it is tales"),
        ("my_own_rewards:long", "the reward 'my_own_rewards:long' cannot be found: AttributeError: module"),
        ("my_own_rewards:number", "the reward 'my_own_rewards:number' is no function, but of type int"),
        ("no_such_module:f", "the reward 'no_such_module:f' cannot be found: ModuleNotFoundError: No module named"),
        (".relative:f", "the reward '.relative:f' cannot be found: TypeError"),
        ("my_broken_rewards:f", "the reward 'my_broken_rewards:f' cannot be found: ZeroDivisionError: division by"),
    ],
)
def test_a_reward_that_cannot_be_found(mine, name, message):
    with pytest.raises(ValueError) as caught:
        find_reward(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "number"),
    [(True, 1.0), (False, 0.0), (3, 3.0), (-0.5, -0.5), (np.float32(0.5), 0.5), (Fraction(1, 4), 0.25)],
)
def test_numbers_are_rewards(value, number):
    found = Reward("mine", lambda *_: value).score("p", "c")
    assert found == number and type(found) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "1", [1.0], 1j, np.nan, "x" * 500])
def test_what_is_no_finite_number_is_an_error(value):
    with pytest.raises(ValueError) as caught:
        Reward("mine", lambda *_: value).score("p", "Once " * 100)
    assert str(caught.value).startswith(f"the reward 'mine' returned {value!r:.60}, which is no finite number, for the")
    assert str(caught.value).endswith(f" for the completion {('Once ' * 100)[:60]!r}")
    assert len(str(caught.value)) < 250


def test_a_reward_that_raises_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"^the reward 'mine' raised ZeroDivisionError \(.*\) for the completion 'c'$"):
        Reward("mine", lambda *_: 1 / 0).score("p", "c")
    with pytest.raises(ValueError, match=r"^the reward 'mine' raised TypeError \(.*\) for the completion 'c'$"):
        Reward("mine", lambda completion: 1.0).score("p", "c")
    with pytest.raises(ValueError, match=r"^the reward 'mine' raised OverflowError"):
        Reward("mine", lambda *_: 10**400).score("p", "c")
    with pytest.raises(KeyboardInterrupt):
        Reward("mine", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)).score("p", "c")


# --- requests ---------------------------------------------------------------------------------------------------------


def test_the_first_error_is_where_no_tale_that_was_asked_for_goes_on():
    viable = REWARDS["requests"].viable
    for line in requests.generate(60, seed=3):
        contents = [message["content"] for message in json.loads(line)["messages"]]
        request, tale = contents[:2]
        assert viable(chat(request), tale, "") == viable(chat(request), tale + ".", "") == len(tale)
        assert viable(chat(request), tale[:300] + "#" + tale[300:], "") == 300
        for i in range(2, len(contents), 2):
            answer = contents[i + 1]
            assert viable(chat(*contents[: i + 1]), f"{answer}!", answer) == len(answer)
            assert viable(chat(*contents[: i + 1]), tale, answer) == (answer[0] == tale[0])


def test_a_name_or_villain_that_was_not_asked_for_is_an_error_where_it_stands():
    viable = REWARDS["requests"].viable
    for tale in TALES[:20]:
        facts = tales.facts(tale)
        for table, word, form, about in (("name", facts.hero, "", "about"), ("villain", facts.villain, "a", "with")):
            for entry in tales.TABLES[table].entries:
                if entry[""][0] != word[0]:
                    request = f"Tell me a tale {about} {entry[form]}."
                    assert viable(chat(request), tale, "") == re.search(rf"\b{word}\b", tale).start()


# --- tales ------------------------------------------------------------------------------------------------------------


def test_kinds_are_the_numbers_of_friends():
    for tale in TALES:
        assert friends(tale) == {2: "two", 3: "three"}[len(tales.facts(tale).friends)]
        assert friends(tale[: tale.index(" friends and ")]) == friends("") == ""
    assert {friends(tale) for tale in TALES} == {"two", "three"}


def test_the_first_error_is_where_no_tale_goes_on():
    for tale in TALES:
        for i in (0, 7, 300, len(tale) - 1):
            assert (
                viable_tale("", tale[:i] + "#" + tale[i:])
                == viable_tale("", tale[:i] + "#")
                == viable_tale("", tale[:i])
                == i
            )
        assert viable_tale("", tale) == viable_tale("", tale + ".") == len(tale)
