"""gpt/objectives/grpo.py: advantages and gradients by hand, and against an enumeration of all that a tiny model can
write; what is sampled; what is refused."""

import itertools
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import corpus_of, pairs_of
from conversations import write_conversations
from runs import quiet, train
from small_objectives import create, create_workspace, short_config

from gpt.checkpoint import RunFolder
from gpt.config import GPTConfig, ObjectiveConfig, OptimConfig
from gpt.exchange.models import resolve_config
from gpt.model import GPTModel
from gpt.objectives.grpo import GRPO, kl_estimate
from gpt.objectives.rewards import Reward, find_reward, friends
from gpt.objectives.rollouts import Prompt, Prompts, Rollout, advantages, judge, sample_rollouts
from gpt.ops.reference import IGNORE_INDEX
from gpt.run.logging import read_metrics
from gpt.run.training import resume_run, start_run
from gpt.text import tales
from gpt.text.prepare import prepare_data
from gpt.token_files import load_data
from gpt.tokenizer import BytePairTokenizer, CharTokenizer

TOKENIZER = CharTokenizer("ab", end_of_text=True)
END = TOKENIZER.eot_id
RIGHT = {"a", "ba", "aab", "bb"}  # completions that are rewarded
N_TOKENS = 4  # of a completion at most, its end included: the context of the tiny model


def is_right(prompt, completion, answer=""):
    return 1.0 if completion in RIGHT else 0.0


def viable(prompt, completion, answer=""):
    return max(n for n in range(len(completion) + 1) if any(text.startswith(completion[:n]) for text in RIGHT))


TOY = Reward("toy", is_right, lambda text: text[:1], viable)


def tiny(seed=0, **settings):
    """A GRPO objective of a model that writes up to N_TOKENS of a, b and end-of-text, in float64."""
    torch.manual_seed(seed)
    config = GPTConfig(TOKENIZER.vocab_size, N_TOKENS, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.2, init="gpt2")
    model, start = GPTModel(config).double(), GPTModel(config).double().eval().requires_grad_(False)
    settings = {"name": "grpo", "reward": "exact_match", "beta": 0.0, **settings}
    objective = GRPO(model, ObjectiveConfig(**settings), start)
    objective.reward = TOY
    return objective


def gradients(objective):
    found = torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None])
    objective.zero_grad(set_to_none=True)
    return found


def rollout(reward, n, kind="", error=None, start=1):
    return Rollout(list(range(start + n)), start, float(reward), kind, start + (n if error is None else error))


# --- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    group = [rollout(1, 3), rollout(0, 2, error=1), rollout(0, 4, error=0), rollout(1, 2)]
    for found, value, n in zip(
        advantages(group, "group", "answer", False), (0.5, -0.5, -0.5, 0.5), (3, 2, 4, 2), strict=True
    ):
        assert found.tolist() == [value] * n
    # half of all are rewarded, two of the three that are right up to the first token, both that are up to the second
    truth = [[1 / 6, 1 / 3, 0], [1 / 6, -2 / 3], [-1 / 2, 0, 0, 0], [1 / 6, 1 / 3]]
    for found, values in zip(advantages(group, "group", "error", False), truth, strict=True):
        assert found.tolist() == pytest.approx(values)
    normalized = advantages(group, "group", "answer", True)
    assert [value[0] for value in normalized] == pytest.approx([1, -1, -1, 1], abs=1e-5)


def test_a_kind_is_compared_with_its_like():
    group = [rollout(1, 1, "two"), rollout(1, 1, "two"), rollout(0, 1, "two"), rollout(0, 1, "three"), rollout(1, 1)]
    found = [float(value[0]) for value in advantages(group, "kind", "answer", False)]
    assert found == pytest.approx([1 / 3, 1 / 3, -2 / 3, 0, 2 / 5]), "the last one has no kind: 3/5 of all are rewarded"


def test_a_group_without_differences_teaches_nothing():
    for credit, normalize, reward in itertools.product(("answer", "error"), (False, True), (0, 1)):
        group = [rollout(reward, n, error=None if reward else 0) for n in (1, 3)]
        assert all((value == 0).all() for value in advantages(group, "group", credit, normalize))


# --- gradients --------------------------------------------------------------------------------------------------------


def batch(objective):
    """Two rows, the first with a prompt of two tokens; the second is shorter."""
    inputs = torch.tensor([[END, 0, 1], [END, 1, 0]])
    targets = torch.tensor([[IGNORE_INDEX, 1, END], [1, END, IGNORE_INDEX]])
    advantage = torch.tensor([[9.0, 0.7, -0.4], [0.3, -1.2, 9.0]], dtype=torch.double)
    with torch.no_grad():
        logits = objective.model.eval()(inputs).log_softmax(-1)
    own = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    ratio = torch.tensor([[1.0, 1.5, 0.9], [0.6, 1.05, 1.0]], dtype=torch.double)  # p now / p when sampled
    return inputs, targets, advantage, own - ratio.log(), ratio


@pytest.mark.parametrize(
    "settings", [{}, {"passes": 2}, {"passes": 2, "clip": 0.2}, {"passes": 2, "clip": 0.2, "beta": 0.3}]
)
def test_gradient_by_hand(settings):
    """d loss / d logits = -weight · (1[target] - p) at each token, so that the head's gradient is a sum over tokens."""
    objective = tiny(**settings)
    inputs, targets, advantage, before, ratio = batch(objective)
    with torch.no_grad():
        start = objective.reference(inputs).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    loss, n = objective.train()(inputs=inputs, targets=targets, advantages=advantage, before=before, start=start)
    loss.backward()
    model = objective.model.eval()
    hidden = model.hidden_states(inputs)  # (B, T, D)
    p = model.out_head(hidden).softmax(-1)
    q = objective.reference(inputs).softmax(-1)
    truth, value = torch.zeros_like(model.out_head.weight), 0.0
    for row, t in (targets != IGNORE_INDEX).nonzero().tolist():
        y, a, r = int(targets[row, t]), float(advantage[row, t]), float(ratio[row, t])
        weight = a * r if settings.get("passes") else a
        if settings.get("clip") and ((a > 0 and r > 1.2) or (a < 0 and r < 0.8)):
            weight = 0.0  # the clipped ratio is the smaller gain, and constant
        weight += settings.get("beta", 0.0) * (float((q / p)[row, t, y].detach()) - 1)  # of r - ln r - 1
        one_hot = torch.eye(TOKENIZER.vocab_size, dtype=torch.double)[y]
        truth -= weight * torch.outer(one_hot - p[row, t], hidden[row, t])
        value -= math.log(float(p[row, t, y].detach()))
    assert int(n) == 4
    assert loss.item() == pytest.approx(value)
    torch.testing.assert_close(model.out_head.weight.grad, truth.detach())


def test_kl_estimate_is_the_divergence_on_average():
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), torch.tensor([0.25, 0.25, 0.3, 0.2]).double()
    estimate = kl_estimate(p.log(), q.log())
    assert (estimate >= 0).all()
    assert float((p * estimate).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def completions():
    """Every completion that the tiny model can write, with the ids that the model is to predict."""
    for n in range(N_TOKENS + 1):
        for text in itertools.product("ab", repeat=n):
            ids = [TOKENIZER.encode(c)[0] for c in text]
            if n < N_TOKENS:
                yield "".join(text), [*ids, END]
            else:
                yield None, ids  # not ended: no reward


def log_probabilities(model, ids):
    """ln p of each token that the model writes after end-of-text."""
    logits = model(torch.tensor([[END, *ids[:-1]]])).log_softmax(-1)[0]
    return logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]


def expected_reward(model):
    """The exact expectation over all completions."""
    found = [(text in RIGHT, log_probabilities(model, ids).sum().exp()) for text, ids in completions()]
    assert sum(float(p.detach()) for _, p in found) == pytest.approx(1)
    return sum(p for is_right, p in found if is_right)


def expected_gain(model):
    """The expectation of the sum of (V after - V before) · ln p over tokens, whose gradient "error" follows: V is the
    exact share of right completions among those without an error up to this length, and 0 after an error."""
    found = []
    for text, ids in completions():
        log_p = log_probabilities(model, ids)
        error = len(ids) if text in RIGHT else viable("", (text if text is not None else TOKENIZER.decode(ids)))
        found.append((text in RIGHT, error, log_p, float(log_p.detach().sum().exp())))

    def value(t):
        alive = [(is_right, p) for is_right, error, _, p in found if error >= t]
        return sum(p for is_right, p in alive if is_right) / sum(p for _, p in alive)

    total = 0.0
    for is_right, error, log_p, p in found:
        for t in range(min(error + 1, len(log_p))):
            after = 0.0 if t == error else 1.0 if is_right and t == len(log_p) - 1 else value(t + 1)
            total = total + p * (after - value(t)) * log_p[t]
    return total


@pytest.mark.parametrize(("credit", "expectation"), [("answer", expected_reward), ("error", expected_gain)])
def test_the_gradient_is_that_of_an_enumeration_of_all_completions(credit, expectation):
    """Within four standard errors."""
    size, n_groups = 256, 60
    objective = tiny(credit=credit, group_size=size)
    value = expectation(objective.model.eval())
    value.backward()
    # a group's own mean takes away 1 / size of the gradient: each completion is compared with itself, too
    truth = -gradients(objective) * (1 - 1 / size)
    found = []
    for seed in range(n_groups):
        group, _ = sample_rollouts(objective.model, TOKENIZER, [Prompt([END], "", END)], size, [seed], TOY)
        inputs, targets, advantage = objective._rows(group)[:3]
        objective(inputs.long(), targets.long(), advantage.double(), *torch.zeros(2, 0))[0].backward()
        found.append(gradients(objective) / size)
    found = torch.stack(found)
    error = found.std(0) / n_groups**0.5
    # of the completions without an error, fewer than `size`, their own mean takes away more: of a third 3 / size
    slack = truth.abs() * 3 / size if credit == "error" else 0
    assert ((found.mean(0) - truth).abs() <= 4 * error + slack + 1e-12).all()
    assert (truth.abs() > 8 * error).any(), "the samples tell the gradient from none"


# --- what is sampled --------------------------------------------------------------------------------------------------


def test_completions_depend_on_their_own_seed_alone():
    objective = tiny()
    prompts = [Prompt([END], "", END), Prompt([END, 0], "", END), Prompt([END, 1, 0], "", END)]
    alone = [
        sample_rollouts(objective.model, TOKENIZER, [prompt], 5, [seed], TOY)[0] for seed, prompt in enumerate(prompts)
    ]
    together, seconds = sample_rollouts(objective.model, TOKENIZER, prompts, 5, range(3), TOY)
    assert together == list(itertools.chain(*alone))
    assert min(seconds.values()) > 0


def test_a_completion_is_judged_by_its_text_and_ends_where_the_context_does():
    objective = tiny()
    found, _ = sample_rollouts(objective.model, TOKENIZER, [Prompt([END], "", END)], 300, [0], TOY)
    texts = {TOKENIZER.decode(r.ids[1:]).removesuffix("<|endoftext|>"): r for r in found}
    assert set(texts) > RIGHT | {""}
    for text, r in texts.items():
        ended = r.ids[-1] == END and len(r.ids) > 1
        assert ended or len(text) == N_TOKENS
        assert r.reward == (ended and text in RIGHT)
        assert r.kind == text[:1]
        right = len(r.ids)  # without an error
        assert r.error == (right if r.reward else 1 + viable("", text))
    assert max(len(r.ids) for r in found) == N_TOKENS + 1


def test_prompts_of_tales_pairs_and_conversations(tmp_path):
    tokenizer = CharTokenizer("abc ?.", end_of_text=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    pairs = prepare_data(
        pairs_of(tmp_path / "p", [("a b?", " c."), ("b?", "a")] * 5),
        str(tmp_path / "tokenizer.json"),
        tmp_path / "pairs",
        0.2,
    )
    prompts = Prompts(pairs, pairs.train, 32)
    assert len(prompts) == 8
    assert prompts[1] == Prompt([tokenizer.eot_id, *tokenizer.encode("b?")], "a", tokenizer.eot_id, 2)
    texts = prepare_data(
        corpus_of(tmp_path / "t", *["abc"] * 10), str(tmp_path / "tokenizer.json"), tmp_path / "texts", 0.2
    )
    assert [Prompts(texts, texts.train, 32)[i] for i in range(2)] == [
        Prompt([tokenizer.eot_id], "", tokenizer.eot_id, n) for n in (1, 2)
    ]
    talk = [("a", False), ("b", True), ("c?", False), ("a.", True)]
    talks = write_conversations(tmp_path / "talks", tokenizer, [talk, talk[:2]], [talk])
    whole = Prompts(talks, talks.train, 32)[0]
    assert tokenizer.decode(whole.ids).endswith("c?")
    assert (whole.answer, whole.stop_id) == ("a", tokenizer.encode(".")[0])


def test_tales_are_judged_by_their_grammar(tmp_path):
    """The first wrong token is the one in which the grammar stops: here the word after a tale was cut short."""
    tale = tales.generate(1, seed=5)[0]
    words = BytePairTokenizer.from_merges([])
    ids = words.encode(tale)
    reward = find_reward("tales")
    right = judge(Prompt([words.eot_id], "", words.eot_id), ids, True, 2000, words, reward)
    assert (right.reward, right.error, right.kind) == (1.0, len(ids) + 2, friends(tale))
    cut = judge(Prompt([words.eot_id], "", words.eot_id), ids[:50], True, 2000, words, reward)
    assert (cut.reward, cut.error) == (0.0, 1 + 50), "the end is the error"
    wrong = [*ids[:70], *words.encode("#"), *ids[71:]]
    assert judge(Prompt([words.eot_id], "", words.eot_id), wrong, True, 2000, words, reward).error == 1 + 70


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


def test_a_reward_is_learned(workspace, tmp_path):
    """Completions get more of the letter that is rewarded, and the log says so."""
    config = short_config(
        "grpo", workspace, max_steps=30, batch_size=4, grad_accum_steps=1, log_every=1, eval_every=0, sample_every=0
    )
    own = replace(config.objective, group_size=16, passes=1, clip=0.0, beta=0.0)
    trainer = train(replace(config, objective=own, optim=OptimConfig(lr=1e-2, warmup_steps=0)), tmp_path / "run")
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert np.mean(columns["reward"][-5:]) > 1.5 * np.mean(columns["reward"][:5])
    for name in ("length", "sample_s", "judge_s", "train_s"):
        assert min(columns[name]) > 0, name
    assert 0 <= min(columns["no_signal"]) <= max(columns["no_signal"]) <= 1
    evaluation = trainer.evaluation
    assert evaluation.metrics["val_kl"] > 0
    assert evaluation.metrics["val_entropy"] > 0
    assert RunFolder(tmp_path / "run").find("best") == RunFolder(tmp_path / "run").find("last")


def test_several_passes_use_the_same_completions(workspace):
    objective, config, data = create("grpo", workspace)
    examples = objective.examples(config, data, data.train)
    first, second, third = (objective.batch(examples, [2, 0], (3, step)) for step in (0, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["inputs"], third["inputs"])
    with torch.no_grad():
        now = objective.log_probabilities(objective.model, first["inputs"], first["targets"])
    torch.testing.assert_close(first["before"][first["targets"] != IGNORE_INDEX], now)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": ""}, "objective.reward is empty: name a rule, such as 'tales'"),
        ({"reward": "tale"}, "no reward 'tale': it is tales, exact_match, "),
        ({"reward": "nowhere:f"}, "the reward 'nowhere:f' cannot be found: ModuleNotFoundError"),
        ({"credit": "error"}, "the reward 'small_objectives:count_e' does not say where an error is"),
        ({"baseline": "kind"}, "the reward 'small_objectives:count_e' knows no kinds"),
        ({"label_smoothing": 0.1}, "objective.label_smoothing is 0.1, but grpo has no labels"),
    ],
)
def test_settings_that_do_not_fit_are_refused(workspace, change, message):
    config = short_config("grpo", workspace)
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_config(replace(config, objective=replace(config.objective, **change)), load_data(config.data.path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_from": ""}, "init_from is empty"),
        ({"parallel": "fsdp"}, "parallel is 'fsdp', but grpo samples from a whole model"),
        ({"data": "packed"}, "data.packing is 'packed', but grpo reads prompts"),
    ],
)
def test_runs_that_cannot_sample_are_refused(workspace, change, message):
    config = short_config("grpo", workspace)
    if "data" in change:
        change = {"data": replace(config.data, packing="packed")}
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_config(replace(config, **change), load_data(config.data.path))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *texts: 1 / 0, "the reward 'mine' raised ZeroDivisionError (division by zero) for the completion"),
        (lambda *texts: math.nan, "the reward 'mine' returned nan, which is no finite number, for the completion"),
        (lambda *texts: "good", "the reward 'mine' returned 'good', which is no finite number, for the completion"),
    ],
)
def test_a_reward_that_fails_names_the_prompt_and_loses_nothing(workspace, tmp_path, function, message):
    trainer = start_run(short_config("grpo", workspace, save_every=2), tmp_path / "run", quiet)
    calls = []

    def reward(*texts):
        calls.append(texts)
        return function(*texts) if len(calls) > 30 else 1.0

    trainer.objective.reward = Reward("mine", reward)
    with pytest.raises(ValueError, match=re.escape(message) + ".* of prompt [0-9]+$"):
        trainer.train()
    assert RunFolder(tmp_path / "run").steps() == ["step-000002"]


def test_a_run_whose_start_has_changed_is_not_resumed(workspace, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(workspace / "runs" / "teacher", source)
    config = short_config("grpo", workspace, init_from=str(source), max_steps=2)
    train(config, tmp_path / "run")
    resume_run(tmp_path / "run", log=quiet)
    shutil.rmtree(source)
    train(short_config("next_token", workspace, max_steps=2, seed=8, model_n_layers=2), source)
    with pytest.raises(ValueError, match="from which this run started and to which grpo compares it, has changed"):
        resume_run(tmp_path / "run", log=quiet)
