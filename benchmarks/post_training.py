"""Post-train the model of `make train` by several methods, each for the same time, and write docs/post-training.md.

    python benchmarks/post_training.py
    python benchmarks/post_training.py "grpo, by kind" dpo --seconds 60 --seeds 1
    python benchmarks/post_training.py --redraw
    python benchmarks/post_training.py --quick

Each run has its own process, and --jobs of them share the cores; of a run on one thread the CPU time counts. Loading,
sampling, judging and training count; the clock stands while tales are sampled for a curve. The learning rate decays
over the time, not over a number of steps. Results are lines of docs/post-training.jsonl; those that are there already
are not measured again, and --redraw measures nothing. Everything takes 55 minutes on two cores. --quick trains for a
second each on a tiny model in a temporary folder, as a smoke test, and writes no page.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import equal_time
import numpy as np
import torch
from equal_time import Results, measure, with_settings
from ladder import mean_and_spread
from matplotlib import colormaps
from matplotlib.figure import Figure
from objectives import PREPARED, PROJECT, script, write

from gpt.data import DocumentExamples, ExampleSampler
from gpt.evaluation.baselines import tales_entropy_floor
from gpt.evaluation.samples import THREE_FRIENDS, information, sample_texts, variety
from gpt.exchange.models import load_model
from gpt.model import GPTModel
from gpt.objectives import NextToken
from gpt.run import cli
from gpt.run.training import start_run
from gpt.system.files import atomic_file, checksummed, sha256
from gpt.system.memory import set_allocator_flags
from gpt.system.paths import existing_run, find_path
from gpt.text import tales
from gpt.token_files import COUNTED, FORMAT, START, load_data
from gpt.tokenizer import Tokenizer
from gpt.trainer import Callback, Trainer

CONFIGS = PROJECT / "configs" / "posttrain"
PAGE = PROJECT / "docs" / "post-training.md"
RESULTS = PROJECT / "docs" / "post-training.jsonl"
SEEDS, SECONDS = (1, 2, 3), 200.0
SAMPLES, CURVE_SAMPLES = 500, 100  # tales that judge a model at the end, and for a point of its curve
ROUND = 250  # tales sampled at once by best-of-n and for dpo
DPO_SAMPLING = 1 / 3  # of the time
PREPARED_TALES = {
    "data/tales": PREPARED["data/tales"],
    "data/tales_fresh": ["--input=tales:60000:7", "--tokenizer=data/tales/tokenizer.json", "--val_fraction=0.005"],
}
TINY = {  # settings of a model that learns a few tales by heart
    "device": "cpu", "max_steps": 160, "batch_size": 6, "eval_every": 0, "save_every": 0, "sample_every": 0,
    "model.emb_dim": 64, "model.n_layers": 2, "optim.warmup_steps": 5,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a run starts and what it reads; a quick one is smaller."""

    base: str  # the run to start from
    data: str  # its tales
    fresh: str  # tales that it has not read
    samples: int = SAMPLES
    curve_samples: int = CURVE_SAMPLES
    round: int = ROUND
    group_size: int = 128


class Run(equal_time.Run):
    """A run that starts from `setting.base`."""

    def __init__(self, setting: Setting, seed: int, seconds: float, folder: Path):
        self.setting, self.tokenizer = setting, load_data(find_path(setting.data)).tokenizer
        n = setting.curve_samples
        super().__init__(seed, seconds, folder, lambda model: judge(model, self.tokenizer, n, seed)[:2])

    def post_train(self, config: str, changed: dict, until: float = 1.0, **options) -> Path:
        """Train a config of CONFIGS, by default from `setting.base`, for a share of the time; see `train`."""
        changed = {"init_from": self.setting.base, **changed}
        return self.train(CONFIGS / f"{config}.toml", changed, until * self.seconds, **options)

    def sample(self, model: GPTModel, seed: int) -> tuple[list[list[int]], list[list[int]]]:
        """Return the ids of tales that a model writes: those that the grammar accepts, and the others."""
        start = self.clock()
        documents, texts = sample_texts(NextToken(model), self.tokenizer, self.setting.round, seed)
        sampled, by_verdict = self.clock(), {True: [], False: []}
        for ids, text in zip(documents, texts, strict=True):
            by_verdict[tales.first_broken_rule(text) is None].append(ids)
        self.parts["sample_s"] += sampled - start
        self.parts["judge_s"] += self.clock() - sampled
        return by_verdict[True], by_verdict[False]


class Rounds(Callback):
    """Trains on tales of the model itself that are accepted, each of them once, and then samples others."""

    def __init__(self, run: Run):
        self.run, self.next = run, 0

    def on_step_end(self, trainer: Trainer) -> None:
        """Sample a round if the last one has been read."""
        if trainer.step < self.next or trainer.finished:
            return
        accepted, _ = self.run.sample(trainer.objective.model, seed=1000 * self.run.seed + trainer.step)
        size, eot = trainer.config.batch_size, self.run.tokenizer.eot_id
        if len(accepted) < size:
            raise ValueError(
                f"{len(accepted)} of {self.run.setting.round} sampled tales are right: too few to train on"
            )
        tokens = np.concatenate([[eot], *([*ids, eot] for ids in accepted)])
        trainer.examples = DocumentExamples(tokens, trainer.config.model.context_length, eot)
        trainer.sampler = ExampleSampler(len(accepted), size, shuffle=False)
        self.next = trainer.step + len(accepted) // size


# --- the methods ------------------------------------------------------------------------------------------------------


def supervised(run: Run) -> Path:
    """Train on fresh tales of the grammar."""
    return run.post_train("supervised", {"data.path": run.setting.fresh})


def best_of_n(run: Run) -> Path:
    """Train on the model's own tales that are accepted. Anthony et al. 2017 (expert iteration), arXiv:1705.08439."""
    return run.post_train("supervised", {"data.path": run.setting.data}, callback=Rounds(run))


def dpo(run: Run) -> Path:
    """Sample tales for a third of the time, and learn to prefer the accepted ones to the refused ones."""
    model = load_model(run.setting.base)[0]
    chosen, rejected = [], []
    while not (chosen and rejected) or run.elapsed < DPO_SAMPLING * run.seconds:
        run.measure(model)
        for kept, found in zip((chosen, rejected), run.sample(model, len(chosen) + len(rejected)), strict=True):
            kept += found
    pairs = list(zip(chosen, rejected, strict=False))
    write_preferences(run.folder / "judged", run.tokenizer, pairs)
    return run.post_train("dpo_tales", {"data.path": str(run.folder / "judged")})


def grpo(changed: dict) -> Callable[[Run], Path]:
    """Return the method of configs/posttrain/grpo_tales.toml with some settings changed."""

    def train(run: Run) -> Path:
        settings = {"data.path": run.setting.data, "objective.group_size": run.setting.group_size, **changed}
        return run.post_train("grpo_tales", settings)

    return train


def supervised_then_grpo(run: Run) -> Path:
    """Train on fresh tales for half the time, then by reinforcement learning."""
    half = run.post_train("supervised", {"data.path": run.setting.fresh}, 0.5, name="half")
    return grpo({"init_from": str(half)})(run)


PLAIN = {"objective.credit": "answer", "objective.baseline": "group", "objective.beta": 0.0}
METHODS: dict[str, Callable[[Run], Path | str]] = {
    "no training": lambda run: run.setting.base,
    "supervised": supervised,
    "best-of-n": best_of_n,
    "dpo": dpo,
    "grpo": grpo(PLAIN),
    "grpo, KL": grpo({**PLAIN, "objective.beta": 0.05}),
    "grpo, by kind": grpo({**PLAIN, "objective.baseline": "kind"}),
    "grpo, by kind, KL, up to the error": grpo({}),
    "supervised, then grpo": supervised_then_grpo,
}


def write_preferences(folder: Path, tokenizer: Tokenizer, pairs: list[tuple[list[int], list[int]]]) -> None:
    """Write a folder of prepared preferences (gpt/token_files.py): each tale, the accepted one before the refused one,
    answers the end-of-text token. The last pair is for validation."""
    folder.mkdir()
    meta = {"format": FORMAT, "source": "tales of the model itself", "tokenizer": tokenizer.name, "dtype": "uint32"}
    meta |= {"vocab_size": tokenizer.vocab_size, "has_eot": False, "flagged": True, "preferences": True}
    for split, part in {"train": pairs[:-1] or pairs, "val": pairs[-1:]}.items():
        documents = [[tokenizer.eot_id, *ids, tokenizer.eot_id] for pair in part for ids in pair]
        ids = np.concatenate(documents).astype(np.uint32)
        flags = np.full(len(ids), COUNTED, np.uint8)
        flags[np.cumsum([0, *map(len, documents[:-1])])] = START
        path = folder / f"{split}.bin"
        path.write_bytes(ids.tobytes() + flags.tobytes())
        n_bytes = sum(len(tokenizer.decode_bytes(document[1:-1])) for document in documents)
        sizes = {"documents": len(documents), "characters": n_bytes, "bytes": n_bytes, "tokens": len(ids)}
        meta[split] = {**sizes, "sha256": sha256(path)}
    tokenizer.save(folder / "tokenizer.json")
    meta["tokenizer_sha256"] = sha256(folder / "tokenizer.json")
    (folder / "meta.json").write_text(checksummed(meta), encoding="utf-8")


# --- measuring --------------------------------------------------------------------------------------------------------


def judge(model: GPTModel, tokenizer: Tokenizer, n: int, seed: int) -> tuple[float, float, float, float, float]:
    """Return the share of n sampled tales that are accepted; the entropy of what is written, nats per tale; the share
    with three friends; and the standard errors of the last two."""
    documents, texts = sample_texts(NextToken(model), tokenizer, n, seed)
    found = variety(texts, information(model, tokenizer.eot_id, documents))
    (nats, nats_error), (three, three_error) = found.entropy, found.three_friends
    return tales.check_tales(texts).accepted / n, round(nats, 3), three, round(nats_error, 3), round(three_error, 4)


def train(method: str, seed: int, seconds: float, setting: Setting) -> dict:
    """Return the result of one run, in this process."""
    set_allocator_flags()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(setting, seed, seconds, Path(folder))
        path = METHODS[method](run)
        parts = run.seconds_by_part()
        model, tokenizer, checkpoint = load_model(path, "last")
    config, data = dataclasses.replace(checkpoint.config, batch_size=16), load_data(find_path(setting.data))
    evaluation = NextToken(model).evaluate(config, data)
    excess = evaluation.excess_over_floor(tales_entropy_floor(data)).loss
    names = ("accepted", "entropy", "three_friends", "entropy_error", "three_friends_error")
    figures = dict(zip(names, judge(model, tokenizer, setting.samples, seed), strict=True))
    figures |= {"excess": round(excess, 5), "steps": run.steps, "threads": torch.get_num_threads(), **parts}
    return {"method": method, "seed": seed, "seconds": seconds, **figures, "curve": run.curve}


# --- the page ---------------------------------------------------------------------------------------------------------


def table(results: Results, seconds: float) -> list[str]:
    """Return the table of all methods: means over seeds, with the standard deviation between them."""
    lines = [
        "| method | tales accepted | entropy, nats per tale | three friends | loss above the floor | sampling, "
        "judging, training | steps |",
        f"|{'---|' * 7}",
    ]
    for method in METHODS:
        if not (rows := results.of(method, seconds)):
            continue
        shown = [
            mean_and_spread([row["accepted"] for row in rows], ".1%"),
            mean_and_spread([row["entropy"] for row in rows], ".1f"),
            mean_and_spread([row["three_friends"] for row in rows], ".1%"),
            mean_and_spread([row["excess"] for row in rows], ".4f"),
        ]
        parts = ("sample_s", "judge_s", "train_s")
        means = [statistics.fmean(row[part] for row in rows) for part in parts if part in rows[0]]
        steps = statistics.fmean(row["steps"] for row in rows)
        seconds_of = ", ".join(f"{mean:.0f}" for mean in means) + " s" * bool(means)
        lines.append(f"| {method} | {' | '.join(shown)} | {seconds_of} | {steps:,.0f} |")
    exact = f"| 100% | {tales.entropy():.2f} | {THREE_FRIENDS:.1%} | 0 | | |"
    return [*lines, f"| the grammar itself {exact}"]


def caption(results: Results, seconds: float) -> str:
    """Return the picture, in Markdown, and how the runs were measured."""
    threads = sorted({row["threads"] for method in METHODS for row in results.of(method, seconds)})
    shown = " or ".join(map(str, threads))
    clock = "seconds of CPU time" if threads == [1] else "seconds"
    return (
        f"![Share of tales accepted over {seconds:.0f} seconds, and over the entropy of what is written, a dot per "
        f"run; the star is the grammar](post_training.png)\n\n"
        f"Each run had {seconds:.0f} {clock} on {shown} thread{'s' * (threads != [1])}. Points on the way are shares "
        f"of {CURVE_SAMPLES} tales."
    )


def plot(results: Results, seconds: float, out: Path) -> None:
    """Plot the share of accepted tales over the seconds, a mean over seeds, and over the entropy, a dot per run."""
    figure = Figure(figsize=(11.5, 4.4), dpi=110, layout="constrained")
    over_time, over_entropy = figure.subplots(1, 2)
    for number, method in enumerate(METHODS):
        if not (rows := results.of(method, seconds)):
            continue
        colour = colormaps["tab10"](number)
        dots = [(row["entropy"], row["accepted"]) for row in rows]
        over_entropy.plot(*zip(*dots, strict=True), "o", ms=5, color=colour, label=method)
        if points := list(zip(*(row["curve"] for row in rows), strict=False)):  # by point, then by seed
            means = [[statistics.fmean(values) for values in zip(*of_seeds, strict=True)][:2] for of_seeds in points]
            line = [(x, y) for x, y in means if x < 0.97 * seconds]  # the last point is that of SAMPLES tales
            line.append((seconds, statistics.fmean(row["accepted"] for row in rows)))
            over_time.plot(*zip(*line, strict=True), color=colour, marker=".", label=method)
    over_entropy.plot(tales.entropy(), 1, "k*", ms=12, label="the grammar itself")
    over_entropy.axvline(tales.entropy(), color="#868e96", lw=1, ls="--")
    over_time.set_xlabel("seconds of sampling, judging and training")
    over_entropy.set_xlabel("entropy of what is written, nats per tale")
    over_time.set_ylabel("share of sampled tales accepted")
    for axes in (over_time, over_entropy):
        axes.set_ylim(top=1.02)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    over_entropy.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_file(out) as temporary:
        figure.savefig(temporary)


def quick(folder: Path) -> None:
    """Train a tiny model that knows a few tales by heart, and each method for a second; print the table."""
    data, fresh, base = (str(folder / name) for name in ("tales", "fresh", "base"))
    script("prepare_data", "--input=tales:20", "--tokenizer=bpe:1000", f"--out={data}", folder=folder)
    tokenizer = f"--tokenizer={data}/tokenizer.json"
    script("prepare_data", "--input=tales:40:7", tokenizer, f"--out={fresh}", folder=folder)
    config = with_settings(PROJECT / "configs" / "tales.toml", {"data.path": data, **TINY})
    start_run(config, base, log=lambda line: None).train()
    setting, results = Setting(base, data, fresh, 10, 2, 40, 4), Results(folder / "results.jsonl")
    measure([(method, 1, 1.0, setting) for method in METHODS], 2, results, train)
    plot(results, 1.0, folder / "post_training.png")
    print("\n".join(table(results, 1.0)))


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("methods", nargs="*", default=[], metavar="METHOD", help=f"{'; '.join(METHODS)}; default: all")
    arguments = equal_time.parse(parser, SEEDS, SECONDS)
    if unknown := set(arguments.methods) - set(METHODS):
        parser.error(f"METHOD: no method {unknown.pop()!r}: choose from {'; '.join(METHODS)}")
    if arguments.quick:
        with tempfile.TemporaryDirectory() as name:
            quick(Path(name))
        return
    results = Results(RESULTS)
    if not arguments.redraw:
        for path, prepared in PREPARED_TALES.items():
            if not (find_path(path) / "meta.json").is_file():
                script("prepare_data", *prepared, f"--out={path}", folder=find_path("."))
        setting = Setting(str(existing_run("tales-001")), "data/tales", "data/tales_fresh")
        methods = arguments.methods or METHODS
        jobs = [(method, seed, arguments.seconds, setting) for seed in arguments.seeds for method in methods]
        measure(jobs, arguments.jobs, results, train)
    plot(results, arguments.seconds, PAGE.with_name("post_training.png"))
    write(PAGE, {"post-training": [*table(results, arguments.seconds), "", caption(results, arguments.seconds)]})


if __name__ == "__main__":
    cli.run(main)
