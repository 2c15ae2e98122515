"""Turn text into token files that a training run reads.

    python scripts/prepare_data.py --input tales --tokenizer bpe:2048 --val_fraction 0.01 --out data/tales
    python scripts/prepare_data.py --input story --out data/story
    python scripts/prepare_data.py --input book.txt --tokenizer char --out data/book
    python scripts/prepare_data.py --input "texts/**/*.txt" --tokenizer bpe:4096 --out data/texts
    cat book.txt | python scripts/prepare_data.py --input - --out data/book
    python scripts/prepare_data.py --input shakespeare --tokenizer char --out data/shakespeare_char
    python scripts/prepare_data.py --input pairs.jsonl --prompt_field question --target_field answer --out data/pairs
    python scripts/prepare_data.py --input https://example.org/books.zip --sha256 HEX --out data/books

The input is a bundled text (story), tales of the grammar in gpt/tales.py (tales:N are N of them, tales:N:SEED are
others; summaries:N:SEED are pairs: a tale, and what happens in it in short), a file, a folder (its .txt and .md files),
a glob, or - for standard input: UTF-8 text in any language, of any size. A URL, or shakespeare, is downloaded to
data/downloads once; where that breaks off, the same command goes on. A .zip or .tar archive, downloaded or not, is
unpacked there and read as a folder. Each file is a document; with --separator, each stretch of a file between
separators; with --prompt_field and --target_field, each line of a .jsonl is a pair of them, for the objective
conditional. The last tenth of the characters is held out for validation; of ten documents or more, the last tenth of
the documents.
"""

from pathlib import Path

from gpt.cli import Parser, run


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--input",
        required=True,
        metavar="TEXT",
        help="story, tales, summaries, shakespeare, a file, a folder, a glob, a URL, or -",
    )
    parser.add_argument("--sha256", default="", metavar="HEX", help="the checksum of the input, a file or a download")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the token files go, such as data/mine")
    parser.add_argument(
        "--tokenizer",
        default="gpt2",
        metavar="NAME",
        help="gpt2, char, bpe:N with N tokens in all, or a tokenizer.json (default: gpt2)",
    )
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.1,
        metavar="X",
        help="share of the text held out for validation (default: 0.1)",
    )
    parser.add_argument(
        "--separator",
        default="",
        metavar="TEXT",
        help="what stands between documents of a file, such as '<|endoftext|>' or '\\n\\n' (default: a file is one)",
    )
    for name, what in (("prompt", "is given"), ("target", "is to be learnt, after the prompt")):
        parser.add_argument(
            f"--{name}_field", default="", metavar="NAME", help=f"of a .jsonl: the field of each line that {what}"
        )
    parser.add_argument("--val_input", metavar="TEXT", help="validate on this text instead of holding out a share")
    arguments = parser.parse_args()
    fields = tuple(filter(None, (arguments.prompt_field, arguments.target_field)))
    if len(fields) == 1:
        parser.error("--prompt_field and --target_field name the two halves of a pair: both are needed")
    if fields and arguments.separator:
        parser.error("--separator means nothing with --prompt_field: each line of a .jsonl is a pair")

    from gpt.corpus import open_corpus
    from gpt.prepare import prepare_data
    from gpt.prepared import describe

    separator = arguments.separator.replace("\\n", "\n").replace("\\t", "\t")
    corpus = open_corpus(arguments.input, separator, arguments.sha256, fields)
    val_corpus = open_corpus(arguments.val_input, separator, fields=fields) if arguments.val_input is not None else None
    data = prepare_data(corpus, arguments.tokenizer, Path(arguments.out), arguments.val_fraction, val_corpus)
    print(describe(data))


if __name__ == "__main__":
    run(main)
