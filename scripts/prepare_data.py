"""Turn text into token files for training.

    python scripts/prepare_data.py --list
    python scripts/prepare_data.py --input tales --tokenizer bpe:2048 --val_fraction 0.01 --out data/tales
    python scripts/prepare_data.py --input story --out data/story
    python scripts/prepare_data.py --input book.txt --tokenizer char --out data/book
    python scripts/prepare_data.py --input "texts/**/*.txt" --tokenizer bpe:4096 --out data/texts
    cat book.txt | python scripts/prepare_data.py --input - --out data/book
    python scripts/prepare_data.py --input old.txt.gz --encoding cp1252 --out data/old
    python scripts/prepare_data.py --input shakespeare --tokenizer char --out data/shakespeare_char
    python scripts/prepare_data.py --input story tales python-docs --weights 3 0.5 1 --tokenizer bpe:4096 --out data/mix
    python scripts/prepare_data.py --input articles.csv --field text --out data/articles
    python scripts/prepare_data.py --input pairs.jsonl --prompt_field question --target_field answer --out data/pairs
    python scripts/prepare_data.py --input tasks.json --prompt_field "Task: {task}\\n\\n{input}\\n\\n" \\
        --target_field "{output}" --out data/tasks
    python scripts/prepare_data.py --input chats.jsonl --format messages --tokenizer smollm2 --out data/chats
    python scripts/prepare_data.py --input chats.txt --special_tokens "<|user|>" "<|bot|>" --out data/chats
    python scripts/prepare_data.py --input https://example.org/books.zip --sha256 HEX --out data/books
    python scripts/prepare_data.py --input hub:HuggingFaceFW/fineweb-edu:sample-10BT --val_fraction 0.001 --out data/edu
    python scripts/prepare_data.py --input forms:480:1 --val_input forms-test:100:1 --tokenizer smollm2 --out data/forms

An input is a text known by name (see --list), a file, a folder (its .txt and .md files), a glob, a URL, or - for
standard input: text in any language and of any size, in UTF-8 or the --encoding you name. tales:N are N tales and
tales:N:SEED are others; summaries:N:SEED are pairs of a tale and its summary. A .gz, .bz2, .xz or .zst is decompressed.
A URL, or a text that "needs the network", is downloaded to data/downloads once; if that breaks off, run the same
command again to resume. A .zip or .tar archive is unpacked there and read as a folder.

hub:OWNER/DATASET[@REVISION][:CONFIG][:FIELD] is the training split of a data set on the Hugging Face hub. The config
may be a folder of it, and the field is "text" unless you name another. Each file is downloaded when it is first read. A
split of more than --shard_tokens becomes several files. If the command is killed, run it again: it continues after
those.

Each file is a document; with --separator, each text between separators; with --field, that field of each record of a
.jsonl, .json, .csv, .tsv or .parquet (.txt and .md files remain plain text); with --prompt_field and --target_field,
each record is a pair, for the objective sft. A field may be a template: {name} is replaced by the text of that field,
{{ and }} are braces, and \\n is a line end. A name with dots leads into objects and lists, as in turns.0.value. With
--format, each record is a conversation, or two that end in a chosen and in a rejected answer. They are written by the
tokenizer's chat template, or as ChatML; docs/finetuning.md has the forms.

The last tenth of the characters of each input is held out for validation; with ten documents or more, the last tenth of
its documents. --weights say how often the rest of each input is repeated in the training split; validation text is
written once. A weight of 2.5 repeats it twice, and every other document a third time; an input of fewer than ten
training documents needs whole numbers.
"""

from gpt.run.cli import Parser, run
from gpt.text.prepare import add_prepare_options, describe, prepare_from
from gpt.text.sources import known_texts


def main() -> None:
    parser = Parser(__doc__)
    add_prepare_options(parser)
    arguments = parser.parse_args()
    print("\n".join(known_texts()) if arguments.list else describe(prepare_from(arguments)))


if __name__ == "__main__":
    run(main)
