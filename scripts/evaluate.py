"""Measure a trained run on its validation split, or on any text.

    python scripts/evaluate.py --run story-001
    python scripts/evaluate.py --run story-001 --text other.txt --stride 32
    python scripts/evaluate.py --run story-001 --weights int8
    python scripts/evaluate.py --run tales-001 --continuations 100
    python scripts/evaluate.py --run tales-001 --samples 200 --checkpoint all
    python scripts/evaluate.py --pretrained gpt2 --text book.txt --context 1024 --stride 512

A perplexity depends on the tokenizer, the context and the stride, so these are printed with it; bits per byte can be
compared across tokenizers. On its validation split a run is compared with the baselines of that split.

Beside the loss stands how often the next token was the model's likeliest, or among its five likeliest. And what the
model makes of a text: windows at --continuations fixed places are cut in two, the model continues the first halves
greedily, and BLEU and ROUGE compare what it writes with the second halves. What each score can't see is said below.

A run with another objective than the next token is measured by that objective, on its validation split.

--weights int8 says what rounded weights, as generate.py may take them, add to the loss.

A run on tales is judged by their grammar as well: how many of --samples tales that it writes at temperature 1 the
grammar accepts, and which rule the others break first. --checkpoint all judges every checkpoint, and draws what was
learnt when.
"""

import dataclasses
from functools import partial

from gpt.run.cli import Parser, add_model_options, add_weights_option, chosen_run, run


def main() -> None:
    parser = Parser(__doc__)
    add_model_options(parser)
    parser.add_argument(
        "--text",
        metavar="TEXT",
        help="a text to measure on: a file, folder, glob, story, tales:N:SEED or - (default: the validation split)",
    )
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens the model sees at once (default: its context_length)"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from one window to the next; below the context, windows overlap (default: the context)",
    )
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="windows read at once (default: 16)")
    parser.add_argument(
        "--samples",
        type=int,
        default=500,
        metavar="N",
        help="how many tales a run on tales writes to be judged (default: 500)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed for sampling these tales (default: 0)")
    parser.add_argument(
        "--continuations",
        type=int,
        default=20,
        metavar="N",
        help="how many prompts from the text are continued, for BLEU and ROUGE (default: 20)",
    )
    add_weights_option(parser)
    arguments = parser.parse_args()
    every = arguments.checkpoint == "all"
    if arguments.samples < every:
        parser.error(f"--samples must be at least {int(every)}, not {arguments.samples}")
    if arguments.continuations < 0:
        parser.error(f"--continuations must be at least 0, not {arguments.continuations}")
    for option in ("text", "context", "stride"):
        if every and getattr(arguments, option) is not None:
            parser.error(f"--{option} means nothing with --checkpoint all, which judges what is written")
    if every and arguments.weights == "int8":
        parser.error("--weights int8 is measured on one checkpoint, not with --checkpoint all")
    if not 0 <= arguments.seed < 2**63:
        parser.error(f"--seed must be 0 to {2**63 - 1}, not {arguments.seed}")
    if arguments.pretrained is not None and (every or arguments.text is None):
        parser.error("published weights have no checkpoints and no validation split: name a text, --text FILE")
    folder = chosen_run(arguments)

    from gpt.data import encode_documents
    from gpt.evaluation.baselines import compute_baselines
    from gpt.evaluation.samples import (
        describe_blind_spots,
        describe_continuations,
        describe_verdict,
        judge_checkpoints,
        judge_continuations,
        judge_samples,
    )
    from gpt.exchange.models import open_model, run_data
    from gpt.loss import evaluate
    from gpt.run.logging import comparison, describe_evaluation
    from gpt.system.device import choose_device
    from gpt.system.memory import set_allocator_flags
    from gpt.text.sources import open_corpus
    from gpt.variants.int8 import Int8GPTModel

    set_allocator_flags()
    device = choose_device(arguments.device)
    if every:
        judge_checkpoints(folder, arguments.samples, arguments.seed, device)
        return
    subject = open_model(folder, arguments.checkpoint, arguments.pretrained)
    objective, tokenizer, checkpoint = subject.objective.to(device), subject.tokenizer, subject.checkpoint
    config, model = checkpoint and checkpoint.config, objective.model
    if not objective.reads_any_text:
        for option in ("text", "context", "stride"):
            if getattr(arguments, option) is not None:
                parser.error(
                    f"--{option} is for models that predict the next token; this one was trained with the objective "
                    f"{config.objective.name}, and is measured on its validation split"
                )
        if arguments.weights == "int8":
            parser.error(f"--weights int8 is for models that predict the next token, not for {config.objective.name}")
        data = objective.transform(run_data(folder, checkpoint))
        config = dataclasses.replace(config, eval_batches=0, batch_size=arguments.batch_size)
        result = objective.evaluate(config, data, device)
        print(f"model           {subject.name}")
        print(f"objective       {config.objective.name}")
        print(f"text            validation split of {data.folder}: {result.n_tokens:,} tokens counted")
        print(describe_evaluation(result))
        measure = compute_baselines(objective, config, data)
        print(f"\n{comparison(measure, 'this run', result)}")
        if measure.entropy_floor is not None and arguments.samples:
            print(f"\n{describe_verdict(judge_samples(objective, data, arguments.samples, arguments.seed)[1])}")
        return
    prepend_eot = subject.prepend_eot
    data = None if arguments.text is not None else run_data(folder, checkpoint)
    if data is not None:
        source, tokens = f"validation split of {data.folder}", data.val.tokens
        bytes_per_token = data.bytes_per_token
    else:
        corpus = open_corpus(arguments.text)
        texts = ["".join(document) for document in corpus.documents()]
        tokens = encode_documents(texts if prepend_eot else ["".join(texts)], tokenizer, prepend_eot)
        source = corpus.name
        bytes_per_token = sum(len(text.encode()) for text in texts) / max(1, len(tokens) - prepend_eot)
    context = model.config.context_length if arguments.context is None else arguments.context
    stride = context if arguments.stride is None else arguments.stride
    eot_id = tokenizer.eot_id if prepend_eot else None
    measured = partial(
        evaluate, tokens=tokens, context_length=context, batch_size=arguments.batch_size, stride=stride,
        eot_id=eot_id, bytes_per_token=bytes_per_token, device=device, top_k=(1, 5),
    )  # fmt: skip
    writer = Int8GPTModel(model) if arguments.weights == "int8" else model
    rounded = None if writer is model else measured(writer)
    result = measured(model)
    print(f"model           {subject.name}")
    print(f"text            {source}: {result.n_tokens:,} tokens predicted")
    windows = "windows of one document" if prepend_eot else f"stride {stride}"
    print(f"measured with   tokenizer {tokenizer.name}, context {context}, {windows}")
    print(f"loss            {result.loss:.4f} nats per token, standard error {result.standard_error:.4f}")
    if rounded is not None:
        print(
            f"int8 weights    loss {rounded.loss:.4f} nats per token, {rounded.loss - result.loss:+.4f}; "
            f"accuracy {rounded.accuracy():.2%}"
        )
    print(f"perplexity      {result.perplexity:,.2f}")
    print(f"bits per token  {result.bits_per_token:.4f}")
    print(f"bits per byte   {result.bits_per_byte:.4f}")
    print(f"accuracy        {result.accuracy():.2%} of tokens, standard error {result.accuracy_error():.2%}")
    print(f"top-5 accuracy  {result.accuracy(5):.2%} of tokens, standard error {result.accuracy_error(5):.2%}")
    if data is not None:
        measure = compute_baselines(objective, dataclasses.replace(config, eval_batches=0), data)
        if context < model.config.context_length:
            measure = dataclasses.replace(measure, entropy_floor=None)  # tales cut in two have none
        print(f"\n{comparison(measure, 'this run', result)}")
        if measure.entropy_floor is not None and arguments.samples:
            _, verdict = judge_samples(objective, data, arguments.samples, arguments.seed)
            print(f"\n{describe_verdict(verdict)}")
    continued = None
    if arguments.continuations:
        continued = judge_continuations(writer, tokens, tokenizer, context, arguments.continuations, eot_id)
        print(f"\n{describe_continuations(continued) if continued else 'No document is long enough to be continued.'}")
    print(f"\n{describe_blind_spots(['accuracy', 'top-5 accuracy', *(['BLEU', 'ROUGE'] if continued else [])])}")


if __name__ == "__main__":
    run(main)
