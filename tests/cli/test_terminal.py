"""What comes from outside is printed as text, and a stream that refuses costs no work."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys

import pytest
from paths import TINY
from rich.console import Console
from rich.table import Table

from ddpm_jax import terminal
from ddpm_jax.cli import main
from ddpm_jax.config import BitsPerDim
from ddpm_jax.evaluation.pictures import plot_training
from ddpm_jax.experiment.display import TrainingDisplay

pytestmark = pytest.mark.usefixtures("mixers")
HOSTILE = "a\x1b]0;title\x07[red]b[/][/nothing] :smile: \u202ec\u2066 \x9b31m d\udcff\r\x7f\ne $x^$"
HARMLESS = (
    r"a\x1b]0;title\x07[red]b[/][/nothing] :smile: \u202ec\u2066 \x9b31m d\udcff\r\x7f\ne $x^$"
)


def test_nothing_invisible_passes():
    assert terminal.escape(HOSTILE) == HARMLESS
    assert terminal.escape("Zürich, 日本 \\n 😀") == "Zürich, 日本 \\n 😀"
    invisible = [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    for code in (*invisible, 0xD800, 0xDFFF, 0x2028, 0x200E):
        shown = terminal.escape(chr(code))
        assert shown == repr(chr(code))[1:-1]
        assert shown.isascii()


def test_a_pipe_gets_no_progress_bar_where_colours_are_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a cell of a notebook
    with TrainingDisplay(terminal.make_console(), start=0, steps=2, batch_size=1) as display:
        display.advance(1, 0.0)
        display.log(1, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("step 1/2  loss 0.5000")


@pytest.mark.parametrize("terminal_like", [False, True])
def test_a_line_and_a_cell_are_text_on_any_console(terminal_like):
    console = Console(file=io.StringIO(), force_terminal=terminal_like, width=200, no_color=True)
    terminal.say(console, HOSTILE)
    assert console.file.getvalue() == f"{HARMLESS}\n"
    table = Table(title=terminal.cell(HOSTILE))
    table.add_column(terminal.cell(HOSTILE))
    table.add_row(terminal.cell(HOSTILE))
    console.print(table)
    assert console.file.getvalue().count(HARMLESS) == 4


def test_the_name_of_a_data_set_is_text_in_tables_and_plots(tmp_path):
    results = dict.fromkeys(("uniform", "histogram", "prior", "kl", "decoder"), 1.0)
    results |= {"bits_per_dim": 1.25, "standard_error": 0.5, "dataset": HOSTILE}
    results |= dict.fromkeys(("images", "step", "levels", "histogram_images"), 2)
    console = Console(file=io.StringIO(), width=200)
    console.print(BitsPerDim().table(results | {"num_steps": 8, "num_times": 8}))
    assert "".join(HARMLESS.split()) in "".join(console.file.getvalue().split())
    assert "1.250 +- 0.500" in console.file.getvalue()
    plot_training(tmp_path / "a.png", [{"step": 1, "loss": 1.0}], title="[/] $x^$")


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["train", HOSTILE],
        ["train", TINY, f"--{HOSTILE}"],
        ["train", TINY, "--train.steps", HOSTILE],
        ["train", TINY, "--workdir", "{tmp}/file/" + HOSTILE],
        ["sample", HOSTILE, "--seed", HOSTILE],
        ["sample", HOSTILE],
        ["evaluate", HOSTILE],
        ["plan", TINY, "--topology", HOSTILE],
        ["data", HOSTILE],
        ["data", "inception", HOSTILE, "b.npz"],
        ["replay", HOSTILE, "--step", "1"],
    ],
)
def test_errors_show_what_a_terminal_would_obey(arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    try:
        code = main([argument.replace("{tmp}", str(tmp_path)) for argument in arguments])
    except SystemExit as left:  # by tyro
        code = left.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out.replace("\n", "").isprintable()
    assert r"\x1b" in captured.err
    assert captured.err.replace("\n", "").isprintable()
    if captured.err.startswith("ddpm-jax"):
        assert captured.err.count("\n") == 1


KINDS = ("full", "closed", "broken pipe")


@contextlib.contextmanager
def refusing(kind):
    """A standard stream that takes nothing."""
    if kind == "closed":
        yield None
    elif kind == "full":
        with open("/dev/full", "w") as stream:
            yield stream
    else:
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as stream:
            yield stream


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.thorough
def test_a_run_does_its_work_whatever_standard_output_takes(kind, tmp_path, monkeypatch, capsys):
    short = ["--train.steps", "4", "--train.save-every", "2", "--mesh.data", "1"]
    with refusing(kind) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["train", TINY, "--workdir", str(tmp_path / "run"), *short]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["step"] == 4
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("kind", "code"), [("full", 3), ("closed", 0), ("broken pipe", 0)])
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", TINY]])
def test_a_command_that_only_prints_says_if_it_could_not(
    kind, code, arguments, monkeypatch, capsys
):
    with refusing(kind) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments) == code
    said = (
        "ddpm-jax: standard output could not be written completely: [Errno 28] No space left on"
        " device\n"
    )
    assert capsys.readouterr().err == (said if code else "")


def test_a_standard_error_that_refuses_changes_no_exit_code(monkeypatch):
    for kind in KINDS:
        with refusing(kind) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            assert main(["nonsense"]) == 2


def test_a_character_that_the_terminal_lacks_is_escaped():
    for encoding, shown in (("ascii", b"Z\\xfcrich \\u65e5"), ("latin-1", b"Z\xfcrich \\u65e5")):
        file = io.BytesIO()
        stream = terminal.Stream(io.TextIOWrapper(file, encoding=encoding, write_through=True))
        Console(file=stream).print("Zürich 日")
        assert file.getvalue() == shown + b"\n"


def test_a_stream_hands_on_colours_and_nothing_else_that_a_terminal_obeys():
    file = io.StringIO()
    terminal.Stream(file).write("\x1b[1mbold\x1b[0m\n\x1b[2K\x1b]0;title\x07\x9b1m\x1bc")
    assert file.getvalue() == "\x1b[1mbold\x1b[0m\n\x1b[2K\\x1b]0;title\\x07\\x9b1m\\x1bc"


@pytest.mark.thorough
def test_the_interpreter_ends_quietly_where_nothing_can_be_printed():
    """Its own flush at exit would say so, and change the exit code to 120."""
    program = "from ddpm_jax.cli import main; import sys; sys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    for out, code in ((write, 0), (os.open("/dev/full", os.O_WRONLY), 3)):
        how = {"stdout": out, "stderr": subprocess.PIPE, "text": True}
        ended = subprocess.run([sys.executable, "-c", program], **how, check=False)
        assert (ended.returncode, ended.stderr.count("\n")) == (code, code > 0), ended.stderr
        os.close(out)
    # The next file that is opened must not become standard output or error.
    program = "import os\nfrom ddpm_jax.cli import main\nmain(['--help'])\n"
    program += "os._exit(os.open('.', os.O_RDONLY))"
    closed = subprocess.run(f'{sys.executable} -c "{program}" <&- >&- 2>&-', shell=True)
    assert closed.returncode == 3


def test_an_error_that_nobody_foresaw_is_a_traceback_with_an_exit_code_of_its_own(
    monkeypatch, capsys
):
    def fail(arguments, console):
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(importlib.import_module("ddpm_jax.cli.inspect"), "run", fail)
    assert main(["inspect", TINY]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_the_line_of_a_run_fits_every_width(monkeypatch):
    clock = iter([0.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    console = Console(file=io.StringIO(), width=200, force_terminal=True, no_color=True)
    display = TrainingDisplay(console, start=0, steps=800_000, batch_size=128)
    display.advance(123_450, 0.0)
    display.log(123_456, loss=0.1234, skipped=2)
    parts = {
        "step 123456/800000": 40,
        "62:38:35 left": 40,
        "loss 0.1234": 46,
        "3.0 steps/s": 59,
        "2 bad steps skipped": 80,
        "384 images/s": 100,
        "0.0% waiting for data": 123,
    }
    for width in range(40, 201):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
        console.print(display._bar.get_renderable())
        (line,) = console.file.getvalue().splitlines()
        assert len(line) <= width
        assert {part for part in parts if part in line} == {
            part for part, least in parts.items() if width >= least
        }, width
