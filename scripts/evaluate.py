"""Measure a trained run on its validation split, or on any text.

    python scripts/evaluate.py --run story-001
    python scripts/evaluate.py --run story-001 --text other.txt --stride 32

A perplexity depends on the tokenizer, the context and the stride, so these are printed with it; bits per byte can be
compared across tokenizers.
"""

from gpt.cli import Parser, add_run_options, existing_run, run


def main() -> None:
    parser = Parser(__doc__)
    add_run_options(parser)
    parser.add_argument(
        "--text",
        metavar="TEXT",
        help="a text to measure on: a file, folder, glob, story or - (default: the validation split)",
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
    arguments = parser.parse_args()
    folder = existing_run(arguments.run)

    import numpy as np

    from gpt.checkpoint import load_model
    from gpt.corpus import open_corpus
    from gpt.loss import evaluate
    from gpt.runtime import choose_device, tune

    tune()
    device = choose_device(arguments.device)
    model, tokenizer, checkpoint = load_model(folder, arguments.checkpoint)
    if arguments.text is None:
        source, tokens, n_bytes = validation_split(folder, checkpoint)
    else:
        corpus = open_corpus(arguments.text)
        text = "".join(corpus.pieces())
        source, tokens, n_bytes = corpus.name, np.array(tokenizer.encode(text)), len(text.encode())
    context = model.config.context_length if arguments.context is None else arguments.context
    stride = context if arguments.stride is None else arguments.stride
    result = evaluate(
        model.to(device), tokens, context, arguments.batch_size, stride=stride,
        bytes_per_token=n_bytes / max(1, len(tokens)), device=device,
    )  # fmt: skip
    print(f"run             {folder}, step {checkpoint.state['step']:,}")
    print(f"text            {source}: {result.tokens:,} tokens predicted")
    print(f"measured with   tokenizer {tokenizer.name}, context {context}, stride {stride}")
    print(f"loss            {result.loss:.4f} nats per token, standard error {result.standard_error:.4f}")
    print(f"perplexity      {result.perplexity:,.2f}")
    print(f"bits per token  {result.bits_per_token:.4f}")
    print(f"bits per byte   {result.bits_per_byte:.4f}")


def validation_split(folder, checkpoint):
    """The name, tokens and bytes of the split that the run was validated on."""
    from gpt.checkpoint import RunFolder
    from gpt.corpus import find_path
    from gpt.data import load_data

    data = load_data(find_path(RunFolder(folder).config().data.path), verify=True)
    if data.checksums != checkpoint.state["data"]:
        raise ValueError(f"{data.folder} was prepared anew since this run began: name a text with --text FILE")
    return f"validation split of {data.folder}", data.val.tokens, data.val.bytes


if __name__ == "__main__":
    run(main)
