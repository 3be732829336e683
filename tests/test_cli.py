"""The command line: help, the table of sites, and errors in one line."""

import os
import subprocess
import sys
from importlib.metadata import requires

import pytest

from tsm_triton import __version__, extras
from tsm_triton.cli import main
from tsm_triton.commands import COMMANDS, common
from tsm_triton.commands.sites import command


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    words = capsys.readouterr().out.split()
    assert set(COMMANDS) <= set(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: tsm-triton {command}" in capsys.readouterr().out


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"tsm-triton {__version__}\n"


def test_a_missing_or_unknown_command_is_an_error(capsys):
    for argv in ([], ["dmeo"]):
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        assert exit_.value.code == 2
        assert "usage: tsm-triton" in capsys.readouterr().err


def site_rows(capsys, *argv):
    assert main(["sites", *argv]) == 0
    table, summary = capsys.readouterr().out.split("\n\n", 1)
    return [row.split() for row in table.splitlines()], summary


def test_sites_prints_a_row_for_each_site(capsys):
    (header, *rows), summary = site_rows(capsys, "resnet50")
    assert header == ["name", "module", "channels", "axis", "fold"]
    assert len(rows) == 16
    assert rows[0] == ["layer1.0.conv1", "Conv2d", "64", "1", "8"]
    assert summary.startswith("resnet50: 16 sites, place=blockres")


def test_sites_takes_place_and_shift_div(capsys):
    (_, first, *_), summary = site_rows(capsys, "resnet18", "--place", "block", "--shift-div", "4")
    assert (first[0], first[-1]) == ("layer1.0", "16")
    assert "place=block;" in summary
    (_, first, *_), summary = site_rows(capsys, "resnet18", "--shift-div", "65")
    assert first[-1] == "0"
    assert "patch refuses" in summary


def test_sites_knows_torchvision(capsys):
    (_, *rows), _ = site_rows(capsys, "torchvision/mobilenet_v2")
    assert [row[0] for row in rows][:2] == ["features.3.conv.0.0", "features.5.conv.0.0"]


def test_sites_builds_no_weights():
    assert all(parameter.is_meta for parameter in command._without_weights("resnet50").parameters())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet5O"], "Did you mean resnet50"),
        (["resnet18.nowhere_in1k"], "resnet18."),
        (["hf-hub:someone/something"], "timm model"),
        (["torchvision/resnet19"], "Did you mean torchvision/resnet"),
        (["resnet18", "--shift-div", "0"], "--shift-div must be at least 1, got 0"),
        (["resnet18", "--shift-div", "1"], "--shift-div must be at least 2, got 1"),
        (["vgg11"], "Pass --place block"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(argv, message, capsys):
    assert main(["sites", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tsm-triton: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_command_names_the_extras_it_misses(monkeypatch, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    stream, evaluate = ["stream", "a.mp4", "--weights", "b.pt"], ["eval", "a", "--checkpoint", "b.pt"]
    for argv in (stream, ["demo"], ["train", "a"], evaluate):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert "needs av and matplotlib" in said
        assert "pip install 'av>=14.1' 'matplotlib>=3.8'" in said
    for argv in (["train", "a"], evaluate):
        main(argv)
        assert "'torchmetrics>=1.6'" in capsys.readouterr().err


def test_the_extras_that_messages_name_are_those_of_the_package():
    asked = {requirement.partition(";")[0].strip() for requirement in requires("tsm-triton") or ()}
    assert set(extras.EXTRAS.values()) <= asked


def test_options_are_named_as_on_the_command_line(monkeypatch, capsys):
    def refuse(args):
        raise ValueError(
            "place must be 'block', got 'x' (chunk b'\\xd1h'): pass place='block' or shift_div=4; a place"
        )

    monkeypatch.setattr(command, "run", refuse)
    assert main(["sites", "resnet18"]) == 2
    words = "--place must be 'block', got 'x' (chunk \\xd1h): pass --place block or --shift-div 4; a place"
    assert capsys.readouterr().err == f"tsm-triton: error: {words}\n"


@pytest.mark.parametrize("argv", [["demo", "--seed", str(2**64)], ["verify", "--seed", "x"]])
def test_a_seed_that_torch_does_not_take_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert "argument --seed: " in capsys.readouterr().err


def test_an_ascii_terminal_gets_every_word():
    code = "import sys; from tsm_triton.commands.sites import command; from tsm_triton.cli import main\n"
    code += "command.run = lambda args: print('caf\\xe9 \\u2713') or 0\n"
    code += "sys.exit(main(['sites', 'resnet18']))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\u2713\n"), done.stderr


def test_ctrl_c_is_status_130(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert main(["sites", "resnet18"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_device_that_is_not_here_is_an_error():
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(ValueError, match="Try --device cpu"):
            common.pick_device(name)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_unfinished_file_never_takes_its_name(error, tmp_path):
    path = tmp_path / "results.json"
    path.write_text("before")

    def write_half():
        with common.replacing(path) as temporary:
            temporary.write_text("half of wh")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
