"""Train every config of configs/objectives, evaluate the runs, and write the tables of docs/objectives.md.

    python benchmarks/objectives.py
    python benchmarks/objectives.py --quick

Runs are trained in turn under runs/, each by its own train.py; an unfinished run is resumed and a finished one is left
alone. It takes half an hour on two cores. --quick trains a few steps of each on a few tales in a temporary folder, as a
smoke test, and writes no page.
"""

import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from gpt.checkpoint import RunFolder
from gpt.evaluation.information import expected_calibration_error
from gpt.exchange.models import load_objective
from gpt.objectives.glm_spans import cut_spans, sample_spans
from gpt.objectives.objective import example_rng
from gpt.objectives.ranks import losses_and_ranks
from gpt.run import cli
from gpt.system.paths import find_path
from gpt.token_files import load_data

PROJECT = Path(__file__).resolve().parent.parent
CONFIGS = PROJECT / "configs"
PAGE = PROJECT / "docs" / "objectives.md"
SEEDS = (1, 2, 3)
MASK_RATE = 0.15  # share of a text that is filled in
PREPARED = {  # folder -> how prepare_data.py makes it
    "data/tales": ["--input=tales", "--tokenizer=bpe:2048", "--val_fraction=0.01"],
    "data/summaries": ["--input=summaries:10000:1", "--tokenizer=data/tales/tokenizer.json", "--val_fraction=0.05"],
    "data/tales_few": ["--input=tales:200:1", "--val_input=tales:300:2", "--tokenizer=data/tales/tokenizer.json"],
    "data/story": ["--input=story"],
}
BASE = "tales-001"  # the run of `make train`: other runs start from it or have it as a teacher
RUNS = {  # run -> its config
    BASE: "tales",
    **{name: f"objectives/{name}" for name in ("reverse", "masked", "infilling", "infilling_left")},
    **{name: f"objectives/{name}" for name in ("sft", "lora", "prefix")},
    **{f"{name}-{seed}": f"objectives/{name}" for name in ("student", "distill") for seed in SEEDS},
    "story": "story",
    "smoothed": "objectives/smoothed",
}
TASKS = {
    BASE: "the next token",
    "reverse": "the previous token",
    "masked": "masked tokens, from both sides; whether two halves belong together",
    "infilling": "blanks of several tokens, from both sides",
    "sft": "a tale's summary, given the tale",
}


@dataclass(frozen=True)
class Result:
    """A finished run: its first and last evaluation from metrics.csv, and the number of trained parameters."""

    run: str
    first: dict[str, str]
    last: dict[str, str]
    trained: int  # parameters in a checkpoint, which holds only trained ones

    @property
    def loss(self) -> float:
        """The loss of the last evaluation, in nats per target."""
        return float(self.last["val_loss"])

    @property
    def time(self) -> str:
        """The training time, evaluations included, as text."""
        seconds = float(self.last["elapsed_s"])
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"

    def metrics(self) -> str:
        """The objective's other metrics, as text."""
        names = [name for name in self.last if name.startswith("val_") and name not in STANDARD and self.last[name]]
        return ", ".join(f"{name[4:].replace('_', ' ')} {float(self.last[name]):.3f}" for name in names)


STANDARD = {"val_loss", "val_loss_se", "val_perplexity", "val_bits_per_byte"}


def script(name: str, *arguments: str, folder: Path) -> None:
    """Run a script of scripts/ in a working folder. RuntimeError with its stderr if it fails."""
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts" / f"{name}.py", *arguments],
        cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}.py {' '.join(arguments)} ended with status {done.returncode}: {done.stderr}")


def train(run: str, folder: Path, settings: list[str]) -> Result:
    """Train or resume a run of RUNS; `settings` are options of train.py."""
    name, _, seed = run.partition("-")
    seeded = [f"--seed={seed}"] if name in ("student", "distill") else []
    config = f"--config={CONFIGS / RUNS[run]}.toml"
    script("train", config, f"--run={folder / 'runs' / run}", "--resume", *seeded, *settings, folder=folder)
    return result(run, folder)


def result(run: str, folder: Path) -> Result:
    """Return the result of a finished run."""
    run_folder = RunFolder(folder / "runs" / run)
    with run_folder.metrics.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val_loss"]]
    with safe_open(run_folder.find("last") / "model.safetensors", "pt") as weights:
        trained = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - no mapping
    return Result(run, rows[0], rows[-1], trained)


# --- the tables -------------------------------------------------------------------------------------------------------


def unigram_loss(run: str, folder: Path) -> float:
    """Return the loss in nats of a unigram model on the targets of a run."""
    objective, _, checkpoint = load_objective(folder / "runs" / run)
    data = objective.transform(load_data(folder / checkpoint.config.data.path))
    return objective.trivial_losses(checkpoint.config, data)["unigram"]


def table_of_all(results: dict[str, Result], folder: Path) -> list[str]:
    """Return the table of all objectives, each with its loss and that of a unigram model."""
    lines = ["| objective | learns | time | validation loss | unigram loss | other metrics |", f"|{'---|' * 6}"]
    for run, task in TASKS.items():
        one, name = results[run], "next_token" if run == BASE else run
        lines.append(
            f"| [{name}](../configs/{RUNS[run]}.toml) | {task} | {one.time} | {one.loss:.4f} "
            f"| {unigram_loss(run, folder):.3f} | {one.metrics()} |"
        )
    return lines


def table_of_adapters(results: dict[str, Result], folder: Path) -> list[str]:
    """Return the table of one task trained with all weights, with LoRA and with a prefix."""
    whole = results[BASE].trained
    lines = ["| | trained parameters | share | time | loss | exact summaries |", "|---|---|---|---|---|---|"]
    before = results["lora"].first  # its updates are 0 at first
    lines.append(
        f"| no fine-tuning | 0 | 0% | | {float(before['val_loss']):.4f} | {float(before['val_exact_match']):.1%} |"
    )
    for run, what in (("sft", "all weights"), ("lora", "LoRA"), ("prefix", "prefix tuning")):
        one = results[run]
        exact = float(one.last["val_exact_match"])
        lines.append(
            f"| [{what}](../configs/{RUNS[run]}.toml) | {one.trained:,} | {one.trained / whole:.2%} | {one.time} "
            f"| {one.loss:.4f} | {exact:.1%} |"
        )
    return lines


def table_of_students(results: dict[str, Result], folder: Path) -> list[str]:
    """Return the table of the same student with and without a teacher, by seed."""
    seeds = " | ".join(f"seed {seed}" for seed in SEEDS)
    lines = [f"| learns from | {seeds} | mean | standard deviation |", f"|---|{'---|' * len(SEEDS)}---|---|"]
    for name, what in (("student", "labels only"), ("distill", "the teacher and labels")):
        losses = [results[f"{name}-{seed}"].loss for seed in SEEDS]
        shown = " | ".join(f"{loss:.4f}" for loss in [*losses, statistics.fmean(losses), statistics.stdev(losses)])
        lines.append(f"| [{what}](../configs/objectives/{name}.toml) | {shown} |")
    return [*lines, f"| the teacher itself | | | | {results[BASE].loss:.4f} | |"]


@torch.no_grad()
def table_of_blanks(results: dict[str, Result], folder: Path) -> list[str]:
    """Return the table that compares filling the same blanks of validation tales from both sides and from the left.

    Only the blanks' own tokens are scored, not their end tokens. The model that reads from the left sees all of the
    true text before a token, earlier blanks included.
    """
    both, left = (load_objective(folder / "runs" / run)[0] for run in ("infilling", "infilling_left"))
    checkpoint = RunFolder(folder / "runs" / "infilling").load("best", training=False)
    data = both.transform(load_data(folder / checkpoint.config.data.path))
    examples = both.examples(checkpoint.config, data, data.val)
    losses: dict[str, list[float]] = {"both": [], "left": []}
    exact: dict[str, list[bool]] = {"both": [], "left": []}
    for index in range(len(examples)):
        text, rng = examples.text(index), example_rng((0,), index)
        spans = sample_spans(len(text), MASK_RATE, both.config.span_length, rng)
        blanks = cut_spans(text, spans, range(len(spans)), data.tokenizer.special_tokens)
        batch = {name: torch.from_numpy(getattr(blanks, name))[None] for name in blanks._fields[:-1]}
        hidden, targets, starts_span = both.target_states(**batch, n_context=torch.tensor([blanks.n_context]))
        scored = {"both": (*losses_and_ranks(both.model, hidden, targets), starts_span.nonzero().flatten().tolist())}
        before = int(examples.tokens[examples.spans[index][0] - 1])  # the token before the example
        inputs = torch.tensor([[before, *text[:-1]]])
        found = losses_and_ranks(left.model, left.model.hidden_states(inputs)[0], torch.from_numpy(text))
        scored["left"] = (*found, [start for start, _ in spans])
        for name, (nats, ranks, starts) in scored.items():
            for start, (first, end) in zip(starts, spans, strict=True):
                rows = slice(start, start + end - first)
                losses[name] += nats[rows].tolist()
                exact[name].append(bool((ranks[rows] == 0).all()))
    lines = ["| | blanks | loss per token | filled without error |", "|---|---|---|---|"]
    for name, run in {"both": "infilling", "left": "infilling_left"}.items():
        what = {"both": "infilling, from both sides", "left": "next_token, from the left"}[name]
        loss, share = statistics.fmean(losses[name]), statistics.fmean(exact[name])
        lines.append(f"| [{what}](../configs/{RUNS[run]}.toml) | {len(exact[name]):,} | {loss:.4f} | {share:.1%} |")
    return lines


@torch.no_grad()
def table_of_smoothing(results: dict[str, Result], folder: Path) -> list[str]:
    """Return the table of calibration with and without label smoothing, after training."""
    lines = ["| labels | validation loss | accuracy | mean confidence | calibration error |", "|---|---|---|---|---|"]
    for run, what in (("story", "one-hot"), ("smoothed", "smoothed by 0.1")):
        objective, _, checkpoint = load_objective(folder / "runs" / run, "last")
        examples = objective.examples(checkpoint.config, data := load_data(folder / "data/story"), data.val)
        inputs, targets = examples.batch(range(0, len(examples), 8))  # every eighth: the others overlap them
        logits = objective.model(inputs).flatten(0, 1)  # (N, V)
        confidence, predicted = logits.softmax(-1).max(-1)  # (N,) each
        error = expected_calibration_error(logits, targets.flatten(), from_logits=True)
        accuracy = (predicted == targets.flatten()).float().mean()
        lines.append(
            f"| [{what}](../configs/{RUNS[run]}.toml) | {results[run].loss:.3f} | {accuracy:.1%} "
            f"| {confidence.mean():.1%} | {error:.1%} |"
        )
    return lines


TABLES: dict[str, Callable[[dict[str, Result], Path], list[str]]] = {
    "all": table_of_all,
    "adapters": table_of_adapters,
    "students": table_of_students,
    "blanks": table_of_blanks,
    "smoothing": table_of_smoothing,
}


def write(page: Path, tables: dict[str, list[str]]) -> None:
    """Replace the tables of a page, each between <!-- NAME --> and <!-- end of NAME -->. ValueError without them."""
    text = page.read_text(encoding="utf-8")
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} has no place for the table {name!r}: {begin.strip()} and {end}")
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    page.write_text(text, encoding="utf-8", newline="\n")


def measure(folder: Path, prepared: dict[str, list[str]], settings: list[str]) -> dict[str, list[str]]:
    """Prepare, train and evaluate everything in a working folder; return the tables by name."""
    for path, arguments in prepared.items():
        if not (folder / path / "meta.json").is_file():
            script("prepare_data", *arguments, f"--out={path}", folder=folder)
    results = {}
    for run in RUNS:
        results[run] = train(run, folder, settings)
        print(f"{run}: {results[run].loss:.4f} after {results[run].time} {results[run].metrics()}", flush=True)
    return {name: table(results, folder) for name, table in TABLES.items()}


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps of each, as a smoke test")
    if not parser.parse_args().quick:
        write(PAGE, measure(find_path("."), PREPARED, []))
        return
    with tempfile.TemporaryDirectory() as folder:
        few = {**PREPARED, "data/tales": ["--input=tales:300", "--tokenizer=bpe:2048"]}
        few["data/summaries"] = ["--input=summaries:300:1", "--tokenizer=data/tales/tokenizer.json"]
        settings = ["--max_steps=3", "--eval_batches=2", "--eval_every=0", "--sample_every=0"]
        for name, lines in measure(Path(folder), few, settings).items():
            print(f"\n{name}\n" + "\n".join(lines))


if __name__ == "__main__":
    cli.run(main)
