"""Evaluate a model as a whole: its loss, baselines, sampled tales and continuations."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gpt.config import DataConfig, TrainConfig
from gpt.evaluation.baselines import Baselines, compute_baselines
from gpt.evaluation.requests import Answers, answer_requests, holds_requests, unseen_requests
from gpt.evaluation.samples import Continuations, Variety, check_samples, continue_prompts
from gpt.exchange.models import LoadedModel
from gpt.loss import Evaluation
from gpt.objectives.ranks import evaluate_top_k
from gpt.text.encode import encode_documents, encode_flagged
from gpt.text.prepare import check_lengths
from gpt.text.sources import Corpus
from gpt.text.tales import GrammarReport
from gpt.token_files import PreparedData, TokenFile
from gpt.tokenizer import Tokenizer
from gpt.variants.quantized import QuantizedGPTModel


@dataclass(frozen=True)
class ReportOptions:
    """How a model is evaluated."""

    context_length: int | None = None  # None: the model's
    stride: int | None = None  # None: the context
    batch_size: int = 16
    weights: str = "float32"  # "bfloat16", "int8": also evaluate such weights, and generate with them
    n_samples: int = 500  # tales to sample if the run was trained on tales or on requests for them
    n_continuations: int = 20
    seed: int = 0


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class TextTokens:
    """A text to evaluate on."""

    name: str
    tokens: np.ndarray  # token ids
    bytes_per_token: float  # UTF-8 bytes per predicted token


@dataclass(frozen=True, eq=False)
class ModelReport:
    """The results of evaluating a model."""

    evaluation: Evaluation
    text: str  # the name of the text
    rounded: Evaluation | None = None  # the same with weights of fewer bits
    baselines: Baselines | None = None  # known for the run's own validation split
    grammar: GrammarReport | None = None  # on sampled tales
    variety: Variety | None = None  # of these tales
    continuations: Continuations | None = None
    requests: dict[str, Answers] | None = None  # way of sampling -> answers to requests


def split_tokens(data: PreparedData) -> TextTokens:
    """Return the validation split of prepared data."""
    return TextTokens(f"validation split of {data.folder}", data.val.tokens, data.bytes_per_token)


def by_documents(tokenizer: Tokenizer, prepend_eot: bool) -> bool:
    """Return whether a text is evaluated document by document: the token that ends one starts the next."""
    return prepend_eot and tokenizer.bos_id == tokenizer.eot_id


def encode_text(corpus: Corpus, tokenizer: Tokenizer, prepend_eot: bool, special: bool = False) -> TextTokens:
    """Return the token ids of a corpus; with `special`, names of special tokens in it are these tokens.

    End-of-text tokens stand around its documents, as in prepared data, with `prepend_eot` or if there are several. It
    is one text if the tokenizer has no such token, and if another token than this one starts a text.
    """
    texts = ["".join(document) for document in corpus.documents()]
    several = len(texts) > 1 and tokenizer.eot_id is not None and not prepend_eot
    if several or by_documents(tokenizer, prepend_eot):
        tokens = encode_documents(texts, tokenizer, True, special)
    else:
        start = [tokenizer.bos_id] * prepend_eot
        tokens = np.array([*start, *tokenizer.encode("".join(texts), special)], np.int64)
    n_bytes = sum(len(text.encode()) for text in texts)
    return TextTokens(corpus.name, tokens, n_bytes / max(1, len(tokens) - (prepend_eot or several)))


def text_as_data(corpus: Corpus, tokenizer: Tokenizer, prepend_eot: bool, special: bool = False) -> PreparedData:
    """Return a corpus as if it had been prepared and held out for validation, for objectives that read such data.

    Conversations are written by the tokenizer's template. ValueError for pairs whose target is empty, for a record that
    is no conversation, and for a corpus without text.
    """
    if corpus.format:
        conversations = list(corpus.documents())
        check_lengths(corpus, np.array([*map(len, conversations)], np.int64))
        encoded = [encode_flagged(conversation, tokenizer) for conversation in conversations]
        ids, flags = (np.concatenate(parts) for parts in list(zip(*encoded, strict=True))[:2])
        n_characters, n_bytes = sum(map(len, conversations)), sum(size for *_, size in encoded)
        split = TokenFile(Path(corpus.name), ids, len(conversations), n_characters, n_bytes, "", flags)
        return PreparedData(
            Path(corpus.name), corpus.name, tokenizer, False, split, split, preferences=corpus.unit == 2
        )  # fmt: skip
    texts, paired = ["".join(document) for document in corpus.documents()], len(corpus.fields) == 2
    check_lengths(corpus, np.array([len(text) for text in texts], np.int64))
    has_eot = tokenizer.eot_id is not None and (prepend_eot or len(texts) > 1)
    tokens = encode_documents(texts, tokenizer, has_eot, special)
    n_bytes = sum(len(text.encode()) for text in texts)
    split = TokenFile(Path(corpus.name), tokens, len(texts), sum(map(len, texts)), n_bytes, sha256="")
    return PreparedData(Path(corpus.name), corpus.name, tokenizer, has_eot, split, split, paired)


def evaluation_config(loaded: LoadedModel) -> TrainConfig:
    """Return the config of a run; for published weights one that reads whole texts."""
    if loaded.checkpoint is not None:
        return loaded.checkpoint.config
    return TrainConfig(model=loaded.objective.model.config, data=DataConfig(packing="document"))


def report_on_objective(
    loaded: LoadedModel, data: PreparedData, options: ReportOptions, device: torch.device, own: bool = True
) -> ModelReport:
    """Evaluate a run by its own objective on the validation split of `data`, with baselines if these are its `own`."""
    objective = loaded.objective
    data = objective.transform(data)
    config = replace(evaluation_config(loaded), eval_batches=0, batch_size=options.batch_size)
    evaluation = objective.evaluate(config, data, device)
    if not own:
        return ModelReport(evaluation, data.source)
    baselines = compute_baselines(objective, config, data)
    grammar, variety = _check_tales(loaded, data, baselines, options)
    answers = _ask_for_tales(loaded, data, options)
    name = split_tokens(data).name
    return ModelReport(evaluation, name, baselines=baselines, grammar=grammar, variety=variety, requests=answers)


def report_on_text(
    loaded: LoadedModel, text: TextTokens, data: PreparedData | None, options: ReportOptions, device: torch.device
) -> ModelReport:
    """Evaluate next-token prediction on a text, with baselines if it is the validation split of `data`.

    ValueError for a context longer than the model's or a stride longer than the context.
    """
    model = loaded.objective.model
    context_length = model.config.context_length if options.context_length is None else options.context_length
    eot_id = loaded.tokenizer.eot_id if by_documents(loaded.tokenizer, loaded.prepend_eot) else None
    evaluate_model = partial(
        evaluate_top_k,
        tokens=text.tokens,
        context_length=context_length,
        top_k=(1, 5),
        batch_size=options.batch_size,
        stride=context_length if options.stride is None else options.stride,
        eot_id=eot_id,
        bytes_per_token=text.bytes_per_token,
        device=device,
    )
    rounded_model = None if options.weights == "float32" else QuantizedGPTModel(model, options.weights)
    rounded = evaluate_model(rounded_model) if rounded_model else None
    evaluation = evaluate_model(model)
    baselines = grammar = variety = continuations = None
    if data is not None:
        baselines = compute_baselines(loaded.objective, replace(loaded.checkpoint.config, eval_batches=0), data)
        if context_length < model.config.context_length:
            baselines = replace(baselines, entropy_floor=None)  # it holds for whole documents only
        grammar, variety = _check_tales(loaded, data, baselines, options)
    if options.n_continuations:
        continuations = continue_prompts(
            rounded_model or model, text.tokens, loaded.tokenizer, context_length, options.n_continuations, eot_id
        )
    return ModelReport(evaluation, text.name, rounded, baselines, grammar, variety, continuations)


def _check_tales(
    loaded: LoadedModel, data: PreparedData, baselines: Baselines, options: ReportOptions
) -> tuple[GrammarReport, Variety] | tuple[None, None]:
    if baselines.entropy_floor is None or not options.n_samples:
        return None, None
    return check_samples(loaded.objective, data, options.n_samples, options.seed)[1:]


def _ask_for_tales(loaded: LoadedModel, data: PreparedData, options: ReportOptions) -> dict[str, Answers] | None:
    if not (holds_requests(data) and options.n_samples):
        return None
    asked, model = unseen_requests(data, options.n_samples, options.seed), loaded.objective.model
    ways = {"greedy": 0.0, "temperature 1": 1.0}
    return {name: answer_requests(model, loaded.tokenizer, asked, t, options.seed) for name, t in ways.items()}
