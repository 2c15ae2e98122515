"""gpt/text/forms.py against strptime, records by hand, and any text as an answer."""

import datetime
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.text import forms
from gpt.text.forms import is_right, parse, read
from gpt.text.sources import open_corpus

CLARA = forms.PROMPT.format(sentence="Clara Weber was born in Lisbon on the third of May 1998.")
RECORD = {"name": "Clara Weber", "date": "1998-05-03", "place": "Lisbon"}
ORDINALS = (  # written out once more
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third twenty-fourth "
    "twenty-fifth twenty-sixth twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first"
)


def conversations(n, seed, test=False):
    """Prompts and answers."""
    for line in forms.generate(n, seed, test):
        user, assistant = json.loads(line)["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        yield user["content"], assistant["content"]


def read_by_hand(prompt):
    """The date of a prompt by strptime, which knows no ordinals."""
    for number, word in reversed([*enumerate(ORDINALS.split(), start=1)]):  # "twenty-first" before "first"
        prompt = re.sub(rf"\b{word}\b", str(number), prompt)
    for pattern, form in (
        (r"(\d{1,2})(?:st|nd|rd|th)? (?:of )?([A-Z]\w+) (\d{4})", "%d %B %Y"),
        (r"([A-Z]\w+) (\d{1,2}), (\d{4})", "%B %d %Y"),
    ):
        if found := re.search(pattern, prompt):
            return datetime.datetime.strptime(" ".join(found.groups()), form).date().isoformat()
    raise AssertionError(prompt)


@pytest.mark.parametrize("test", [False, True])
def test_the_answer_is_what_the_sentence_says(test):
    shapes = set()
    for prompt, answer in conversations(2000, 3, test):
        record = json.loads(answer)
        assert list(record) == ["name", "date", "place"] and record == parse(prompt)
        assert record["date"] == read_by_hand(prompt)
        assert prompt.count(record["name"]) == 1 and prompt.count(record["place"]) == 1
        assert is_right(prompt, answer) and is_right(f" {prompt}\n", f"{answer}\n")
        shape = prompt.replace(record["name"], "N").replace(record["place"], "P")
        shapes.add(re.sub(r"\b([Tt]he )?[\w-]+ (of )?[\w-]+,? \d{4}", "D", shape))
    assert len(shapes) == len(forms.SENTENCES)


def test_endings_of_days():
    endings = {}
    for prompt, _ in conversations(4000, 5):
        if found := re.search(r"(\d+)(st|nd|rd|th) of", prompt):
            endings.setdefault(int(found[1]), set()).add(found[2])
    special = {1: "st", 21: "st", 31: "st", 2: "nd", 22: "nd", 3: "rd", 23: "rd"}
    assert endings == {day: {special.get(day, "th")} for day in range(1, 32)}


def test_training_and_test_share_no_name_place_or_date():
    """Whatever the seeds."""
    seen = [{}, {}]
    for test in (False, True):
        for seed in range(3):
            for _, answer in conversations(3000, seed, test):
                record = json.loads(answer)
                given, family = record["name"].split()
                for key, value in {**record, "name": given, "family": family}.items():
                    seen[test].setdefault(key, set()).add(value)
    for key, values in seen[False].items():
        assert not values & seen[True][key] and len(values) > len(seen[True][key])
    for line in forms.preferences(3000):
        record = json.loads(json.loads(line)["chosen"])
        assert record["place"] in seen[False]["place"] and record["date"] not in seen[True]["date"]


def test_preferences_have_a_right_answer_and_a_wrong_one():
    wrong = {"form": 0, "name": 0, "date": 0, "place": 0}
    for line in forms.preferences(2000, seed=2):
        pair = json.loads(line)
        assert is_right(pair["prompt"], pair["chosen"]) and not is_right(pair["prompt"], pair["rejected"])
        record, rejected = parse(pair["prompt"]), read(pair["rejected"])
        differ = [key for key in record if rejected and rejected[key] != record[key]]
        assert len(differ) == (rejected is not None)
        wrong[differ[0] if differ else "form"] += 1
    assert 400 < wrong["form"] < 600 and wrong["date"] > 900 and min(wrong.values()) > 120


# --- the checker ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(RECORD),
        json.dumps(RECORD, separators=(",", ":")),
        '  { "place":"Lisbon","date" : "1998-05-03" , "name":"Clara Weber"}\n',
        json.dumps(RECORD).replace("Clara", "\\u0043lara"),
    ],
)
def test_right_answers(answer):
    assert is_right(CLARA, answer)


@pytest.mark.parametrize(
    "answer",
    [
        *["", " ", "{}", "[]", "null", "Lisbon", json.dumps(json.dumps(RECORD)), json.dumps([RECORD]), "{" * 100_000],
        *[json.dumps([[key, value] for key, value in RECORD.items()]), "[" * 100_000 + "]" * 100_000],
        *[json.dumps(RECORD, indent=2), f"```json\n{json.dumps(RECORD)}\n```", f"{json.dumps(RECORD)} {{}}"],
        *[json.dumps(RECORD) + ".", json.dumps(RECORD)[:-1], str(RECORD), f"Here it is: {json.dumps(RECORD)}"],
        *[json.dumps(RECORD | change) for change in ({"name": "Clara"}, {"place": "lisbon"}, {"date": "1998-05-04"})],
        *[json.dumps(RECORD | {"date": date}) for date in ("1998-5-3", "3 May 1998", "1998-05-03 ", 19980503, None)],
        *[json.dumps(RECORD | {"job": "none"}), json.dumps({"name": "Clara Weber", "date": "1998-05-03"})],
        json.dumps(RECORD).replace("{", '{"name": "Clara Weber", '),  # a key twice
        json.dumps(RECORD | {"place": {"city": "Lisbon"}}),
        json.dumps({key.title(): value for key, value in RECORD.items()}),
    ],
)
def test_wrong_answers(answer):
    assert not is_right(CLARA, answer)


def test_a_form_with_a_wrong_value_is_still_the_form():
    assert read(json.dumps(RECORD | {"date": "1998-13-45"})) == RECORD | {"date": "1998-13-45"}
    assert read(json.dumps(RECORD | {"date": "May 3"})) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from([*RECORD.values()]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from([*RECORD]) | st.text(max_size=3), part),
    max_leaves=6,
)


@given(st.text() | json_values.map(json.dumps) | st.text(alphabet='{}":, \nnamedtplc0159-', max_size=60))
def test_any_answer_is_judged(answer):
    """What is right is JSON of this record, on one line."""
    if is_right(CLARA, answer):
        assert json.loads(answer) == RECORD and "\n" not in answer.strip()


@given(st.text())
def test_any_prompt_is_read_or_refused(prompt):
    with pytest.raises(ValueError, match="asks for no record, as 'Write name"):
        parse(prompt)


@pytest.mark.parametrize(
    "date", ["the thirtieth of February 1998", "May 3 1998", "the thirty-second of May 1998", "May"]
)
def test_a_sentence_without_a_date_is_refused(date):
    with pytest.raises(ValueError, match="asks for no record"):
        parse(CLARA.replace("the third of May 1998", date))


def test_a_sentence_of_ones_own_is_read():
    prompt = forms.PROMPT.format(sentence="In Köln Zoë Müller won a race on the 31st of December 2031.")
    assert parse(prompt) == {"name": "Zoë Müller", "date": "2031-12-31", "place": "Köln"}


def test_the_seed_determines_the_corpora():
    for name, kind in (("forms", "conversation"), ("forms-test", "conversation"), ("forms-preferences", "preference")):
        first, again, other = (
            [list(document) for document in open_corpus(f"{name}:20:{seed}").documents()] for seed in (1, 1, 2)
        )
        assert first == again and len(first) == (40 if kind == "preference" else 20)
        assert not set(map(tuple, first)) & set(map(tuple, other))
        corpus = open_corpus(f"{name}:20:1")
        assert corpus.noun == kind and corpus.name == f"{name}:20:1"
    prompts = [next(iter(document)) for document in open_corpus("forms:20:1").documents()]
    assert prompts == [prompt for prompt, _ in conversations(20, 1)]
