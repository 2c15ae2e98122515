"""Post-training in equal time: the clock, the deadline, the tales that are trained on, and the tables by hand."""

import dataclasses
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))  # as python benchmarks/post_training.py does

import countdown  # noqa: E402
import equal_time  # noqa: E402
import post_training  # noqa: E402
from equal_time import Deadline, Results, Run  # noqa: E402

from gpt.config import TrainConfig, load_config  # noqa: E402
from gpt.objectives.dpo import PreferenceExamples  # noqa: E402
from gpt.optim import learning_rate  # noqa: E402
from gpt.run.training import start_run  # noqa: E402
from gpt.text import tales  # noqa: E402
from gpt.text.prepare import prepare_data  # noqa: E402
from gpt.text.sources import open_corpus  # noqa: E402
from gpt.token_files import load_data  # noqa: E402


class FakeClock:
    """The clocks of `time`, that a test moves; the wall's is slower by other programs."""

    now = 100.0

    def process_time(self):
        return self.now

    def perf_counter(self):
        return 4 * self.now


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(equal_time, "time", clock)
    return clock


def test_a_run_ends_at_its_deadline_and_its_learning_rate_with_it(tiny_config, tmp_path, clock):
    """Each step takes a second of ten: step k, counted from 0, is a tenth further down the cosine."""
    run, rates = Run(0, 10.0, tmp_path, None), []
    optim = dataclasses.replace(tiny_config.optim, warmup_steps=0)
    config = dataclasses.replace(tiny_config, optim=optim, log_every=1, eval_every=0, save_every=0, max_steps=500)
    trainer = start_run(config, tmp_path / "run", lambda line: None)
    step = trainer._train_step

    def timed_step():
        step()
        clock.now += 1.0
        rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer._train_step, trainer.callbacks = timed_step, [Deadline(run, 10.0)]
    trainer.train()
    assert trainer.step == len(rates) == 10
    assert trainer.run.steps() == ["step-000010"], "the end is saved"
    expected = [learning_rate(k, dataclasses.replace(optim, decay_steps=10), 10) for k in range(1, 8)]
    assert rates[1:8] == pytest.approx(expected), "the first step does not know its time yet"


def test_the_clock_stands_while_a_curve_is_measured(tmp_path, clock):
    def figures(model):
        clock.now += 1000
        return [0.5, 70.0]

    run = Run(0, 60.0, tmp_path, figures)
    for _ in range(25):
        run.measure(None)
        clock.now += 1
    assert run.elapsed == 25
    assert [point[0] for point in run.curve] == [0, 10, 20]
    assert run.curve[0][1:] == [0.5, 70.0]


def test_sampling_and_judging_are_parts_of_the_time(tmp_path, clock):
    run = Run(0, 60.0, tmp_path, None)
    assert run.seconds_by_part() == {}, "nothing was trained"
    run.parts, run.steps = {"sample_s": 3.0, "judge_s": 1.0}, 2
    clock.now += 10
    assert run.seconds_by_part() == {"sample_s": 3.0, "judge_s": 1.0, "train_s": 6.0}


def test_a_run_on_one_thread_counts_its_own_time(tmp_path, clock, monkeypatch):
    """Two seconds of sampling by the wall are half a second of the run."""

    class Trainer:
        objective = type("Objective", (), {"training_metrics": ("reward", "sample_s", "judge_s", "train_s")})
        sums = (0.0, 0.0, 1.0, 2.0, 0.4, 1.6)

    run = Run(0, 60.0, tmp_path, None)
    deadline, run.steps = Deadline(run, 60.0), 1
    clock.now += 1
    deadline.on_log(Trainer, None)
    assert run.elapsed == 1
    assert run.seconds_by_part() == {"sample_s": 0.5, "judge_s": 0.1, "train_s": 0.4}
    monkeypatch.setattr(equal_time.torch, "get_num_threads", lambda: 2)
    run = Run(0, 60.0, tmp_path, None)
    clock.now += 1
    assert run.elapsed == 4


def test_preferences_are_read_as_they_were_sampled(tmp_path):
    data = prepare_data(open_corpus("tales:12"), "bpe:700", tmp_path / "data", 0.2)
    eot = data.tokenizer.eot_id
    documents = [data.tokenizer.encode(text) for text in tales.generate(6, seed=5)]
    pairs = [(documents[i], documents[i + 1][:-3]) for i in (0, 2, 4)]
    post_training.write_preferences(tmp_path / "judged", data.tokenizer, pairs)
    judged = load_data(tmp_path / "judged", verify=True)
    assert judged.preferences
    for split, part in ((judged.train, pairs[:2]), (judged.val, pairs[2:])):
        examples = PreferenceExamples(split, 900)
        assert len(examples) == len(part)
        for index, pair in enumerate(part):
            for side, ids in enumerate(pair):
                found, counted = examples.conversation(2 * index + side)
                assert found.tolist() == [eot, *ids, eot]
                assert counted.tolist() == [False] + [True] * (len(ids) + 1), "the prompt is the first token alone"


def test_a_round_trains_on_each_accepted_tale_once(tmp_path, tiny_config):
    data = prepare_data(open_corpus("tales:12"), "bpe:700", tmp_path / "data", 0.2)
    accepted = [data.tokenizer.encode(text) for text in tales.generate(9, seed=5)]

    class Source:
        seed, tokenizer = 1, data.tokenizer
        setting = post_training.Setting("", "", "", round=20)

        def sample(self, model, seed):
            seeds.append(seed)
            return accepted, []

    class Reader:
        objective = type("Objective", (), {"model": None})
        config = dataclasses.replace(
            tiny_config, batch_size=4, model=dataclasses.replace(tiny_config.model, context_length=900)
        )
        step, finished = 0, False

    trainer, read, seeds = Reader(), [], []
    rounds = post_training.Rounds(Source())
    for trainer.step in range(5):
        rounds.on_step_end(trainer)
        for i in trainer.sampler.step(trainer.step):
            read.append(trainer.examples[i][1][:-1].tolist())
    assert len(seeds) == len(set(seeds)) == 3, "nine tales are two batches of four: steps 0, 2 and 4"
    assert sorted(read[:8]) == sorted(accepted[:8])
    accepted[4:] = []
    del accepted[3:]
    trainer.step = 6
    with pytest.raises(ValueError, match="3 of 20 sampled tales are right: too few to train on"):
        rounds.on_step_end(trainer)


def test_methods_differ_in_what_they_name():
    """Settings of grpo_tales.toml that a method does not name are those of the recipe."""
    found = {}

    class Recorder:
        seconds, setting = 1.0, post_training.Setting("base", "data", "fresh")

        def post_train(self, config, changed, *arguments, **options):
            found[config] = changed
            return Path(config)

    for method, names in {
        "grpo, by kind, KL, up to the error": set(),
        "grpo, by kind": {"objective.credit", "objective.beta", "objective.baseline"},
    }.items():
        post_training.METHODS[method](Recorder())
        recipe = load_config(post_training.CONFIGS / "grpo_tales.toml")
        changed = post_training.with_settings(post_training.CONFIGS / "grpo_tales.toml", found["grpo_tales"])
        kept = dataclasses.replace(changed.objective, credit="error", beta=recipe.objective.beta)
        assert kept == recipe.objective
        assert {name for name in found["grpo_tales"] if name.startswith("objective")} - names == {
            "objective.group_size"
        }
    for name in ("supervised", "dpo_tales", "countdown", "grpo_countdown"):
        assert isinstance(load_config(post_training.CONFIGS / f"{name}.toml"), TrainConfig)


# --- measuring --------------------------------------------------------------------------------------------------------


def echo(method, seed, seconds, number):
    return {"method": method, "seed": seed, "seconds": seconds, "number": number, "curve": []}


def test_what_is_known_is_not_measured_again(tmp_path, capsys):
    results = Results(tmp_path / "found")
    results.add(method="a", seed=1, seconds=2.0, number=-1)
    equal_time.measure([(method, 1, 2.0, 7) for method in "ab"], 2, results, echo)
    assert {key[0]: row["number"] for key, row in Results(tmp_path / "found").found.items()} == {"a": -1, "b": 7}
    assert capsys.readouterr().out == "method b, seed 1, seconds 2.0, number 7\n"


def results_of(tmp_path, **figures):
    results = Results(tmp_path / "found")
    for seed in (1, 2):
        row = {name: values[seed - 1] for name, values in figures.items()}
        results.add(method="dpo", seed=seed, seconds=9.0, threads=1, curve=[[0.0, 0.5, 70.0], [4.5, 0.7, 69.0]], **row)
    results.add(method="dpo", seed=1, seconds=5.0, threads=1, curve=[])
    return results


def test_the_table_by_hand(tmp_path):
    results = results_of(
        tmp_path, accepted=(0.8, 0.9), entropy=(70.0, 71.0), three_friends=(0.3, 0.3), excess=(0.01, 0.02),
        steps=(10, 21), sample_s=(3.0, 4.0), judge_s=(0.1, 0.1), train_s=(5.0, 6.0),
    )  # fmt: skip
    header, _, row, exact = post_training.table(results, 9.0)
    assert len(header.split("|")) == len(row.split("|")) == len(exact.split("|"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "dpo", "85.0% ± 7.1%", "70.5 ± 0.7", "30.0% ± 0.0%", "0.0150 ± 0.0071", "4, 0, 6 s", "16",
    ]  # fmt: skip
    assert "| 71.64 | 33.3% |" in exact
    post_training.plot(results, 9.0, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "Each run had 9 seconds of CPU time on 1 thread." in post_training.caption(results, 9.0)


def test_the_countdown_table_by_hand(tmp_path):
    results = Results(tmp_path / "found")
    method = list(countdown.METHODS)[-1]
    for seed, value in enumerate((0.25, 0.35), 1):
        curve = [[0.0, 0.1, 0.4], [5.0, value, 0.6]]
        results.add(method=method, seed=seed, seconds=9.0, pass_1=value, pass_k=0.6, steps=5, threads=1, curve=curve)
    assert countdown.table(results, 9.0)[2:] == [f"| {method} | 30.0% ± 7.1% | 60.0% ± 0.0% | 5 |"]
    countdown.plot(results, 9.0, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_puzzles_are_judged_by_right_answers(monkeypatch):
    """Of two puzzles and four answers each, one and none are right."""
    monkeypatch.setattr(countdown, "K", 2)
    monkeypatch.setattr(countdown, "Prompts", lambda data, split, length: ["first", "second"])
    rewards = [0.0, 1.0, 0.0, 0.0] + [0.0] * 4
    rollouts = [type("Rollout", (), {"reward": reward}) for reward in rewards]
    monkeypatch.setattr(countdown, "sample_rollouts", lambda *arguments: (rollouts, {}))
    stub = type("Stub", (), {"config": TrainConfig().model, "val": None, "tokenizer": None})
    assert countdown.judge(stub, stub, 4, 1) == [0.125, 0.25]  # 1/4 and 0; 3 of 6 pairs and 0


@pytest.mark.parametrize(("module", "name", "table"), [
    (post_training, "post-training", post_training.table),
    (countdown, "countdown", countdown.table),
    (countdown, "options", countdown.table_of_options),
])  # fmt: skip
def test_the_page_shows_the_results(module, name, table):
    page = module.PAGE.read_text(encoding="utf-8")
    lines = table(Results(module.RESULTS), module.SECONDS)
    assert len(lines) > 5
    assert f"<!-- {name} -->\n" + "\n".join(lines) + "\n" in page
    assert f"<!-- end of {name} -->" in page


def test_options_are_compared_on_the_seeds_that_all_have(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    figures = {"seconds": 9.0, "pass_k": 0.5, "kl": 1.0, "length": 8.0, "steps": 3}
    for method in (countdown.GRPO_PLAIN, *countdown.OPTIONS):
        results.add(method=method, seed=1, pass_1=0.25, **figures)
    results.add(method=countdown.GRPO_PLAIN, seed=2, pass_1=0.75, **figures)
    _, _, plain, *options = countdown.table_of_options(results, 9.0)
    assert plain == "| no option | 25.0% | 50.0% | 1.000 | 8.00 | 3 |"
    assert len(options) == len(countdown.OPTIONS)
    results.add(method=countdown.GRPO_PLAIN, seed=3, pass_1=0.75, **figures)
    for method in countdown.OPTIONS:
        results.add(method=method, seed=3, pass_1=0.5, **figures)
    plain, *options = countdown.table_of_options(results, 9.0)[2:]
    assert plain.startswith("| no option | 50.0% ± 35.4% |")
    assert all("| 37.5% ± 17.7% |" in option for option in options)
