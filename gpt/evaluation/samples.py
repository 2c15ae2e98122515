"""Texts that a model generates: tales checked by their grammar, continuations compared with the true text."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gpt.checkpoint import RunFolder
from gpt.data import document_spans, padded_batch
from gpt.evaluation.baselines import tales_entropy_floor
from gpt.evaluation.metrics import Bleu, PrecisionRecallF1, corpus_bleu, rouge_l, rouge_n
from gpt.exchange.models import load_objective, run_data
from gpt.generation import generate
from gpt.loss import evaluation_mode
from gpt.model import GPTModel
from gpt.objectives import Objective
from gpt.objectives.documents import sample_documents
from gpt.objectives.rewards import friends
from gpt.text.tales import GrammarReport, check_tales, entropy
from gpt.token_files import PreparedData
from gpt.tokenizer import Tokenizer

THREE_FRIENDS = 1 / 3  # of the grammar's tales; its rule "tale" gives two friends twice the weight
MAX_EXAMPLE_TOKENS = 256  # of a prompt and its continuation: a few sentences, generated quickly

# --- tales ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variety:
    """How varied the tales are that a model writes: two means over sampled tales, each with its standard error."""

    entropy: tuple[float, float]  # nats per tale
    three_friends: tuple[float, float]  # the share of tales in which three friends are needed; the others need two


def check_samples(
    objective: Objective, data: PreparedData, n: int, seed: int = 0
) -> tuple[list[str], GrammarReport, Variety]:
    """Return n tales that the model samples at temperature 1, the grammar's report on them, and their variety.

    The mean of -ln p(tale) over tales that are drawn from p itself is an unbiased estimate of the entropy of p.
    """
    documents, texts = sample_texts(objective, data.tokenizer, n, seed)
    nats = information(objective.model, data.tokenizer.eot_id, documents)
    return texts, check_tales(texts, set(data.documents(data.train))), variety(texts, nats)


def variety(texts: list[str], nats: np.ndarray) -> Variety:
    """Return the variety of sampled tales of this information, (N,)."""
    three = np.array([friends(text) == "three" for text in texts])
    return Variety(_mean_with_error(nats), _mean_with_error(three))


def sample_texts(
    objective: Objective, tokenizer: Tokenizer, n: int, seed: int = 0
) -> tuple[list[list[int]], list[str]]:
    """Return the ids of n documents that the model samples at temperature 1, in its order, and their texts."""
    documents = sample_documents(objective.model, tokenizer.eot_id, n, seed)
    return documents, ["".join(objective.join_text("", ids, tokenizer)) for ids in documents]


@torch.no_grad()
def information(model: nn.Module, eot_id: int, documents: list[list[int]], batch_size: int = 50) -> np.ndarray:
    """Return -ln p of each document of `sample_documents`, in nats, (N,): of exactly these ids and the end-of-text
    token, which those lack that the context cut off."""
    tokens = np.concatenate([[eot_id], *([*ids, eot_id] for ids in documents)])
    starts = np.flatnonzero(tokens == eot_id)
    spans = np.stack([starts[:-1], np.minimum(starts[1:], starts[:-1] + model.config.context_length)], axis=1)
    device, found = next(model.parameters()).device, []
    with evaluation_mode(model):
        for begin in range(0, len(spans), batch_size):
            inputs, targets = padded_batch(tokens, spans[begin : begin + batch_size])  # (B, T)
            losses = model(inputs.to(device), targets.to(device), reduction="none")  # (B, T), 0 in padding
            found.append(losses.double().sum(1).cpu())
    return torch.cat(found).numpy()


def _mean_with_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error, NaN for a single value."""
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def check_checkpoints(
    folder: Path, n: int, seed: int, device: torch.device
) -> Iterator[tuple[str, int, GrammarReport]]:
    """Yield each checkpoint's name, its number of training tokens, and the grammar's report on n sampled tales.

    ValueError if the run was not trained on tales.
    """
    run = RunFolder(folder)
    data = run_data(run, run.load("last", training=False))
    if tales_entropy_floor(data) is None:
        raise ValueError(f"{data.folder} does not hold tales: only tales have a grammar to check samples by")
    known = set(data.documents(data.train))
    for name in run.steps():
        try:
            objective, _, checkpoint = load_objective(run, name)
        except ValueError:
            if name in run.steps():
                raise
            continue  # a training run has deleted it meanwhile
        _, texts = sample_texts(objective.to(device), data.tokenizer, n, seed)
        yield name, checkpoint.state["tokens_seen"], check_tales(texts, known)


def describe_grammar(report: GrammarReport) -> str:
    """Return a table of the tales accepted and of the rules that the others break first."""
    rows = [("accepted by the grammar", report.accepted)]
    rows += [(f"first rule broken: {rule}", n) for rule, n in report.broken.items()]
    width = max(32, *(len(name) + 2 for name, _ in rows))
    lines = [f"{f'{report.texts} sampled tales':<{width}}{'tales':>12}{'share':>12}"]
    lines += [f"{name:<{width}}{n:>12}{n / report.texts:>12.1%}" for name, n in rows]
    if report.accepted:
        unseen = f"{report.unseen} ({report.unseen / report.accepted:.1%})"
        lines += [
            "",
            f"Of the accepted tales, {unseen} are not in the training set; their mean ln p is "
            f"{report.log_probability:.1f} nats (mean over all tales: {-entropy():.1f}).",
        ]
    return "\n".join(lines)


def describe_variety(variety: Variety) -> str:
    """Return two lines: the entropy of what a model writes and its share of tales with three friends, each beside the
    grammar's own."""
    nats, nats_error = variety.entropy
    share, share_error = variety.three_friends
    written = f"{nats:>9.2f} ± {nats_error:.2f} nats per tale; the grammar's: {entropy():.2f}"
    three = f"{share:>9.1%} ± {share_error:.1%}; the grammar's: {THREE_FRIENDS:.1%}"
    return f"{'entropy of what it writes':<32}{written}\n{'tales with three friends':<32}{three}"


# --- continuations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Continuations:
    """Greedy continuations of prompts from a text, compared with the true continuations."""

    prompt_tokens: int  # of each prompt
    max_new_tokens: int  # of each continuation; documents may end earlier
    hypotheses: list[str]  # generated
    references: list[str]  # true
    bleu: Bleu  # of all continuations as one corpus
    rouge: dict[str, PrecisionRecallF1]  # "ROUGE-1", "ROUGE-2", "ROUGE-L": means over the continuations


def split_prompts(
    tokens: np.ndarray, context_length: int, n: int, eot_id: int | None = None
) -> tuple[Tensor, list[list[int]]]:
    """Return up to n prompts from a text, (N, P), int64, spread evenly over it, and the continuation of each.

    A prompt and its continuation are the halves of an example of context_length tokens, at most MAX_EXAMPLE_TOKENS.
    With `eot_id` examples are documents, cut to the length of the median document; documents that end within the prompt
    are skipped, and a continuation ends with its document. All prompts have the same length, as an LSTM needs. N is 0
    if no document is long enough.
    """
    length = min(MAX_EXAMPLE_TOKENS, context_length, len(tokens))
    if eot_id is None:
        starts = list(range(0, len(tokens) - length + 1, length))
        ends = [start + length for start in starts]
    else:
        spans = document_spans(tokens, eot_id, len(tokens))  # (documents, 4): whole documents
        if len(spans):
            length = min(length, int(np.median(spans[:, 1] - spans[:, 0])))
        starts, ends = spans[:, 0].tolist(), np.minimum(spans[:, 0] + length, spans[:, 1]).tolist()
    n_prompt = max(1, length // 2)
    examples = [(start, end) for start, end in zip(starts, ends, strict=True) if end - start > n_prompt]
    n = min(n, len(examples))
    chosen = [examples[i * len(examples) // n] for i in range(n)]
    prompts = np.array([tokens[start : start + n_prompt] for start, _ in chosen], np.int64).reshape(n, n_prompt)
    return torch.from_numpy(prompts), [tokens[start + n_prompt : end].tolist() for start, end in chosen]


def continue_prompts(
    model: GPTModel, tokens: np.ndarray, tokenizer: Tokenizer, context_length: int, n: int, eot_id: int | None = None
) -> Continuations | None:
    """Continue n prompts from a text greedily and compare with the true continuations; None if there is no prompt.

    Prompts are those of `split_prompts`. A continuation has as many tokens as the longest true one, or ends with the
    end-of-text token.
    """
    prompts, true_ids = split_prompts(tokens, context_length, n, eot_id)
    if not true_ids:
        return None
    max_new_tokens = max(map(len, true_ids))
    device = next(model.parameters()).device
    generated = generate(model, list(prompts.to(device)), max_new_tokens, temperature=0, stop_id=eot_id)
    new = [ids[prompts.size(1) :].tolist() for ids in generated]
    hypotheses = [tokenizer.decode([i for i in ids if eot_id is None or i != eot_id]) for ids in new]
    references = [tokenizer.decode(ids) for ids in true_ids]
    pairs = list(zip(hypotheses, references, strict=True))
    scores = {
        "ROUGE-1": [rouge_n(*pair, 1) for pair in pairs],
        "ROUGE-2": [rouge_n(*pair, 2) for pair in pairs],
        "ROUGE-L": [rouge_l(*pair) for pair in pairs],
    }
    rouge = {name: PrecisionRecallF1(*map(statistics.fmean, zip(*rows, strict=True))) for name, rows in scores.items()}
    bleu = corpus_bleu(hypotheses, [[reference] for reference in references])
    return Continuations(prompts.size(1), max_new_tokens, hypotheses, references, bleu, rouge)
