"""The command line: precedence of settings, how values are typed, where runs are found, and exit statuses."""

import os
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

from gpt.config import TrainConfig, from_dict
from gpt.run.cli import Parser, add_config_options, check_prepared, config_from, run, with_options
from gpt.system import paths
from gpt.system.paths import existing_run, next_run, run_path

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder next to an empty project."""
    (tmp_path / "here").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(paths, "PROJECT", tmp_path / "project")
    return tmp_path / "here"


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def config(*arguments: str, file: str | Path | None = None) -> TrainConfig:
    """Return the config of a file, overridden by arguments."""
    parser = Parser("A program.")
    add_config_options(parser)
    typed = parser.parse_args(list(arguments))
    return config_from(file, typed) if file else with_options(TrainConfig(), typed)


def typed(value) -> str | None:
    """Return the test id of a list of arguments."""
    return " ".join(value) if isinstance(value, list) else None


# --- settings ---------------------------------------------------------------------------------------------------------


def test_command_line_overrides_file_overrides_defaults(here):
    file = write(here / "x.toml", "max_steps = 5\nbatch_size = 3\n[model]\nn_layers = 2\nemb_dim = 96\n")
    found = config("--batch_size", "7", "--model.n_layers", "4", "--optim.lr", "0.5", file=file)
    assert (found.max_steps, found.batch_size) == (5, 7)
    assert (found.model.n_layers, found.model.emb_dim, found.model.n_heads) == (4, 96, 12)
    assert (found.optim.lr, found.optim.min_lr) == (0.5, 1e-4)
    expected = {
        "max_steps": 5,
        "batch_size": 7,
        "model": {"n_layers": 4, "emb_dim": 96},
        "optim": {"lr": 0.5},
    }
    assert found == from_dict(TrainConfig, expected)


def test_defaults(here):
    assert config() == TrainConfig()
    assert config(file=write(here / "empty.toml")) == TrainConfig()


def test_every_setting_has_an_option():
    """Every field gets a value other than its default."""
    options = {
        "--seed": 1, "--max_steps": 2, "--batch_size": 3, "--grad_accum_steps": 4, "--log_every": 5, "--eval_every": 6,
        "--eval_batches": 7, "--save_every": 8, "--keep_checkpoints": 9, "--sample_every": 10, "--sample_prompt": "a b",
        "--device": "cpu", "--dtype": "bfloat16", "--compile": "true", "--model.vocab_size": 11,
        "--model.context_length": 12, "--model.emb_dim": 26, "--model.n_heads": 13, "--model.n_layers": 14,
        "--model.drop_rate": 0.15, "--model.qkv_bias": "true", "--model.tie_embeddings": "true",
        "--model.init": "gpt2", "--model.implementation": "reference", "--data.path": "elsewhere", "--data.stride": 16,
        "--optim.lr": 17, "--optim.min_lr": 0.18, "--optim.warmup_steps": 19, "--optim.decay_steps": 20,
        "--optim.schedule": "linear", "--optim.weight_decay": 0.21, "--optim.beta1": 0.22, "--optim.beta2": 0.23,
        "--optim.grad_clip": 0.24,
    }  # fmt: skip
    found = config(*[str(word) for pair in options.items() for word in pair])
    for option, value in options.items():
        place = found
        for name in option.removeprefix("--").split("."):
            place = getattr(place, name)
        assert place == (True if value == "true" else value), option


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--compile"], True),
        (["--compile", "true"], True),
        (["--compile", "True"], True),
        (["--compile=true"], True),
        (["--compile", "--seed", "3"], True),
        (["--compile", "false"], False),
        (["--compile=FALSE"], False),
        (["--compile", "--compile", "false"], False),
        ([], False),
    ],
    ids=typed,
)
def test_flags_with_and_without_a_value(arguments, expected):
    assert config(*arguments).compile is expected


def test_an_option_turns_off_a_flag_of_the_file(here):
    file = write(here / "x.toml", "compile = true\n[model]\nqkv_bias = true\ntie_embeddings = true\n")
    found = config("--compile", "false", "--model.qkv_bias=false", file=file)
    assert (found.compile, found.model.qkv_bias, found.model.tie_embeddings) == (False, False, True)


@pytest.mark.parametrize(
    "arguments, name, expected",
    [
        (["--max_steps", "3", "--max_steps", "4"], "max_steps", 4),
        (["--max_steps=5"], "max_steps", 5),
        (["--sample_prompt", "100% of = it"], "sample_prompt", "100% of = it"),
        (["--sample_prompt", ""], "sample_prompt", ""),
        (["--sample_prompt=--dash"], "sample_prompt", "--dash"),
        (["--sample_prompt", "true"], "sample_prompt", "true"),
        (["--sample_prompt", r"a\n\tb\\n\d"], "sample_prompt", "a\n\tb\\n\\d"),
        (["--data.path", r"a\new\table"], "data.path", r"a\new\table"),
        (["--device", "1"], "device", "1"),
    ],
    ids=typed,
)
def test_text_values(arguments, name, expected):
    assert attrgetter(name)(config(*arguments)) == expected


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), ("1", 1.0), (".5", 0.5), ("5_0", 50.0)])
def test_number_formats(text, value):
    assert config("--optim.lr", text, "--optim.min_lr", "0").optim.lr == value


def test_options_cannot_be_abbreviated():
    with pytest.raises(ValueError, match="unknown option --max_step: did you mean --max_steps"):
        config("--max_step", "3")


def test_a_mistake_in_the_file_names_the_file(here):
    file = write(here / "x.toml", "[model]\nemb_dim = 16\nn_heads = 4\n")
    with pytest.raises(ValueError, match=r"^model\.emb_dim 16 is not divisible by n_heads 3"):
        config("--model.n_heads", "3", file=file)
    write(file, "[model]\nemb_dim = 16\nn_heads = 3\n")
    with pytest.raises(ValueError, match=r"x\.toml: model\.emb_dim 16 is not divisible by n_heads 3"):
        config(file=file)


def test_help_says_what_options_of_text_read(capsys):
    with pytest.raises(SystemExit):
        config("--help")
    shown = capsys.readouterr().out
    assert shown.endswith("In --sample_prompt: \\n is a line end, \\t a tab, \\\\ a backslash.\n")
    parser = Parser("A program.")
    parser.add_argument("--input", metavar="FILE")
    assert "line end" not in parser.format_help()


def test_a_config_file_has_only_the_escapes_of_toml(here):
    file = write(here / "x.toml", "sample_prompt = 'a\\n'\n[data]\npath = 'a\\n'\n")
    assert config(file=file).sample_prompt == r"a\n"


# --- paths ------------------------------------------------------------------------------------------------------------


def test_next_run_counts_up(here):
    assert next_run("configs/x.toml") == Path("runs/x-001")
    assert list(here.iterdir()) == [], "a name is found, nothing is made"
    for taken in ("x-001", "x-003", "xy-002"):
        (here / "runs" / taken).mkdir(parents=True)
    assert next_run("configs/x.toml") == Path("runs/x-002")
    assert next_run("x.toml") == Path("runs/x-002")
    assert next_run("y.toml") == Path("runs/y-001")


def test_next_run_skips_files_and_counts_beyond_999(here):
    write(here / "runs/x-001")
    assert next_run("x.toml") == Path("runs/x-002")
    for number in range(2, 1000):
        (here / f"runs/x-{number:03d}").touch()
    assert next_run("x.toml") == Path("runs/x-1000")


@pytest.mark.parametrize(
    "name, path",
    [
        ("mine", "runs/mine"),
        ("mine.v2", "runs/mine.v2"),
        ("runs/mine", "runs/mine"),
        ("other/mine", "other/mine"),
        ("../mine", "../mine"),
        ("./mine", "mine"),
    ],
)
def test_a_run_is_a_name_or_a_path(here, name, path):
    assert run_path(name) == Path(path)


def test_a_run_may_be_an_absolute_path(here):
    assert run_path(str(here / "mine")) == here / "mine"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_run_needs_a_name(here, name):
    with pytest.raises(ValueError, match="a run needs a name"):
        run_path(name)


def test_an_existing_run_is_found_by_name_and_by_path(here):
    write(here / "runs/mine/config.toml")
    assert existing_run("mine") == existing_run("runs/mine") == Path("runs/mine")
    assert existing_run(str(here / "runs/mine")) == here / "runs/mine"


def test_an_unknown_run_lists_the_existing_ones(here):
    with pytest.raises(ValueError, match="unknown run 'mine': there are none under runs/ yet"):
        existing_run("mine")
    for name in ("story-001", "story-002", "sort-001"):
        write(here / "runs" / name / "config.toml")
    (here / "runs/zebra").mkdir()
    with pytest.raises(ValueError, match=r"unknown run 'storry-001': did you mean story-001\?"):
        existing_run("storry-001")
    with pytest.raises(ValueError, match="unknown run 'zebra': there are: sort-001, story-001, story-002"):
        existing_run("zebra")


def test_relative_paths_are_found_in_the_project_from_another_folder(here):
    write(here.parent / "project/runs/mine/config.toml")
    write(here.parent / "project/configs/x.toml", "max_steps = 5\n")
    assert existing_run("mine") == here.parent / "project/runs/mine"
    assert existing_run("runs/mine") == here.parent / "project/runs/mine"
    assert config(file="configs/x.toml").max_steps == 5
    write(here / "runs/mine/config.toml")
    write(here / "configs/x.toml", "max_steps = 6\n")
    assert existing_run("mine") == Path("runs/mine"), "the working folder goes first"
    assert config(file="configs/x.toml").max_steps == 6


def test_a_shipped_config_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = config(file="configs/story.toml")
    assert found == config(file=PROJECT / "configs/story.toml") != TrainConfig()
    assert list(tmp_path.iterdir()) == []


# --- exit statuses ----------------------------------------------------------------------------------------------------


def run_main(main, monkeypatch, capsys) -> tuple[int, str]:
    """Return the exit status of a main function and what it writes to stderr."""
    monkeypatch.setattr(sys, "argv", ["scripts/program.py"])
    monkeypatch.delenv("GPT_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize("returned, status", [(None, 0), (0, 0), (130, 130), (143, 143)])
def test_exit_status_is_what_main_returns(monkeypatch, capsys, returned, status):
    assert run_main(lambda: returned, monkeypatch, capsys) == (status, "")


@pytest.mark.parametrize(
    "error, status, said",
    [
        (ValueError("x must be 1, not 2"), 2, "program.py: error: x must be 1, not 2\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), 2, "program.py: error: No such file: a.txt\n"),
        (OSError(28, "No space left on device"), 2, "program.py: error: No space left on device\n"),
        (FloatingPointError("the loss is nan"), 1, "program.py: error: the loss is nan\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=repr,
)
def test_errors_are_one_line(monkeypatch, capsys, error, status, said):
    assert run_main(raising(error), monkeypatch, capsys) == (status, said)


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("shapes differ")], ids=repr)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(raising(error))


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a program without asking it")
def test_sigterm_leaves_no_partial_folder(tmp_path):
    program = """if True:
        import sys, time, pathlib
        from gpt.run.cli import run
        from gpt.system.files import atomic_folder

        def main():
            with atomic_folder(pathlib.Path(sys.argv[1]) / "x"):
                print("inside", flush=True)
                time.sleep(60)

        run(main)"""
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "inside\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert not list(tmp_path.iterdir())


def test_traceback_on_request(monkeypatch):
    monkeypatch.setitem(os.environ, "GPT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="a mistake"):
        run(raising(ValueError("a mistake")))


def test_parser_raises_instead_of_printing(capsys):
    parser = Parser("A program.")
    parser.add_argument("--needed", required=True, type=int)
    for arguments in (
        [],
        ["--needed"],
        ["--needed", "x"],
        ["--needed", "1", "more"],
        ["--needed", "1", "--neded", "1"],
    ):
        with pytest.raises(ValueError):
            parser.parse_args(arguments)
    assert parser.parse_args(["--needed", "1"]).needed == 1
    assert capsys.readouterr() == ("", "")


SHOWS = """if True:
    from gpt.run.cli import run

    def main():
        print("caf\\u00e9 \\u4e2d \\U0001f600")
        raise ValueError("\\u65e5\\u672c")

    run(main)"""


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_redirected_output_is_utf8_whatever_the_locale(settings):
    settings = {"PYTHONCOERCECLOCALE": "0", **settings}
    done = subprocess.run([sys.executable, "-c", SHOWS], capture_output=True, env={**os.environ, **settings})
    assert done.stdout.decode() == "caf\u00e9 \u4e2d \U0001f600\n"
    assert done.stderr.decode().endswith("error: \u65e5\u672c\n")


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [("mine.toml --max_steps 3", "write --config mine.toml"), ("--max_steps 3 mine.toml", "write --config mine.toml"),
     ("tales-001", "write --run tales-001"), ("runs/tales-001", "write --run runs/tales-001"),
     ("book.txt", "write --input book.txt"), ("--sample_prompt Long ago", "put quotes around")],
)  # fmt: skip
def test_a_value_without_its_option_is_told_which(here, arguments, way_out):
    write(here / "runs" / "tales-001" / "config.toml")
    parser = Parser("A program.")
    for option in ("--config", "--run", "--input"):
        parser.add_argument(option)
    add_config_options(parser)
    with pytest.raises(ValueError, match=rf"unexpected argument .*: {way_out}"):
        parser.parse_args(arguments.split())


def test_a_config_that_is_missing_is_guessed(here):
    write(here / "configs" / "objectives" / "masked.toml")
    with pytest.raises(ValueError, match=r"file maskd: did you mean configs/objectives/masked\.toml\?"):
        config(file="maskd")
    with pytest.raises(ValueError, match=r"no config file zzz\.toml$"):
        config(file="zzz.toml")


def test_missing_data_are_prepared_by_the_command_in_the_config(here):
    header = "# Letters.\n#\n#   python scripts/prepare_data.py --input a.txt --tokenizer char \\\n#     --out data/a\n"
    path = write(here / "a.toml", header + "[data]\npath = 'data/a'\n")
    with pytest.raises(ValueError, match=r"data in data/a: python .* --input a\.txt --tokenizer char --out data/a$"):
        check_prepared(path, config(file=path))
    check_prepared(path, config("--data.path", "data/ab", file=path))  # another folder, which the command does not make
    write(here / "data" / "a" / "meta.json")
    check_prepared(path, config(file=path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminal")
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_shows_question_marks_for_missing_characters(encoding):
    here, there = os.openpty()
    settings = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", SHOWS], stdout=there, stderr=there, env=settings)
    shown = os.read(here, 1000).decode(encoding).split()
    os.close(here), os.close(there)
    assert done.returncode == 2
    assert shown[:3] == [{"ascii": "caf?"}.get(encoding, "caf\u00e9"), "?", "?"]
    assert shown[-1] == "??"
