"""Turn text into token files that a training run reads.

    python scripts/prepare_data.py --input tales --tokenizer bpe:2048 --val_fraction 0.01 --out data/tales
    python scripts/prepare_data.py --input story --out data/story
    python scripts/prepare_data.py --input book.txt --tokenizer char --out data/book
    python scripts/prepare_data.py --input "texts/**/*.txt" --tokenizer bpe:4096 --out data/texts
    cat book.txt | python scripts/prepare_data.py --input - --out data/book
    python scripts/prepare_data.py --input alt.txt.gz --encoding cp1252 --out data/alt
    python scripts/prepare_data.py --input shakespeare --tokenizer char --out data/shakespeare_char
    python scripts/prepare_data.py --input story tales python-docs --weights 3 0.5 1 --tokenizer bpe:4096 --out data/mix
    python scripts/prepare_data.py --input articles.jsonl --field text --out data/articles
    python scripts/prepare_data.py --input pairs.jsonl --prompt_field question --target_field answer --out data/pairs
    python scripts/prepare_data.py --input tasks.jsonl --prompt_field "Task: {task}\\n\\n{input}\\n\\n" \\
        --target_field "{output}" --out data/tasks
    python scripts/prepare_data.py --input https://example.org/books.zip --sha256 HEX --out data/books
    python scripts/prepare_data.py --list

The input is a text known by name (--list prints them: story, tales, python-docs and others; tales:N are N tales,
tales:N:SEED are others; summaries:N:SEED are pairs: a tale, and what happens in it in short), a file, a folder (its
.txt and .md files), a glob, or - for standard input: text in any language, of any size, in UTF-8 or the --encoding that
is named. A .gz is read as what is in it. A URL, or a text that --list says needs the network, is downloaded to
data/downloads once; where that breaks off, the same command goes on. A .zip or .tar archive, downloaded or not, is
unpacked there and read as a folder.

Each file is a document; with --separator, each stretch of a file between separators; with --field, that field of each
line of a .jsonl (.txt and .md files beside it stay text); with --prompt_field and --target_field, each line of a .jsonl
is a pair of them, for the objective conditional. A field may be a template: each {name} in it stands for that field's
text, {{ and }} for braces, \\n for a line end.

The last tenth of the characters of each input is held out for validation; of ten documents or more, the last tenth of
the documents. --weights say how many times the rest of each input is read in a pass over the training split; what is
held out is written once. With 2.5 it is read twice, and every other document a third time; an input of fewer than ten
training documents takes whole numbers.
"""

from pathlib import Path

from gpt.run.cli import Parser, run


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--list", action="store_true", help="print the texts known by name, and exit")
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="a text known by name (--list), a file, a folder, a glob, a URL, or -; of several, one after the other",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        default=[],
        metavar="X",
        help="for each input, how many times it is read in a pass over the training split (default: 1 each)",
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
        "--encoding", default="utf-8", metavar="NAME", help="of the input, any that Python knows (default: utf-8)"
    )
    parser.add_argument(
        "--field", default="", metavar="NAME", help="of a .jsonl: the field of each line that is a document"
    )
    for name, what in (("prompt", "is given"), ("target", "is to be learnt, after the prompt")):
        parser.add_argument(
            f"--{name}_field", default="", metavar="NAME", help=f"of a .jsonl: the field of each line that {what}"
        )
    parser.add_argument("--val_input", metavar="TEXT", help="validate on this text instead of holding out a share")
    arguments = parser.parse_args()
    if arguments.list:
        from gpt.text.sources import known_texts

        print("\n".join(known_texts()))
        return
    if missing := [f"--{name}" for name in ("input", "out") if getattr(arguments, name) is None]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    pair = tuple(filter(None, (arguments.prompt_field, arguments.target_field)))
    if len(pair) == 1:
        parser.error("--prompt_field and --target_field name the two halves of a pair: both are needed")
    if pair and arguments.field:
        parser.error("--field names a document, --prompt_field and --target_field a pair: one or the other")
    if pair and arguments.separator:
        parser.error("--separator means nothing with --prompt_field: each line of a .jsonl is a pair")
    if arguments.sha256 and len(arguments.input) > 1:
        parser.error(f"--sha256 is the checksum of a single input, not of {len(arguments.input)}")

    from gpt.text.prepare import prepare_data
    from gpt.text.sources import open_corpus
    from gpt.token_files import describe

    separator, *fields = (
        text.replace("\\n", "\n").replace("\\t", "\t")
        for text in (arguments.separator, *(pair or filter(None, [arguments.field])))
    )
    how = {"separator": separator, "fields": tuple(fields), "encoding": arguments.encoding}
    corpora = [open_corpus(source, sha256=arguments.sha256, **how) for source in arguments.input]
    val_corpus = open_corpus(arguments.val_input, **how) if arguments.val_input is not None else None
    data = prepare_data(
        corpora, arguments.tokenizer, Path(arguments.out), arguments.val_fraction, val_corpus, arguments.weights
    )
    print(describe(data))


if __name__ == "__main__":
    run(main)
