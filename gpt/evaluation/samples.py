"""What a model writes, judged: tales by their grammar (which rules has it learnt, and when?), continuations of a text
by how it really goes on."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt.checkpoint import RunFolder
from gpt.data import document_spans
from gpt.evaluation.baselines import tales_entropy_floor
from gpt.evaluation.metrics import Bleu, PrecisionRecallF1, corpus_bleu, rouge_l, rouge_n
from gpt.exchange.models import load_objective, run_data
from gpt.generation import generate
from gpt.model import GPTModel
from gpt.objectives import Objective
from gpt.text.tales import GrammarReport, check_tales, entropy
from gpt.token_files import PreparedData
from gpt.tokenizer import Tokenizer

BLIND_SPOTS = {  # what each score can't see
    "accuracy": "how sure the model was: at 30% or at 99%, the likeliest token counts the same",
    "top-5 accuracy": "which of the five it would write, and whether it was a near thing",
    "BLEU": "another wording that says the same; whether what is written is true",
    "ROUGE": "ROUGE-1 any order, ROUGE-2 order beyond two words, ROUGE-L what stands between; truth, all three",
}
LONGEST_WINDOW = 256  # tokens of a prompt and its continuation: enough for a few sentences, and quick

# --- tales ------------------------------------------------------------------------------------------------------------


def judge_samples(objective: Objective, data: PreparedData, n: int, seed: int = 0) -> tuple[list[str], GrammarReport]:
    """n tales that a model writes at temperature 1, and what the grammar says of them."""
    texts = objective.sample_documents(data.tokenizer, n, seed)
    return texts, check_tales(texts, data.train_texts)


def describe_verdict(verdict: GrammarReport) -> str:
    """A verdict as a table: what is accepted, and which rule the others break first."""
    rows = [("accepted by the grammar", verdict.accepted)]
    rows += [(f"first rule broken: {rule}", n) for rule, n in verdict.broken.items()]
    lines = [f"{f'{verdict.texts} sampled tales':<32}{'tales':>12}{'share':>12}"]
    lines += [f"{name:<32}{n:>12}{n / verdict.texts:>12.1%}" for name, n in rows]
    if verdict.accepted:
        unseen = f"{verdict.unseen} ({verdict.unseen / verdict.accepted:.1%})"
        lines += [
            "",
            f"Of those accepted, {unseen} are not in the training set; their mean ln p is "
            f"{verdict.log_probability:.1f} nats (that of the grammar's own tales: {-entropy():.1f}).",
        ]
    return "\n".join(lines)


def judge_checkpoints(folder: Path, n: int, seed: int, device: torch.device) -> None:
    """Judge n tales by each checkpoint of a run, print a line for each, and draw what was learnt when."""
    from gpt.run.plots import plot_verdicts  # matplotlib takes half a second to import

    run = RunFolder(folder)
    data = run_data(run, run.load("last", training=False))
    if tales_entropy_floor(data) is None:
        raise ValueError(f"{data.folder} does not hold tales, which alone have a grammar to be judged by")
    verdicts = {}
    for name in run.steps():
        try:
            objective, _, checkpoint = load_objective(run, name)
        except ValueError:
            if name in run.steps():
                raise
            continue  # a trainer at work has deleted it since
        _, verdict = judge_samples(objective.to(device), data, n, seed)
        verdicts[checkpoint.state["tokens_seen"]] = verdict
        broken = ", ".join(f"{rule} {count / n:.1%}" for rule, count in verdict.broken.items())
        print(f"{name}  accepted {verdict.accepted / n:.1%}{' | ' * bool(broken)}{broken}")
    if len(verdicts) > 1:  # else there is no "when"; config.keep says how many checkpoints stay
        plot_verdicts(verdicts, run.grammar_plot)
        print(f"picture      {run.grammar_plot}")


# --- continuations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Continuations:
    """What a model wrote after prompts from a text, and how far it agrees with what stands there."""

    prompt_tokens: int  # of each prompt
    most_tokens: int  # of each continuation; documents may end before
    hypotheses: list[str]  # what the model wrote
    references: list[str]  # what stands in the text
    bleu: Bleu  # of all of them as one corpus
    rouge: dict[str, PrecisionRecallF1]  # "ROUGE-1", "ROUGE-2", "ROUGE-L": means over the continuations


def split_windows(
    tokens: np.ndarray, context_length: int, n: int, eot_id: int | None = None
) -> tuple[Tensor, list[list[int]]]:
    """Up to n windows of a text at fixed places, spread evenly: the first halves (N, P) as prompts, int64, and of each
    the other half, the true continuation.

    A window has context_length tokens, at most LONGEST_WINDOW; a shorter text is one window. With `eot_id` windows
    begin where documents begin, with the end-of-text token before them. They are then no longer than the median
    document, and documents that end within the prompt are left out; a continuation ends where its document does. So all
    prompts are equally long, which an LSTM needs. No window at all where no document is long enough.
    """
    length = min(LONGEST_WINDOW, context_length, len(tokens))
    if eot_id is None:
        starts = list(range(0, len(tokens) - length + 1, length))
        ends = [start + length for start in starts]
    else:
        spans = document_spans(tokens, eot_id, len(tokens))  # (documents, 3): each whole, from mark to mark
        if len(spans):
            length = min(length, int(np.median(spans[:, 1] - spans[:, 0])))
        starts, ends = spans[:, 0].tolist(), np.minimum(spans[:, 0] + length, spans[:, 1]).tolist()
    n_prompt = max(1, length // 2)
    windows = [(start, end) for start, end in zip(starts, ends, strict=True) if end - start > n_prompt]
    n = min(n, len(windows))
    chosen = [windows[i * len(windows) // n] for i in range(n)]
    prompts = np.array([tokens[start : start + n_prompt] for start, _ in chosen], np.int64).reshape(n, n_prompt)
    return torch.from_numpy(prompts), [tokens[start + n_prompt : end].tolist() for start, end in chosen]


def judge_continuations(
    model: GPTModel, tokens: np.ndarray, tokenizer: Tokenizer, context_length: int, n: int, eot_id: int | None = None
) -> Continuations | None:
    """Continue n windows of a text greedily, and compare what is written with what stands there.

    Windows as in `split_windows`; each continuation has as many tokens as its window has left, or ends with the
    end-of-text token. None where there is no window. Nothing is drawn at random.
    """
    prompts, rest = split_windows(tokens, context_length, n, eot_id)
    if not rest:
        return None
    most_tokens = max(map(len, rest))
    device = next(model.parameters()).device
    written = generate(model, list(prompts.to(device)), most_tokens, temperature=0, stop_id=eot_id)
    new = [ids[prompts.size(1) :].tolist() for ids in written]
    hypotheses = [tokenizer.decode([i for i in ids if eot_id is None or i != eot_id]) for ids in new]
    references = [tokenizer.decode(ids) for ids in rest]
    pairs = list(zip(hypotheses, references, strict=True))
    by_kind = {
        "ROUGE-1": [rouge_n(*pair, 1) for pair in pairs],
        "ROUGE-2": [rouge_n(*pair, 2) for pair in pairs],
        "ROUGE-L": [rouge_l(*pair) for pair in pairs],
    }
    means = {
        kind: PrecisionRecallF1(*map(statistics.fmean, zip(*scores, strict=True))) for kind, scores in by_kind.items()
    }
    bleu = corpus_bleu(hypotheses, [[reference] for reference in references])
    return Continuations(prompts.size(1), most_tokens, hypotheses, references, bleu, means)


def describe_blind_spots(names: Iterable[str]) -> str:
    """What the scores of these names can't see, a line for each."""
    return "\n".join(["what a score can't see", *(f"{name:<16}{BLIND_SPOTS[name]}" for name in names)])


def describe_continuations(continuations: Continuations) -> str:
    """ROUGE and BLEU of continuations as a table."""
    bleu, n = continuations.bleu, len(continuations.references)
    title = f"{n} greedy continuation{'s' * (n > 1)}"
    lines = [f"{title:<32}{'precision':>12}{'recall':>12}{'F1':>12}"]
    for kind, scores in continuations.rouge.items():
        lines.append(f"{kind:<32}" + "".join(f"{score:>12.1%}" for score in scores))
    shares = " / ".join(f"{precision:.1f}" for precision in bleu.precisions)
    lines += [
        f"{'BLEU, 0 to 100':<32}{bleu.score:>12.2f}",
        "",
        f"Each of up to {continuations.most_tokens} tokens, after {continuations.prompt_tokens} of the text.",
        f"BLEU's precisions of 1 to 4 words: {shares}%; its brevity penalty: {bleu.brevity_penalty:.3f}.",
    ]
    return "\n".join(lines)
