"""The command line's manners: help by panels with examples, wrong words in one line, words that a shell completes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.main import get_command

import cli
from etl.commands.options import with_parameters
from etl.commands.terminal.help import run_app
from etl.settings.model import OPTIONS, PANELS
from etl.settings.values import Choice, format_option


def every_command(group: object = None, path: str = "bpr-etl") -> Iterator[tuple[str, object]]:
    """Every command there is, by how it is called."""
    for name, command in (group or get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


EVERY = dict(every_command())


def say(*words: str, environ: dict[str, str] | None = None) -> int:
    return run_app(cli.app, words, environ or {})


def shown(capsys, monkeypatch, *words: str, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert say(*words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", EVERY)
def test_every_command_s_help_fits_a_terminal_and_begins_with_examples(path, capsys, monkeypatch):
    said = shown(capsys, monkeypatch, *path.split()[1:], "--help")
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= (80 if path == "bpr-etl config show" else 60)
    order = [said.index(each) for each in ("\n  Example", "environment variable", "\nOften needed:\n")]
    assert order == sorted(order)
    assert "env:" not in said
    assert "..." not in said
    for option in ("--config FILE", "--json", "--log-format", "--quiet", "--verbose", "--help-all", "--help"):
        assert said.count(option) >= 1


@pytest.mark.parametrize("path", EVERY)
def test_the_whole_help_describes_each_option_by_subject(path, capsys, monkeypatch):
    said = shown(capsys, monkeypatch, *path.split()[1:], "--help-all")
    assert max(map(len, said.splitlines())) <= 80
    for parameter in EVERY[path].params:
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
        assert re.search(rf"^  (?:-h, )?{re.escape(name)}\b", said, re.MULTILINE), name
        assert " ".join(parameter.help.split()) in " ".join(said.split())
    titles = re.findall(r"^(\S.*):$", said, re.MULTILINE)
    assert titles == [each for each in PANELS if each in titles]


def test_help_groups_options_by_how_often_they_are_needed(capsys, monkeypatch):
    said = shown(capsys, monkeypatch, "run", "--help")
    titles = re.findall(r"^(\S.*):$", said, re.MULTILINE)
    assert titles == ["Often needed", "Sometimes needed", "Rarely needed (described by --help-all)"]
    rest = re.sub(r"[\s,]+", " ", said.partition(titles[2])[2])
    known = {format_option(name) for name, option in OPTIONS.items() if option.need == "rarely"}
    assert known >= {word for word in rest.split() if word.startswith("--")} >= {"--reject", "--allow-side-effects"}
    assert titles[0] in shown(capsys, monkeypatch, "prune", "--help")
    assert "described by" not in shown(capsys, monkeypatch, "prune", "--help")


@pytest.mark.parametrize(
    ("command", "option", "text"),
    [
        ("run", "--dry-run", "roll back"),
        ("prune", "--dry-run", "remove nothing"),
        ("run", "--fail-below", "publish nothing"),
        ("probe", "--fail-below", "the result is written all the same"),
        ("run", "--seed", "ids, ties and samples"),
        ("probe", "--seed", "sampled users, hold-out and training"),
        ("prune", "--keep", "stay"),
        ("doctor", "--expect-users", "Fail unless"),
        ("init", "--config", "File to write"),
    ],
)
def test_an_option_s_text_is_that_of_its_command(command, option, text, capsys, monkeypatch):
    said = shown(capsys, monkeypatch, command, "--help", columns=100)
    entry = re.search(rf"^  {option}\b(.*(?:\n {{10,}}.*)*)", said, re.MULTILINE)[1]
    assert text in " ".join(entry.split())


def test_examples_stand_on_lines_of_their_own_however_narrow_the_terminal_is(capsys, monkeypatch):
    said = shown(capsys, monkeypatch, "run", "--help", columns=60)
    assert "\n    bpr-etl run --out /srv/bpr --negatives recommended --split last-trip --probe\n" in said


def test_commands_stand_in_panels_in_a_fixed_order(capsys, monkeypatch):
    said = shown(capsys, monkeypatch, "--help")
    titles = re.findall(r"^(\S.*):$", said, re.MULTILINE)
    assert titles == ["Options", "Every night", "Looking at what there is", "Setting it up", "Trying it out"]
    assert "..." not in said.partition("Every night:")[2]  # no sentence is cut
    assert max(map(len, said.splitlines())) <= 80


def test_every_setting_is_an_option_with_help_in_a_panel_that_is_known():
    found = {each.name: each for each in EVERY["bpr-etl config show"].params}
    assert set(found) == {*OPTIONS, "config", "help_all"}
    for name, parameter in found.items():
        assert parameter.rich_help_panel in PANELS, name
        assert parameter.help
    assert [*map(PANELS.index, (each.panel for each in OPTIONS.values()))] == sorted(
        PANELS.index(each.panel) for each in OPTIONS.values()
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--negativs", "x"], "No such option --negativs; did you mean --negatives? See `bpr-etl run --help`."),
        (["run", "--nothing-like-it"], "No such option --nothing-like-it. See `bpr-etl run --help`."),
        (["runn"], "No such command 'runn'; did you mean 'run'? See `bpr-etl --help`."),
        (["xyzzy"], "No such command 'xyzzy'. See `bpr-etl --help`."),
        (["schema", "chek"], "No such command 'chek'; did you mean 'check'? See `bpr-etl schema --help`."),
        (["run", "more"], "Got unexpected extra argument(s) (more). See `bpr-etl run --help`."),
        (
            ["validate", "/srv/bpr"],
            "Got unexpected extra argument(s) (/srv/bpr); a snapshot is named with --snapshot. See `bpr-etl validate --help`.",
        ),
        (["run", "--out"], "Option '--out' requires an argument."),
        (["run", "--\x1b[31mred"], "No such option --\\x1b[31mred. See `bpr-etl run --help`."),
    ],
)
def test_a_wrong_word_is_told_in_one_line_with_what_was_meant(words, told, capsys):
    assert say(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    # How the program is called is pytest's own here, or xdist's.
    assert re.sub(r"`.*?(( run| schema| validate)? --help`)", r"`bpr-etl\1", err) == f"Error: {told}\n"


def test_a_wrong_word_is_json_where_json_is_asked_for(capsys):
    for words, environ in ((["--json"], {}), ([], {"BPR_ETL_JSON": "1"})):
        assert say("run", "--sede", "1", *words, environ=environ) == 2
        answer = json.loads(capsys.readouterr().out)
        assert (answer["ok"], answer["exit_code"], answer["error"]) == (False, 2, "UsageError")
        assert "did you mean" in answer["message"]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--skip-unchanged"], True),
        (["--no-skip-unchanged"], False),
        (["--skip-unchanged=ok"], "ok"),
        (["--skip-unchanged=true"], True),
        (["--skip-unchanged=ok", "--no-skip-unchanged"], False),
        (["--no-skip-unchanged", "--skip-unchanged=ok"], "ok"),
    ],
)
def test_a_flag_may_have_a_word(words, value, capsys):
    assert say("config", "show", "--json", *words) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["skip_unchanged"]["value"] == value


@pytest.mark.parametrize("word", ["", "fine"])
def test_a_flag_s_word_is_checked(word, capsys):
    assert say("run", f"--skip-unchanged={word}") == 2
    assert f"--skip-unchanged must be true, false or ok ('{word}' from the command line)" in capsys.readouterr().err


def test_a_flag_without_a_word_leaves_the_next_word_alone(capsys):
    """It takes no snapshot's path for its word."""
    assert say("expand", "--skip-unchanged", "/nowhere/at/all") != 0
    assert "/nowhere/at/all" in capsys.readouterr().err


def test_no_word_at_all_is_answered_with_help(capsys):
    assert say() == 2
    assert "Every night:" in capsys.readouterr().err


def completed(words: str) -> list[str]:
    """What a shell is offered, asked as bash asks: the installed command's own answer."""
    command = os.path.join(os.path.dirname(sys.executable), "bpr-etl")  # noqa: PTH118, PTH120
    asked = {"_BPR_ETL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environ = {"PATH": os.environ["PATH"], **asked}
    done = subprocess.run([command], env=environ, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_their_words():
    assert completed("bpr-etl pro") == ["probe"]
    assert completed("bpr-etl run --nam") == ["--naming"]
    assert completed("bpr-etl run --naming ") == ["auto", "model", "mapped"]
    assert completed("bpr-etl run --negatives re") == ["recommended"]


def test_each_choice_is_offered_to_the_shell_and_shown_in_help():
    choices = {name: option.parse.choices for name, option in OPTIONS.items() if isinstance(option.parse, Choice)}
    assert set(choices) >= {"naming", "ids", "audience", "log_format"}
    for command in EVERY.values():
        for parameter in command.params:
            if words := choices.get(parameter.name):
                assert parameter.metavar == "|".join(words)
                assert [each.value for each in parameter.shell_complete(None, "")] == list(words)


def test_the_script_that_a_shell_is_given_is_a_script_of_that_shell():
    command = os.path.join(os.path.dirname(sys.executable), "bpr-etl")  # noqa: PTH118, PTH120
    script = subprocess.run(
        [command],
        env={"PATH": os.environ["PATH"], "_BPR_ETL_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    asks = f"{script}\nCOMP_WORDS=(bpr-etl db st); COMP_CWORD=2; _bpr_etl_completion {command}; echo ${{COMPREPLY[*]}}"
    done = subprocess.run(["bash", "--norc", "-c", asks], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "start stop\n"


def test_a_command_names_only_what_is_declared():
    with pytest.raises(ValueError, match="declared for newest, sede"):
        with_parameters("seed sede SNAPSHOT NEWEST", lambda **_: None)
