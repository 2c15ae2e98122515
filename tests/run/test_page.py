"""A run's page: its figures are those of metrics.csv, PyTorch and the tokens; any text is shown as it is."""

import base64
import csv
import dataclasses
import math
import shutil
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import corpus_of
from page_reader import Page
from runs import change, quiet, stop_at, train

from gpt.checkpoint import RunFolder
from gpt.config import AdapterConfig, DataConfig, GPTConfig, TrainConfig
from gpt.evaluation.baselines import compute_baselines
from gpt.evaluation.inspection import attention_weights
from gpt.exchange.models import load_model, load_objective
from gpt.run import page_data, page_inside
from gpt.run.page import render, to_json, write_page
from gpt.run.page_data import charts, thin, visible
from gpt.run.page_inside import validation_texts
from gpt.run.training import resume_run, start_run
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus
from gpt.token_files import load_data
from scripts import run_script

HOSTILE = 'a </script><script>alert("1")</script> <!-- <b>&amp;</b> \x00\x1b[31m ü 漢 \U0001f600\n'


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("gpt.objectives.objective.SAMPLE_TOKENS", 20)
    monkeypatch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)


@pytest.fixture(scope="module")
def tale_run(tmp_path_factory):
    """A short run on tales, whose entropy is known."""
    folder = tmp_path_factory.mktemp("tales")
    prepare_data(open_corpus("tales:120"), "bpe:400", folder / "data", 0.1)
    config = TrainConfig(
        seed=1, max_steps=6, batch_size=2, log_every=1, eval_every=3, save_every=0, sample_every=3, device="cpu",
        model=GPTConfig(0, 420, 16, 2, 3, 0.1, n_kv_heads=1, position="rope"),
        data=DataConfig(str(folder / "data"), "document"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
        return train(config, folder / "tale").run


@pytest.fixture
def run(tiny_config, tmp_path):
    return train(tiny_config, tmp_path / "run").run


def rows_of(run):
    with run.metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def as_shown(token):
    """The text of a token's bytes; those of a part of a character in hexadecimal."""
    try:
        return visible(token.decode())
    except UnicodeDecodeError:
        return f"⟨{token.hex(' ').upper()}⟩"


def test_surprises_are_torchs_cross_entropy_of_the_validation_split(tale_run):
    page, (model, tokenizer, _) = Page(write_page(tale_run.path)), load_model(tale_run, "best")
    found, data = page.data["surprises"], load_data(tale_run.config().data.path)
    tokens = torch.tensor(np.array(data.val.tokens[: len(found["texts"])], np.int64))
    starts = [*(tokens == tokenizer.eot_id).nonzero()[:, 0].tolist(), len(tokens) - 1]
    assert found["texts"] == [tokenizer.decode([i]) for i in tokens.tolist()]
    bits, ranks, likeliest = [None], [None], [[]]
    for start, end in pairwise(starts):  # no document sees another
        with torch.no_grad():
            logits = model(tokens[None, start:end])[0]
        targets = tokens[start + 1 : end + 1]
        bits += (torch.nn.functional.cross_entropy(logits, targets, reduction="none") / math.log(2)).tolist()
        order = logits.argsort(dim=-1, descending=True, stable=True)
        ranks += [row.tolist().index(i) + 1 for row, i in zip(order, targets, strict=True)]
        likeliest += [[as_shown(tokenizer.decode_bytes([i])) for i in row[:5].tolist()] for row in order]
    assert len(starts) > 2
    assert len(tokens) >= page_inside.TEXT_TOKENS - 3
    assert found["bits"][1:] == pytest.approx(bits[1:], rel=1e-4)
    assert found["bits"][0] is None
    assert found["ranks"] == ranks
    assert [[text for text, _ in row] for row in found["likeliest"]] == likeliest
    assert all(0 < p < 1 for row in found["likeliest"] for _, p in row)
    assert found["mean"] == pytest.approx(sum(bits[1:]) / (len(bits) - 1), rel=1e-4)
    assert found["special"] == ["<|endoftext|>"]


def test_attention_is_that_of_the_first_tokens(tale_run):
    page, (model, tokenizer, _) = Page(write_page(tale_run.path)), load_model(tale_run, "best")
    found, tokens = page.data["attention"], load_data(tale_run.config().data.path).val.tokens[:40].tolist()
    assert found["tokens"] == [tokenizer.decode([i]) for i in tokens]
    weights = np.frombuffer(base64.b64decode(found["weights"]), np.uint8).reshape(3, 2, 40, 40) / 255
    np.testing.assert_allclose(weights, attention_weights(model, tokens).numpy(), atol=0.51 / 255)


def test_curves_are_the_rows_of_metrics_and_their_levels_the_baselines(tale_run):
    curves = Page(write_page(tale_run.path)).data["curves"]
    (shown,) = curves["runs"]
    rows = rows_of(tale_run)
    for name in rows[0]:
        values = [float(row[name] or "nan") for row in rows]
        found = [math.nan if x is None else x for x in shown["columns"][name]]
        assert found == pytest.approx(values, rel=1e-5, nan_ok=True), name
    objective, _, checkpoint = load_objective(tale_run, "best")
    baselines = compute_baselines(objective, checkpoint.config, load_data(checkpoint.config.data.path))
    by_title = {chart["title"]: chart for chart in curves["charts"]}
    assert by_title.keys() >= {"loss", "perplexity", "bits per byte", "learning rate", "gradient norm"}
    levels = dict(by_title["loss"]["levels"])
    assert levels.pop("entropy floor") == pytest.approx(baselines.entropy_floor_loss)
    assert levels == pytest.approx(baselines.losses)
    assert dict(by_title["perplexity"]["levels"])["trigram"] == pytest.approx(math.exp(baselines.losses["trigram"]))
    excess = [x - baselines.entropy_floor_loss for x in shown["columns"]["train_loss"] if x is not None]
    assert [x for x in shown["columns"]["train_excess"] if x is not None] == pytest.approx(excess, rel=1e-4)


def test_samples_of_tales_have_the_grammars_verdict(tale_run, tmp_path):
    copy = RunFolder(shutil.copytree(tale_run.path, tmp_path / "copy"))
    (tale,) = tales.generate(1, seed=5)
    copy.samples.write_text(f"--- step 0 ---\n{tale}\n\n--- step 6 ---\nOnce upon a time there\n\nwas.\n\n")
    samples = Page(write_page(copy.path)).data["samples"]
    verdict = tales.first_broken_rule("Once upon a time there\n\nwas.")
    assert samples == [
        {"step": 0, "text": tale, "verdict": ""},
        {"step": 6, "text": "Once upon a time there\n\nwas.", "verdict": verdict},
    ]


def test_settings_that_differ_come_first(run):
    page = Page(write_page(run.path))
    changed, others = page.text.split("settings with their default values")
    changed = changed.split("settings that differ from the defaults")[1]
    for name, value in (("max_steps", "12"), ("model.emb_dim", "32"), ("optim.lr", "0.003")):
        assert changed.index(name) < changed.index(value)
    assert "optim.weight_decay" in others
    assert "optim.weight_decay" not in changed
    assert "peak learning rate, reached after warm-up" in changed
    assert f"python scripts/train.py --config {run.config_file}" in page.text


def test_any_text_is_shown_as_it_is(tiny_config, tmp_path):
    """Texts that look like HTML, in tokens, samples and settings, add no element and run nothing."""
    text = HOSTILE.replace("\x00", "") * 60  # in prepared text it is refused
    folder = prepare_data(corpus_of(tmp_path / "in", text), "bpe:262", tmp_path / "data").folder
    config = change(tiny_config, data=DataConfig(str(folder)), sample_prompt="<i>&\"'</i>")
    run = train(config, tmp_path / "<b>run").run
    run.samples.write_text(f"--- step 0 ---\n{HOSTILE}\n\n", encoding="utf-8")
    page = Page(write_page(run.path))
    assert [kind for kind, _ in page.scripts] == ["application/json", "", "", ""]
    assert page.headings[0] == "<b>run"
    assert page.data["samples"] == [{"step": 0, "text": visible(HOSTILE)}]
    assert "\x00" not in page.source
    texts = page.data["surprises"]["texts"]
    pieces = [i for i, text in enumerate(texts) if text.startswith("⟨")]
    assert pieces  # of characters that are more than a token
    assert bytes.fromhex(texts[pieces[0]][1:-1])
    assert "</script><script>alert" in "".join(texts)
    assert "<i>&\"'</i>" in page.text
    assert not page.loaded
    assert all(link.startswith(("#", "data:,")) for link in page.links)


def test_json_means_nothing_to_html():
    assert not set(to_json({"</script>": "<!-- &"})) & set("<>&")
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json([math.nan])


def test_the_trainer_writes_the_page_that_the_script_writes(tiny_config, pages, tmp_path, monkeypatch, capsys):
    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    stop_at(trainer, 7)
    assert "at step 7 of 12" in Page(trainer.run.page).text
    resume_run(tmp_path / "run", log=quiet).train()
    written = trainer.run.page.read_bytes()
    before = {p: p.read_bytes() for p in trainer.run.path.rglob("*") if p.is_file()}
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with trainer.run.lock():  # as while it trains
        assert run_script(f"report --run {trainer.run.path} --open") == 0
    (trainer.run.path / ".lock").unlink(missing_ok=True)
    assert capsys.readouterr().out == f"{trainer.run.page}\n"
    assert opened == [trainer.run.page.resolve().as_uri()]
    assert {p: p.read_bytes() for p in trainer.run.path.rglob("*") if p.is_file()} == before
    assert trainer.run.page.read_bytes() == written
    assert "trained for 12 steps" in Page(trainer.run.page).text
    out = tmp_path / "new" / "early.html"
    assert run_script(f"report --run {trainer.run.path} --checkpoint step-000010 --out {out}") == 0
    assert "step-000010" in Page(out).text


def test_a_page_does_not_change_the_random_state(tiny_config, pages, tmp_path):
    trainer = start_run(tiny_config, tmp_path / "run", quiet)
    trainer.train()
    trainer.run.page.unlink()
    before = torch.get_rng_state()
    trainer._call("on_end")
    assert trainer.run.page.exists()
    assert torch.equal(before, torch.get_rng_state())


def test_a_page_that_cannot_be_written_does_not_end_a_run(tiny_config, pages, tmp_path, monkeypatch):
    lines = []
    for error, words in ((OSError(28, "No space left on device"), "No space"), (ValueError("x"), "is damaged (x)")):
        monkeypatch.setattr("gpt.run.page.write_page", mock.Mock(side_effect=error))
        trainer = start_run(tiny_config, tmp_path / words, lines.append)
        trainer.train()
        assert trainer.step == 12
        assert [line for line in lines if "index.html was not written" in line and words in line]


def test_other_runs_are_drawn_on_the_same_axes(run, tiny_config, tmp_path):
    other = train(change(tiny_config, model_emb_dim=64), tmp_path / "wide").run
    page = Page(write_page(run.path, [str(other.path), str(run.path), str(other.path)]))
    assert [each["name"] for each in page.data["curves"]["runs"]] == ["run", "wide"]
    losses = [float(row["val_loss"]) for row in rows_of(other) if row["val_loss"]]
    assert [x for x in page.data["curves"]["runs"][1]["columns"]["val_loss"] if x] == pytest.approx(losses, rel=1e-5)
    assert "Runs compared" in page.headings
    assert "has the lowest validation loss, by" in page.text
    assert page.data["curves"]["charts"][0]["title"] == "loss"
    data = prepare_data(corpus_of(tmp_path / "in", "green bottles " * 300), "bpe:262", tmp_path / "data")
    pairs = train(change(tiny_config, data=DataConfig(str(data.folder))), tmp_path / "pairs").run
    page = Page(write_page(run.path, [str(pairs.path)]))
    assert "The tokenizers differ, so losses per token are not comparable" in page.text
    assert page.data["curves"]["charts"][0]["title"] == "bits per byte"
    shutil.copy(run.config_file, tmp_path / "config.toml")
    other.metrics.write_text(other.metrics.read_text().splitlines()[0] + "\n")
    assert "has no validation loss yet" in Page(write_page(run.path, [str(other.path)])).text


@pytest.mark.parametrize(
    "missing", ["checkpoints", "data", "metrics.csv", "rows", "samples.txt", "a whole row", "model"]
)
def test_what_is_missing_is_said_and_the_rest_is_shown(run, prepared, tmp_path, missing):
    data = shutil.copytree(prepared.folder, tmp_path / "data")
    run.config_file.write_text(run.config_file.read_text().replace(str(prepared.folder), str(data)))
    if missing == "checkpoints":
        shutil.rmtree(run.checkpoints)
    elif missing == "data":
        shutil.rmtree(data)
    elif missing == "rows":
        run.metrics.write_text(run.metrics.read_text().splitlines()[0] + "\n")
    elif missing == "a whole row":
        run.metrics.write_text(run.metrics.read_text() + "13,e")
    elif missing == "model":
        (run.find("best") / "model.safetensors").write_bytes(b"")
    else:
        (run.path / missing).unlink()
    words = {
        "checkpoints": "There is no checkpoint", "data": "No prepared data in", "metrics.csv": "is missing or damaged",
        "rows": "no row yet", "a whole row": "is missing or damaged", "model": "model.safetensors is damaged",
    }  # fmt: skip
    page = Page(write_page(run.path))
    assert words.get(missing, "") in "".join(page.notes)
    has_curves = missing not in ("metrics.csv", "rows", "a whole row")
    assert ("Curves" in page.headings) == has_curves
    assert ("Attention" in page.headings) == (missing not in ("checkpoints", "data", "model"))
    assert ("Samples" in page.headings) == (missing != "samples.txt")
    assert "optim.lr" in page.text


@pytest.mark.parametrize("kind", ["lstm", "prefix"])
def test_a_model_without_attention_to_show_has_the_rest(kind, tiny_config, tmp_path):
    config = change(tiny_config, model_backbone="lstm") if kind == "lstm" else tiny_config
    run = train(config, tmp_path / "run").run
    if kind == "prefix":
        model = dataclasses.replace(GPTConfig(), drop_rate=0.0)
        adapted = change(tiny_config, init_from=str(run.path), model=model, adapter=AdapterConfig("prefix", length=2))
        run = train(adapted, tmp_path / "adapted").run
    page = Page(write_page(run.path))
    assert "Attention is left out: " in "".join(page.notes)
    assert {"Validation text by surprise", "Calibration"} <= {*page.headings}
    assert "Attention" not in page.headings


def test_a_large_model_is_not_loaded_a_second_time(run):
    page = Page(write_page(run.path, max_parameters=1000))
    n_parameters = load_model(run)[0].num_parameters()
    assert f"The model has {n_parameters:,} parameters: scripts/report.py looks inside" in page.notes
    assert {"Curves", "Samples"} <= {*page.headings}
    assert "Attention" not in page.headings


def test_a_long_run_of_a_deep_model_has_a_small_page(run, monkeypatch):
    header, *lines = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join([header, *(lines * 20_000)[:50_000]]) + "\n")
    run.samples.write_text("".join(f"--- step {n} ---\n{'long ' * 5000}\n\n" for n in range(300)))
    page = Page(write_page(run.path))
    assert len(page.source.encode()) < 2_000_000
    assert len(page.data["curves"]["runs"][0]["columns"]["step"]) <= page_data.MAX_ROWS
    assert [page.data["samples"][i]["step"] for i in (0, -1)] == [0, 299]
    monkeypatch.setattr(page_inside, "MAX_WEIGHTS", 2 * 4 * 9)
    assert len(Page(write_page(run.path)).data["attention"]["tokens"]) == 3


def test_thinned_rows_keep_the_ends_and_the_evaluations():
    losses = [1.0 if i % 100 == 50 else math.nan for i in range(1000)]
    metrics = {"step": [*map(float, range(1000))], "val_loss": losses}
    found = thin(metrics, 60)
    assert 40 <= len(found["step"]) <= 60
    assert {0, 999, *range(50, 1000, 100)} <= {*found["step"]}
    assert thin(metrics, 1000) is metrics
    assert thin({}, 5) == {}


def test_each_column_of_an_objective_has_a_chart():
    columns = {
        "step": [1.0, 2.0],
        "train_loss": [1.0, 2.0],
        "reward": [0.5, 0.6],
        "judge_s": [1.0, 2.0],
        "val_reward": [math.nan, 0.7],
    }
    found = {chart["title"]: chart["columns"] for chart in charts([columns | {"lr": [math.nan] * 2}], None, None)}
    assert found == {"loss": ["train_loss"], "reward": ["reward", "val_reward"], "time, judge": ["judge_s"]}


def test_packed_text_runs_across_documents_and_each_token_is_predicted_once(prepared, tiny_config):
    texts = [*validation_texts(tiny_config, prepared)]
    assert {len(text) for text in texts[:-1]} == {17}
    joined = np.concatenate([texts[0], *(text[1:] for text in texts[1:])])
    assert joined.tolist() == prepared.val.tokens.tolist()


@pytest.mark.parametrize(("options", "words"), [
    ("--run none", "unknown run 'none'"),
    ("--run RUN --compare none", "unknown run 'none'"),
    ("--run RUN --checkpoint step-9", "no checkpoint 'step-9' in"),
    ("--run RUN --out RUN/checkpoints", "Is a directory"),
    ("--run RUN --steps 3", "--steps"),
])  # fmt: skip
def test_a_mistake_is_one_line(run, options, words, capsys):
    assert run_script(f"report {options.replace('RUN', str(run.path))}") == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_the_plotting_library_comes_with_its_licence(run):
    text = render.__globals__["asset"]("uPlot.LICENSE")
    assert "MIT License" in text
    assert "Leon Sorokin" in Page(write_page(run.path)).text
