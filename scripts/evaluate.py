"""Measure a trained run on its validation split, or on any text.

    python scripts/evaluate.py --run story-001
    python scripts/evaluate.py --run story-001 --text other.txt --stride 32

A perplexity depends on the tokenizer, the context and the stride, so these are printed with it; bits per byte can be
compared across tokenizers.
"""

from gpt.cli import Parser, existing_run, run


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, metavar="NAME", help="a name under runs/, or a path")
    parser.add_argument("--text", metavar="FILE", help="a text to measure on (default: the run's validation split)")
    parser.add_argument("--context", type=int, metavar="N", help="tokens the model sees at once (default: its context_length)")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens from one window to the next; smaller than the context, windows overlap and each prediction sees more (default: the context)")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="windows read at once (default: 16)")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best, last, or a name such as step-000500 (default: best)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    arguments = parser.parse_args()
    folder = existing_run(arguments.run)

    import numpy as np

    from gpt.checkpoint import load_model
    from gpt.corpus import find_path, open_corpus
    from gpt.data import load_data
    from gpt.loss import evaluate
    from gpt.runtime import choose_device

    device = choose_device(arguments.device)
    config = RunFolder(folder).config()
    model, tokenizer, checkpoint = load_model(folder, arguments.checkpoint)
    context = model.config.context_length if arguments.context is None else arguments.context
    stride = context if arguments.stride is None else arguments.stride
    if arguments.text is None:
        data = load_data(find_path(config.data.path))
        source, tokens, n_bytes = f"validation split of {data.folder}", data.val.tokens, data.val.bytes
    else:
        corpus = open_corpus(arguments.text)
        pieces = [(tokenizer.encode(piece), len(piece.encode())) for piece in corpus.pieces()]
        source, tokens = corpus.name, np.concatenate([np.array(ids, np.int64) for ids, _ in pieces])
        n_bytes = sum(n for _, n in pieces)
if __name__ == "__main__":
    run(main)
