"""Questions of our own in the published formats of the tasks, with the corners that trip tokenizing and scoring."""

import json

LONG = "The old mill by the river turned all day and all night, and nobody knew who had built it. " * 12
LABELS = ["A", "B", "C", "D", "E"]


def labelled(texts, labels=LABELS):
    """Choices as ARC and OpenBookQA have them."""
    return {"text": texts, "label": labels[: len(texts)]}


def hellaswag(label, ctx_a, ctx_b, endings, about="Sailing"):
    return {
        "ind": 7, "activity_label": about, "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": f"{ctx_a} {ctx_b}".strip(),
        "endings": endings, "label": label, "split": "val", "source_id": "ours", "split_type": "indomain",
    }  # fmt: skip


WHERE = ["a boat", "a boat and a dog", "the sea", "a house"]  # the first is a prefix of the second
RECORDS = {
    "hellaswag": [
        hellaswag(0, "A man is on a boat.", "he", ["pulls the sail.", "eats the sail.", "is a sail.", "sleeps in it"]),
        hellaswag(1, "A woman holds a rope.", "The Woman", ["ties it", "ties it to a post.", "flies.", "is tied."]),
        hellaswag(2, "[header] How to row [title] Sit down. [step] Take the oars.", "", [
            "[substeps] Row.  Then rest.", "[title] Row back [step] Rest.", "Take  three   oars.", "Sit [step] down."],
            about="Sports [and] games"),
        hellaswag(3, "  Ein Schiff läuft aus — 船が出る。", "es", ["fährt weg.", "出航する。", "sinkt 🌊.", "steht."]),
        hellaswag(0, LONG, "the mill", ["stops.", "turns.", "burns down in the end.", "grows."], about="Milling"),
        hellaswag(1, "The wind drops. ", " the crew", ["waits.", "waits. ", " waits.", "rows."]),
        *[hellaswag(i % 4, f"{i} gulls sit on a mast.", "one", [f"{text} {i}." for text in
            ("flies off to", "looks for", "counts to", "paints")]) for i in range(2, 10)],
    ],
    "arc_easy": [
        {"id": "1", "question": "Where does a sailor sleep?", "choices": labelled(WHERE), "answerKey": "A"},
        {"id": "2", "question": "Which is wet?", "choices": labelled(["fire", "sand", "sea"]), "answerKey": "C"},
        {"id": "3", "question": "Which number is odd?", "choices": labelled(["2", "4", "7", "8", "10"]),
         "answerKey": "C"},
        {"id": "4", "question": "Wo schläft der Bär? 熊は？", "choices": labelled(["Höhle", "洞窟", "🏠", "Bär"]),
         "answerKey": "B"},
        {"id": "5", "question": f"{LONG}Who built the mill? ", "choices": labelled(WHERE), "answerKey": "D"},
        {"id": "6", "question": "", "choices": labelled(["yes", "no"], ["1", "2"]), "answerKey": "2"},
        *[{"id": f"{i}", "question": f"What is {i} and {i}?", "answerKey": LABELS[i % 4],
           "choices": labelled([f"{i + i}", f"{i}", f"{i}{i}", "nothing"])} for i in range(2, 9)],
    ],
    "piqa": [
        {"goal": "To open a jar,", "sol1": "turn the lid.", "sol2": "turn the lid. Then eat it.", "label": 0},
        {"goal": "To dry hair ", "sol1": "pour water on it.", "sol2": " use a towel. ", "label": 1},
        {"goal": "Tee kochen\n", "sol1": "Wasser erhitzen: 100 °C.", "sol2": "お茶を凍らせる", "label": 0},
        {"goal": LONG, "sol1": "stop it", "sol2": "stop it by lifting the wheel out of the water", "label": 1},
        # of about a token per letter: per character the second is likelier, per byte the first
        {"goal": "Name letters,", "sol1": "éàüöéàüö", "sol2": "b q x", "label": 1},
        {"goal": "", "sol1": "?", "sol2": "!", "label": 0},
        *[{"goal": f"To count to {i},", "sol1": f"say {i} numbers.", "sol2": f"say one number {i} times.",
           "label": i % 2} for i in range(2, 10)],
    ],
    "winogrande": [
        {"sentence": "Ann thanked Beth because _ had helped.", "option1": "Ann", "option2": "Beth", "answer": "2"},
        {"sentence": "_ sank, since the ship was heavier than the raft.", "option1": "The ship", "option2": "The raft",
         "answer": "1"},
        {"sentence": f"{LONG}The mill or the river, the _  was older.", "option1": "mill", "option2": "river",
         "answer": "1"},
        {"sentence": "Der Bär, nicht das Reh, 食べた: _ war müde 🐻 .", "option1": "der Bär", "option2": "das Reh",
         "answer": "1"},
        {"sentence": "Ann and not Beth named the snake_case file, so _ knew.", "option1": "Ann", "option2": "Beth",
         "answer": "1"},
        *[{"sentence": f"The {i} hens fed the {i + 1} ducks, and the _ were full.", "option1": "hens",
           "option2": "ducks", "answer": str(1 + i % 2)} for i in range(2, 10)],
    ],
    "openbookqa": [
        {"id": "1", "question_stem": "A sailor sleeps in", "choices": labelled(WHERE), "answerKey": "A"},
        {"id": "2", "question_stem": "", "choices": labelled(["water", "a fire"]), "answerKey": "A"},
        {"id": "3", "question_stem": "7", "choices": labelled(["is odd", "is even"]), "answerKey": " A"},
        {"id": "4", "question_stem": "Der Schnee ist  ", "choices": labelled(["weiß", "schwarz", "雪"]),
         "answerKey": "C"},
        {"id": "5", "question_stem": LONG, "choices": labelled(["It turned.", "It stood."]), "answerKey": "B"},
        *[{"id": f"{i}", "question_stem": f"A cow has {i} legs and", "answerKey": LABELS[i % 3],
           "choices": labelled([f"{i} ears", "a tail", "a tail and horns"])} for i in range(2, 9)],
    ],
    "boolq": [
        {"passage": "Hens lay eggs.", "question": "do hens lay eggs", "idx": 0, "label": 1},
        {"passage": "Das Meer ist salzig. 海は塩辛い。", "question": "is the sea sweet", "idx": 1, "label": 0},
        {"passage": LONG, "question": "did somebody build the mill ", "idx": 2, "label": 0},
        {"passage": "", "question": "is it so", "idx": 3, "label": 1},
        *[{"passage": f"{i} hens sat on a wall.", "question": f"are there {i * (i % 2 + 1)} hens", "idx": i,
           "label": i % 2} for i in range(4, 14)],
    ],
    "lambada_openai": [
        {"text": "the cat sat on the mat and the dog sat on the mat"},
        {"text": "he took his hat, his coat and his Schlüssel"},
        {"text": "two  spaces and a comma,then 海"},
        {"text": "it ends with a space "},
        {"text": "alone"},
        {"text": f"{LONG.strip()} So he asked about the mill"},
        {"text": "a line\nand another\nline"},
        *[{"text": f"{i} cats sat on the {what}"} for i, what in enumerate(("mat", "dog", "mat", "wall", "mat"))],
    ],
}  # fmt: skip
RECORDS["arc_challenge"] = RECORDS["arc_easy"][::-1]


def write_tasks(folder):
    """Write data/tasks/NAME.jsonl below a folder for each task."""
    (folder / "data" / "tasks").mkdir(parents=True)
    for name, records in RECORDS.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / "data" / "tasks" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
