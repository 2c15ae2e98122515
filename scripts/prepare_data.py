"""Turn text into token files that a training run reads.

    python scripts/prepare_data.py --input tales --tokenizer bpe:2048 --val_fraction 0.01 --out data/tales
    python scripts/prepare_data.py --input story --out data/story
    python scripts/prepare_data.py --input book.txt --tokenizer char --out data/book
    python scripts/prepare_data.py --input "texts/**/*.txt" --tokenizer bpe:4096 --out data/texts
    cat book.txt | python scripts/prepare_data.py --input - --out data/book
    python scripts/prepare_data.py --input shakespeare --tokenizer char --out data/shakespeare_char
    python scripts/prepare_data.py --input pairs.jsonl --prompt_field question --target_field answer --out data/pairs
    python scripts/prepare_data.py --input https://example.org/books.zip --sha256 HEX --out data/books
    python scripts/prepare_data.py --input chats.jsonl.gz notes/ --field text --weights 1 3 --out data/both
    python scripts/prepare_data.py --input alt.txt --encoding latin-1 --out data/alt
    python scripts/prepare_data.py --list

The input is a text known by name (--list), a file, a folder (its .txt and .md files), a glob, or - for standard input:
text in any language, of any size; UTF-8, unless --encoding says otherwise; unpacked on the way where its name ends in
.gz. A URL, or a name such as shakespeare, is downloaded to data/downloads once; where that breaks off, the same command
goes on. A .zip or .tar archive, downloaded or not, is unpacked there and read as a folder.

Each file is a document; with --separator, each stretch of a file between separators; with --field, each line of a
.jsonl file; with --prompt_field and --target_field, each line is a pair of them, for the objective conditional. A field
may be a template: --prompt_field "Question: {question}\\nAnswer:" --target_field " {answer}".

The last tenth of the characters is held out for validation; of ten documents or more, the last tenth of the documents.
Of several inputs each is so divided, and --weights says how many times the training part of each is read.
"""

from pathlib import Path

from gpt.cli import Parser, run


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--input", nargs="+", metavar="TEXT", help="a name of --list, a file, a folder, a glob, a URL, or -; or several"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        default=[],
        metavar="X",
        help="how many times each input is read in a pass over the training split, as in 1 3 or 0.5 1 (default: once)",
    )
    parser.add_argument("--sha256", default="", metavar="HEX", help="the checksum of the input, a file or a download")
    parser.add_argument("--out", metavar="FOLDER", help="where the token files go, such as data/mine")
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
    parser.add_argument(
        "--encoding", default="", metavar="NAME", help="of the files, such as latin-1 or gb18030 (default: UTF-8)"
    )
    parser.add_argument("--field", default="", metavar="NAME", help="of a .jsonl: each line's field that is a text")
    for name, what in (("prompt", "is given"), ("target", "is to be learnt, after the prompt")):
        parser.add_argument(
            f"--{name}_field", default="", metavar="NAME", help=f"of a .jsonl: the field of each line that {what}"
        )
    parser.add_argument("--val_input", metavar="TEXT", help="validate on this text instead of holding out a share")
    parser.add_argument("--list", action="store_true", help="show the texts that are known by name")
    arguments = parser.parse_args()
    if arguments.list:
        from gpt.corpus import list_texts

        print(list_texts())
        return
    if arguments.input is None or arguments.out is None:
        parser.error("--input and --out are needed, a text and a new folder; --list shows the texts known by name")
    fields = tuple(_unescaped(name) for name in (arguments.prompt_field, arguments.target_field) if name)
    if len(fields) == 1:
        parser.error("--prompt_field and --target_field name the two halves of a pair: both are needed")
    if fields and arguments.separator:
        parser.error("--separator means nothing with --prompt_field: each line of a .jsonl is a pair")
    if fields and arguments.field:
        parser.error("--field names a text, --prompt_field and --target_field a pair: one or the other")
    if len(arguments.input) > 1 and arguments.sha256:
        parser.error("--sha256 is the checksum of one input, not of several")

    from gpt.corpus import open_corpus
    from gpt.prepare import prepare_data
    from gpt.prepared import describe

    separator, encoding = _unescaped(arguments.separator), arguments.encoding
    fields = fields or tuple(filter(None, [_unescaped(arguments.field)]))
    corpora = [open_corpus(source, separator, arguments.sha256, fields, encoding) for source in arguments.input]
    val_corpus = None
    if arguments.val_input is not None:
        val_corpus = open_corpus(arguments.val_input, separator, "", fields, encoding)
    out, weights = Path(arguments.out), arguments.weights
    data = prepare_data(corpora, arguments.tokenizer, out, arguments.val_fraction, val_corpus, weights)
    print(describe(data))


def _unescaped(text: str) -> str:
    """A text with the line ends and tabs that a command line writes as \\n and \\t."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


if __name__ == "__main__":
    run(main)
