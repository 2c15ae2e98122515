"""BERT's masking, inputs and losses, by hand and by counting."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import GPT2_BLOCK, MODERN_BLOCK
from conftest import corpus_of
from numerics import tolerance

from gpt.config import DataConfig, GPTConfig, ObjectiveConfig, TrainConfig
from gpt.model import GPTModel
from gpt.objectives.masked import Masked, mask_tokens
from gpt.objectives.spans import SpanExamples, encode_masked_prompt
from gpt.text.prepare import prepare_data
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import EOT, CharTokenizer, with_special_tokens

X = -100
TWO_BLOCKS = pytest.mark.parametrize("block", [GPT2_BLOCK, MODERN_BLOCK], ids=["gpt2", "modern"])
ROUNDING = tolerance(24 * 64)  # a loss is made by two dozen sums of at most 64 products


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    texts = [f"{n} green bottles hang on the wall and {n % 3} fall{'s' * (n % 4)}" for n in range(40)]
    return Masked.transform(prepare_data(corpus_of(folder / "texts", *texts), "char", folder / "data"))


def config_of(data, block=GPT2_BLOCK, **objective):
    return TrainConfig(
        model=GPTConfig(data.tokenizer.vocab_size, 64, 16, 2, 2, 0.0, init="gpt2", **block),
        data=DataConfig(path=str(data.folder), packing="document"),
        objective=ObjectiveConfig("masked", **objective),
    )


def masked(data, block=GPT2_BLOCK, **objective):
    config = config_of(data, block, **objective)
    return config, Masked(GPTModel(config.model), config.objective).double().eval()


def test_special_tokens_follow_the_vocabulary(data):
    plain = data.tokenizer.base_vocab_size
    assert data.tokenizer.special_tokens == {EOT: plain - 1, "[CLS]": plain, "[SEP]": plain + 1, "[MASK]": plain + 2}
    assert data.tokenizer.vocab_size == plain + 3


def test_shares_of_masked_random_and_kept_tokens():
    """15% are targets, exactly; of these 80% are masked, 10% another token (which may be the same), 10% themselves."""
    text = np.arange(200) % 50
    fates = np.zeros(3)
    for seed in range(400):
        inputs, targets = mask_tokens(text, 0.15, 50, 50, np.random.default_rng(seed))
        chosen = targets != X
        assert chosen.sum() == 30
        assert (targets[chosen] == text[chosen]).all()
        assert (inputs[~chosen] == text[~chosen]).all()
        assert inputs.max() <= 50 and (inputs[text == inputs] < 50).all()
        same = inputs[chosen] == text[chosen]
        fates += [(inputs[chosen] == 50).sum(), (~same & (inputs[chosen] < 50)).sum(), same.sum()]
    expected = np.array([0.8, 0.1 * 49 / 50, 0.1 + 0.1 / 50])  # one in fifty of the random ones is the true one
    spread = 5 * np.sqrt(expected * (1 - expected) / 12_000)
    assert (abs(fates / 12_000 - expected) < spread).all()


@pytest.mark.parametrize(("n", "chosen"), [(1, 1), (2, 1), (3, 1), (10, 2), (100, 15)])
def test_at_least_one_token_is_chosen(n, chosen):
    _, targets = mask_tokens(np.zeros(n, int), 0.15, 5, 5, np.random.default_rng(0))
    assert (targets != X).sum() == chosen


def test_input_is_cls_first_half_sep_second_half_sep(data):
    """[CLS] A [SEP] B [SEP]: B goes on where A ends, or is another document's; segments; nothing special counts."""
    config, objective = masked(data)
    examples = objective.examples(config, data, data.train)
    special = data.tokenizer.special_tokens
    texts = ["".join(map(str, examples.text(i).tolist())) for i in range(len(examples))]
    verdicts = []
    for index in range(len(examples)):
        batch = objective.batch(examples, [index], (3, 1))
        inputs, targets, segments = (batch[name][0] for name in ("inputs", "targets", "segments"))
        ends = (inputs == special["[SEP]"]).nonzero().flatten().tolist()
        assert inputs[0] == special["[CLS]"] and len(ends) == 2 and ends[1] == len(inputs) - 1 == batch["lengths"] - 1
        assert segments.tolist() == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
        assert all(targets[place] == X for place in (0, *ends))
        true = torch.where(targets == X, inputs, targets)
        first, second = true[1 : ends[0]].tolist(), true[ends[0] + 1 : -1].tolist()
        assert len(first) and len(second) and (targets != X).sum() == max(1, round(0.15 * (len(first) + len(second))))
        own, verdict = examples.text(index).tolist(), int(batch["is_next"])
        assert own[: len(first)] == first
        assert 0.25 * len(own) - 1 <= len(first) <= 0.75 * len(own) + 1
        if verdict:
            assert own[len(first) :] == second
        else:
            joined = "".join(map(str, second))
            assert any(joined in text for i, text in enumerate(texts) if i != index)
        verdicts.append(verdict)
    assert 0.3 < np.mean(verdicts) < 0.7


@TWO_BLOCKS
def test_loss_by_hand(data, block):
    """Both losses from the plain logits of every token; their sum per token chosen, a pair's verdict weighing as much
    as its tokens."""
    config, objective = masked(data, block)
    examples = objective.examples(config, data, data.train)
    batch = objective.batch(examples, [0, 5, 7], (1,))
    total, tokens, sentences = 0, 0, 0
    for row in range(3):
        n = int(batch["lengths"][row])
        inputs, targets, segments = (batch[name][row, :n] for name in ("inputs", "targets", "segments"))
        x, rotation = objective.model.pos_emb.encode(objective.model.tok_emb(inputs), torch.arange(n))
        x = (x + objective.segment_emb(segments))[None]
        for layer in objective.model.trf_blocks:
            x = layer(x, "full", rotation=rotation)
        hidden = objective.model.final_norm(x)[0]
        lost = F.cross_entropy(hidden @ objective.model.out_head.weight.T, targets, reduction="sum", ignore_index=X)
        verdict = F.cross_entropy(objective.sentence_head(hidden[0]), batch["is_next"][row])
        total, tokens, sentences = total + lost, tokens + int((targets != X).sum()), sentences + verdict
        total = total + int((targets != X).sum()) * verdict
    loss, counted = objective(**batch)
    assert counted == tokens
    torch.testing.assert_close(loss, total, rtol=ROUNDING, atol=0)
    measured = objective.eval_batch(**batch)
    torch.testing.assert_close(measured["loss"][0], total, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(measured["val_sentence_loss"][0], sentences, rtol=ROUNDING, atol=0)
    assert measured["val_sentence_loss"][1] == 3


@TWO_BLOCKS
def test_rows_of_a_batch_are_independent(data, block):
    """Padding changes no loss, and no row what is drawn for another."""
    for next_sentence in (True, False):
        config, objective = masked(data, block, next_sentence=next_sentence)
        examples = objective.examples(config, data, data.train)
        indices = [0, 3, 9]  # of unequal lengths
        together = objective(**objective.batch(examples, indices, (2, 2)))
        alone = [objective(**objective.batch(examples, [index], (2, 2))) for index in indices]
        torch.testing.assert_close(together[0], sum(loss for loss, _ in alone), rtol=ROUNDING, atol=0)
        assert together[1] == sum(counted for _, counted in alone)
        other = objective.batch(examples, indices, (2, 3))
        assert not torch.equal(other["inputs"][:, :9], objective.batch(examples, indices, (2, 2))["inputs"][:, :9])


@TWO_BLOCKS
def test_hidden_states_see_both_sides(data, block):
    _, objective = masked(data, block, next_sentence=False)
    ids = data.tokenizer.special_tokens
    text = torch.tensor([[ids["[CLS]"], 3, ids["[MASK]"], 4, 5, ids["[SEP]"]]])
    lengths = torch.tensor([6])
    before = objective.hidden_states(text, lengths)[0, 2]
    for place in (1, 4):
        changed = text.clone()
        changed[0, place] = 7
        assert not torch.allclose(objective.hidden_states(changed, lengths)[0, 2], before)


def test_without_next_sentence_there_is_one_loss(data):
    config, objective = masked(data, next_sentence=False)
    assert objective.metrics == ("val_masked_accuracy",)
    assert not any("sentence" in name or "segment" in name for name, _ in objective.named_parameters())
    batch = objective.batch(objective.examples(config, data, data.val), [0], (0,))
    assert set(batch) == {"inputs", "targets", "lengths"}
    assert (batch["inputs"] == data.tokenizer.special_tokens["[SEP]"]).sum() == 1
    assert objective.trivial_losses(config, data)["uniform"] == pytest.approx(math.log(data.tokenizer.base_vocab_size))


def test_generation_fills_only_the_masks(data):
    for next_sentence in (True, False):
        _, objective = masked(data, next_sentence=next_sentence)
        prompt = "1 gr[MASK][MASK]n bottles"
        (written,) = objective.generate_text(prompt, data.tokenizer, True)
        assert len(written) == len("1 green bottles") and written[:4] == "1 gr" and written[6:] == "n bottles"
        with pytest.raises(ValueError, match=r"write \[MASK\] into the prompt"):
            list(objective.generate_text("green", data.tokenizer, True))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_shortest_texts(tmp_path, length):
    """Of one token nothing can be cut in two: it is left out, and a text of nothing else is refused."""
    data = prepare_data(corpus_of(tmp_path / "texts", *["abcd"[:length]] * 12), "char", tmp_path / "data")
    data = Masked.transform(data)
    config, objective = masked(data)
    if length == 1:
        with pytest.raises(ValueError, match="no text of at least two tokens"):
            objective.examples(config, data, data.train)
        return
    examples = objective.examples(config, data, data.train)
    for index in range(len(examples)):
        loss, counted = objective(**objective.batch(examples, [index], (0,)))
        assert torch.isfinite(loss) and counted == 1


def test_long_texts_are_cut_and_each_token_read_once(data):
    config, objective = masked(data)
    short = TrainConfig(
        model=GPTConfig(data.tokenizer.vocab_size, 13, 16, 2, 1, 0.0), data=config.data, objective=config.objective
    )
    examples = objective.examples(short, data, data.train)
    read = [i for index in range(len(examples)) for i in examples.text(index).tolist()]
    whole = [i for i in data.train.tokens.tolist() if i != data.tokenizer.eot_id]
    alone = [len(text) % 10 == 1 for text in (data.tokenizer.encode(t) for t in data.documents(data.train))]
    assert len(whole) - len(read) == sum(alone)  # a stretch of a single token has nothing to be masked
    assert max(len(examples.text(i)) for i in range(len(examples))) == 10
    assert all(objective.batch(examples, [i], (0,))["inputs"].size(1) <= 13 for i in range(len(examples)))


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_training_spans_start_every_stride_tokens_and_those_of_evaluation_do_not_overlap(data, packing):
    config = TrainConfig(data=DataConfig(str(data.folder), packing, stride=4))
    train, val = (SpanExamples(config, data, split, 10).spans for split in (data.train, data.val))
    within = train[1:, 0] - train[:-1, 0] == 4
    assert (train[1:][within][:, 0] < train[:-1][within][:, 1]).all()
    assert within.sum() > len(train) / 2
    assert {int(end - start) for start, end in train[:-1][within]} == {10}
    assert (val[1:, 0] >= val[:-1, 1]).all()


def test_space_before_a_mask_belongs_to_the_missing_word():
    tokenizer = with_special_tokens(get_tokenizer("gpt2"), ["[MASK]"])
    mask = tokenizer.special_tokens["[MASK]"]
    words = [tokenizer.encode(word)[0] for word in ("a", " cat")]
    assert encode_masked_prompt("a [MASK] cat", tokenizer, "[MASK]") == [words[0], mask, words[1]]
    plain = with_special_tokens(CharTokenizer("a "), ["[MASK]"])
    assert encode_masked_prompt("a [MASK]", plain, "[MASK]") == [1, 0, 2]
