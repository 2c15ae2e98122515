"""The output of scripts/evaluate.py: a model's evaluation as text, and the grammar's reports on all checkpoints."""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt.checkpoint import RunFolder
from gpt.config import ObjectiveConfig
from gpt.evaluation.answers import JudgedAnswers, judge_answers
from gpt.evaluation.metrics import wilson_interval
from gpt.evaluation.ranking import TaskResult, answer_questions, mean_above_chance
from gpt.evaluation.report import (
    ModelReport,
    ReportOptions,
    by_documents,
    encode_text,
    evaluation_config,
    report_on_objective,
    report_on_text,
    split_tokens,
    text_as_data,
)
from gpt.evaluation.requests import describe_requests
from gpt.evaluation.samples import Continuations, check_checkpoints, describe_grammar, describe_variety
from gpt.evaluation.tasks import GROUPS, find_tasks, read_questions, task_file
from gpt.exchange.models import LoadedModel, open_model, run_data
from gpt.objectives.grpo import GRPO
from gpt.objectives.ranks import accuracy_with_error
from gpt.objectives.rewards import find_reward
from gpt.objectives.sft import SFT
from gpt.run.logging import comparison, describe_evaluation, with_error
from gpt.system.device import choose_device
from gpt.system.memory import set_allocator_flags
from gpt.system.paths import find_path
from gpt.text.prepare import has_special_tokens
from gpt.text.quality import notice
from gpt.text.sources import Corpus, given_text_options, open_texts
from gpt.text.special import describe_spelled, name_counter
from gpt.token_files import PreparedData

LIMITS = {  # what each score does not measure
    "accuracy": "how sure the model was: at 30% or at 99%, the likeliest token counts the same",
    "top-5 accuracy": "which of the five it would write, and how close the decision was",
    "BLEU": "another wording that says the same; whether the text is true",
    "ROUGE": "ROUGE-1: word order; ROUGE-2: order beyond two words; ROUGE-L: words in between; all: truth",
}

TASK_ROW = "{:<16}{:>9}{:>8}{:>8}{:>16}{:>10}{:>16}{:>10}"  # the table of --tasks


def evaluate_checkpoints(folder: Path, arguments: Namespace) -> None:
    """Print the grammar's report on tales sampled by each checkpoint of a run, and draw all of them."""
    from gpt.run.plots import plot_grammar_reports  # importing matplotlib takes half a second

    set_allocator_flags()
    reports, n = {}, arguments.samples
    for name, tokens_seen, report in check_checkpoints(folder, n, arguments.seed, choose_device(arguments.device)):
        reports[tokens_seen] = report
        broken = ", ".join(f"{rule} {count / n:.1%}" for rule, count in report.broken.items())
        print(f"{name}  accepted {report.accepted / n:.1%}{' | ' * bool(broken)}{broken}")
    if len(reports) > 1:  # keep_checkpoints says how many there are
        out = RunFolder(folder).grammar_plot
        plot_grammar_reports(reports, out)
        print(f"picture      {out}")


def evaluate_model(folder: Path | None, arguments: Namespace) -> None:
    """Evaluate the checkpoint of a run, or published weights if `folder` is None, and print the results."""
    set_allocator_flags()
    device = choose_device(arguments.device)
    loaded = open_model(folder, arguments.checkpoint, arguments.pretrained)
    loaded.objective.to(device)
    options = ReportOptions(
        context_length=arguments.context,
        stride=arguments.stride,
        batch_size=_batch_size(arguments, loaded),
        weights=arguments.weights,
        n_samples=arguments.samples,
        n_continuations=arguments.continuations,
        seed=arguments.seed,
    )
    corpus, special = _text(arguments, folder, loaded)
    data = run_data(folder, loaded.checkpoint) if corpus is None else None
    answers = corpus.format if corpus else GRPO.supervised(data) is SFT and isinstance(loaded.objective, GRPO)
    if answers and loaded.objective.reads_any_text:  # of conversations the answers count
        loaded = replace(loaded, objective=SFT(loaded.objective.model, ObjectiveConfig("sft")).eval())
    if not loaded.objective.reads_any_text:
        given = [f"--{option}" for option in ("context", "stride") if getattr(arguments, option) is not None]
        if given or arguments.weights != "float32":
            option = given[0] if given else f"--weights {arguments.weights}"
            kind = f"trained with the objective {loaded.objective.config.name}"
            raise ValueError(
                f"{option} is for models that predict the next token; this one "
                + ("answers conversations" if corpus and corpus.format else f"was {kind}")
            )
        if corpus:
            data = text_as_data(corpus, loaded.tokenizer, loaded.prepend_eot, special)
            if line := _overlong(loaded, data):
                notice(line)
        print(describe_objective(loaded, report_on_objective(loaded, data, options, device, own=corpus is None)))
        return
    text = split_tokens(data) if data else encode_text(corpus, loaded.tokenizer, loaded.prepend_eot, special)
    report = report_on_text(loaded, text, data, options, device)
    print(describe_next_token(loaded, report, options))


def _batch_size(arguments: Namespace, loaded: LoadedModel) -> int:
    if arguments.batch_size is not None:
        return arguments.batch_size
    context_length = arguments.context or loaded.objective.model.config.context_length
    return max(1, min(16, 16 * 1024 // context_length))


def evaluate_tasks(folder: Path | None, arguments: Namespace) -> None:
    """Print a model's accuracy on the tasks of --tasks, a row as soon as a task is done."""
    if given := given_text_options(arguments):
        raise ValueError(f"{given[0]} says how a text is read, and --tasks reads files of its own")
    names = find_tasks(arguments.tasks)
    questions = {name: read_questions(name, task_file(name), arguments.limit) for name in names}
    set_allocator_flags()
    device, loaded = choose_device(arguments.device), open_model(folder, arguments.checkpoint, arguments.pretrained)
    if not loaded.objective.left_to_right:
        kind = loaded.objective.config.name
        raise ValueError(f"--tasks is for models that predict the next token; {loaded.name} was trained as {kind}")
    loaded.objective.to(device)
    print(f"model           {loaded.name}")
    print("tasks           no solved examples in the context; 95% intervals by Wilson's formula\n")
    print(TASK_ROW.format("task", "questions", "chance", "acc", "95% interval", "acc_norm", "95% interval", "seconds"))
    results = []
    for name in names:
        result = answer_questions(loaded, name, questions[name], _batch_size(arguments, loaded), device)
        print(describe_task(result))
        if result.n_cut:
            limit = loaded.objective.model.config.context_length
            n, of = f"{result.n_cut:,}", f"{len(result.correct):,} questions of {name}"
            notice(f"{n} of {of} exceed the model's context of {limit} tokens: their beginning is left out")
        results.append(result)
    if {*names} == {*GROUPS["core"]}:
        print(f"\n{describe_core(results)}")


def evaluate_answers(folder: Path | None, arguments: Namespace) -> None:
    """Print the reward of a model's answers to the prompts of --text, or of the run's validation split."""
    reward = find_reward(arguments.reward)
    set_allocator_flags()
    loaded = open_model(folder, arguments.checkpoint, arguments.pretrained)
    if not loaded.objective.left_to_right:
        raise ValueError(
            f"{loaded.name} was trained with the objective {loaded.objective.config.name}: it answers nothing"
        )
    loaded.objective.to(choose_device(arguments.device))
    corpus, special = _text(arguments, folder, loaded)
    if corpus is None:
        data = run_data(folder, loaded.checkpoint)
    else:
        data = text_as_data(corpus, loaded.tokenizer, loaded.prepend_eot, special)
    judged = judge_answers(loaded, data, reward, arguments.batch_size or 16)
    text = data.source if corpus else f"validation split of {data.folder}"
    print(f"model           {loaded.name}")
    print(f"text            {text}: {len(judged.rewards):,} prompts, a greedy answer to each")
    print(describe_answers(judged, reward.name))


def _text(arguments: Namespace, folder: Path | None, loaded: LoadedModel) -> tuple[Corpus | None, bool]:
    """Return the corpus of --text, if given, and whether names of special tokens in it are these tokens: where the
    run's data were prepared so, or by --special_tokens."""
    if arguments.text is None:
        if given := given_text_options(arguments):
            raise ValueError(f"{given[0]} says how a text is read, and none is named: --text FILE")
        return None, False
    (corpus,) = open_texts([arguments.text], arguments)
    if corpus.left_out:
        notice(corpus.left_out)
    if unknown := [name for name in arguments.special_tokens or () if name not in loaded.tokenizer.special_tokens]:
        raise ValueError(f"{loaded.name} has no special token {unknown[0]!r}: it must be named when data are prepared")
    if loaded.objective.prepare_passes and arguments.reward is None:
        raise ValueError(f"{loaded.name} is compared with the model it started from, on its own data: leave --text out")
    if isinstance(loaded.objective, SFT) and len(corpus.fields) != 2 and corpus.noun != "conversation":
        raise ValueError(
            f"{loaded.name} answers prompts: name the fields of pairs, --prompt_field and --target_field, or --format "
            f"for conversations"
        )
    if corpus.format and not (corpus.noun == "conversation" and loaded.objective.left_to_right):
        raise ValueError(f"{loaded.name} cannot be judged on {corpus.noun}s: it learned something else")
    path = find_path(loaded.checkpoint.config.data.path) if folder else Path()
    special = arguments.special_tokens is not None or has_special_tokens(path)
    spelled = sum(map(name_counter(loaded.tokenizer, special), corpus.chunks()), Counter())
    known = Counter({name: n for name, n in spelled.items() if name in loaded.tokenizer.special_tokens})
    if line := describe_spelled(known, loaded.tokenizer, len(corpus.fields) == 2, bool(corpus.format)):
        notice(line)
    return corpus, special


def _overlong(loaded: LoadedModel, data: PreparedData) -> str:
    """Return a line about the pairs of a text that exceed the model's context, or ""."""
    objective, config = loaded.objective, evaluation_config(loaded)
    if not isinstance(objective, SFT):
        return ""
    needed, limit = objective.context_needed(config, data, data.val), config.model.context_length
    n, (kind, effect) = int((needed > limit).sum()), objective.overlong(data)
    return f"{n:,} of {len(needed):,} {kind} exceed the model's context of {limit} tokens: {effect}" if n else ""


def describe_task(result: TaskResult) -> str:
    """Return a model's accuracy on a task as a row of the table; of a task with a perplexity, that too."""

    def share(correct: np.ndarray | None) -> tuple[str, str]:
        if correct is None:
            return "", ""
        low, high = wilson_interval(int(correct.sum()), len(correct))
        return f"{correct.mean():.1%}", f"{low:.1%} to {high:.1%}"

    shares = (*share(result.correct), *share(result.correct_norm))
    chance = f"{result.chance:.1%}" if result.chance else ""
    row = TASK_ROW.format(result.name, f"{len(result.correct):,}", chance, *shares, f"{result.seconds:,.1f}")
    if result.chance:
        return row
    middle, low, high = result.perplexity()
    interval = "" if np.isnan(low) else f", 95% interval {low:,.2f} to {high:,.2f}"
    return f"{row}\n{'':<16}perplexity of the last word {middle:,.2f}{interval}"


def describe_core(results: Sequence[TaskResult]) -> str:
    """Return the mean of a model's accuracies above chance as text, with what it is not."""
    mean, half = mean_above_chance(results)
    return (
        f"mean above chance {mean:.1%} ± {half:.1%}: (acc - chance) / (1 - chance), of acc_norm where there is one\n"
        f"This covers {len(results)} of the 22 tasks of DCLM's CORE, without its solved examples: it is not CORE, and "
        f"cannot be compared with it."
    )


def describe_objective(loaded: LoadedModel, report: ModelReport) -> str:
    """Return the results of an objective other than next-token prediction as text."""
    unit, trained = loaded.objective.unit, loaded.checkpoint.config if loaded.checkpoint else None
    lines = [
        f"model           {loaded.name}",
        f"objective       {(trained.objective if trained else loaded.objective.config).name}",
        f"text            {report.text}: {report.evaluation.n_tokens:,} {unit}s predicted",
        describe_evaluation(report.evaluation, unit),
    ]
    return "\n".join(lines + _describe_comparison(report))


def describe_next_token(loaded: LoadedModel, report: ModelReport, options: ReportOptions) -> str:
    """Return the results of next-token prediction as text."""
    result, model = report.evaluation, loaded.objective.model
    context = model.config.context_length if options.context_length is None else options.context_length
    stride = context if options.stride is None else options.stride
    documents = by_documents(loaded.tokenizer, loaded.prepend_eot)
    examples = f"stride {stride}"
    if documents:
        examples = "examples of one document" + (f", {examples} within longer ones" if stride < context else "")
    (top_1, error_1), (top_5, error_5) = (accuracy_with_error(result, k) for k in (1, 5))
    lines = [
        f"model           {loaded.name}",
        f"text            {report.text}: {result.n_tokens:,} tokens predicted",
        f"settings        tokenizer {loaded.tokenizer.name}, context {context}, {examples}",
        f"loss            {result.loss:.4f} nats per token{with_error(result.standard_error)}",
    ]
    if report.rounded:
        lines.append(
            f"{'in ' + options.weights:<16}loss {report.rounded.loss:.4f} nats per token, "
            f"{report.rounded.loss - result.loss:+.4f}; accuracy {accuracy_with_error(report.rounded)[0]:.2%}"
        )
    lines += [
        f"perplexity      {result.perplexity:,.2f}",
        f"bits per token  {result.bits_per_token:.4f}",
        f"bits per byte   {result.bits_per_byte:.4f}",
        f"accuracy        {top_1:.2%} of tokens{with_error(error_1, '.2%')}",
        f"top-5 accuracy  {top_5:.2%} of tokens{with_error(error_5, '.2%')}",
        *_describe_comparison(report),
    ]
    scores = ["accuracy", "top-5 accuracy"]
    if report.continuations:
        scores += ["BLEU", "ROUGE"]
        lines += ["", describe_continuations(report.continuations)]
    elif options.n_continuations:
        lines += ["", "No document is long enough to be continued."]
    return "\n".join([*lines, "", describe_limits(scores)])


def describe_answers(judged: JudgedAnswers, name: str) -> str:
    """Return the rewards of a model's answers as text: their mean, and how often each of the most frequent values."""
    rewards, n = judged.rewards, len(judged.rewards)
    error = float(rewards.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    values = [f"{value:g} for {count / n:.1%}" for value, count in Counter(rewards.tolist()).most_common(5)]
    lines = [f"reward          {name}: {rewards.mean():.4f}{with_error(error)}", f"values          {', '.join(values)}"]
    if judged.n_cut:
        lines.append(
            f"cut             {judged.n_cut:,} answers had no end after {judged.max_new_tokens} tokens: reward 0"
        )
    return "\n".join(lines)


def _describe_comparison(report: ModelReport) -> list[str]:
    lines = []
    if report.baselines:
        lines += ["", comparison(report.baselines, "this run", report.evaluation)]
    if report.grammar:
        lines += ["", describe_grammar(report.grammar), "", describe_variety(report.variety)]
    if report.requests:
        lines += ["", describe_requests(report.requests)]
    return lines


def describe_continuations(continuations: Continuations) -> str:
    """Return a table of ROUGE and BLEU."""
    bleu, n = continuations.bleu, len(continuations.references)
    title = f"{n} greedy continuation{'s' * (n > 1)}"
    lines = [f"{title:<32}{'precision':>12}{'recall':>12}{'F1':>12}"]
    for name, scores in continuations.rouge.items():
        lines.append(f"{name:<32}" + "".join(f"{score:>12.1%}" for score in scores))
    precisions = " / ".join(f"{precision:.1f}" for precision in bleu.precisions)
    lines += [
        f"{'BLEU, 0 to 100':<32}{bleu.score:>12.2f}",
        "",
        f"Each prompt has {continuations.prompt_tokens} tokens of the text, each continuation up to "
        f"{continuations.max_new_tokens}.",
        f"BLEU's precisions of 1 to 4 words: {precisions}%; its brevity penalty: {bleu.brevity_penalty:.3f}.",
    ]
    return "\n".join(lines)


def describe_limits(scores: Iterable[str]) -> str:
    """Return what the named scores do not measure, a line for each."""
    return "\n".join(["what a score does not measure", *(f"{name:<16}{LIMITS[name]}" for name in scores)])
