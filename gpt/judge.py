"""What a model of tales writes, judged by their grammar: which rules has it learnt, and when?"""

from pathlib import Path

import torch

from gpt.baselines import tales_floor
from gpt.checkpoint import RunFolder, load_model, run_data
from gpt.decoding import sample_documents
from gpt.model import GPTModel
from gpt.prepared import PreparedData
from gpt.tales import Verdict, entropy, judge


def judge_samples(model: GPTModel, data: PreparedData, n: int, seed: int = 0) -> tuple[list[str], Verdict]:
    """n tales that a model writes at temperature 1, and what the grammar says of them."""
    texts = [data.tokenizer.decode(ids) for ids in sample_documents(model, data.tokenizer.eot_id, n, seed)]
    return texts, judge(texts, data.train_texts)


def describe_verdict(verdict: Verdict) -> str:
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
    from gpt.plots import plot_verdicts  # matplotlib takes half a second to import

    run = RunFolder(folder)
    data = run_data(run, run.load("last", training=False))
    if tales_floor(data) is None:
        raise ValueError(f"{data.folder} does not hold tales, which alone have a grammar to be judged by")
    verdicts = {}
    for name in run.steps():
        try:
            model, _, checkpoint = load_model(run, name)
        except ValueError:
            if name in run.steps():
                raise
            continue  # a trainer at work has deleted it since
        _, verdict = judge_samples(model.to(device), data, n, seed)
        verdicts[checkpoint.state["tokens_seen"]] = verdict
        broken = ", ".join(f"{rule} {count / n:.1%}" for rule, count in verdict.broken.items())
        print(f"{name}  accepted {verdict.accepted / n:.1%}{' | ' * bool(broken)}{broken}")
    if len(verdicts) > 1:  # else there is no "when"; config.keep says how many checkpoints stay
        plot_verdicts(verdicts, run.learnt)
        print(f"picture      {run.learnt}")
