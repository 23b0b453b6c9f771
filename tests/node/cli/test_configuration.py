"""Options come from flags, the environment and a file, in this order.

Tested: which one wins, what is refused, and that every flag of every command takes part.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from node.cli import app as commands
from node.cli.app import main
from node.cli.flags import configuration, serve_tables, show_config, surface
from node.config import NodeConfig, Serve
from protocols.errors import ConfigError
from protocols.ids import Span

OPTIONS = surface.options(commands.app)
PEER = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWJ7NKEeJEXYdWmFd1HXJgn5minVvmV74PEhEpt76MVbY7"


def settings(text: str, tmp_path: Path, **environment: str) -> configuration.Settings:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return configuration.read(OPTIONS, environment, file)


def value(got: configuration.Settings, command: str, flag: str) -> Any:
    found = got.values.get(((command,), flag))
    return found and found.value


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_environment_beats_the_commands_table_beats_the_top_of_the_file(tmp_path: Path) -> None:
    file = "device = 'cuda:0'\nseed = 1\npatience = 5\n[generate]\nseed = 2\npatience = 7.5\n"
    got = settings(file, tmp_path, SWARM_PATIENCE="9")
    assert value(got, "generate", "--device") == value(got, "node", "--device") == "cuda:0"
    assert (value(got, "generate", "--seed"), value(got, "chat", "--seed")) == ("2", "1")
    assert float(value(got, "generate", "--patience")) == 9
    assert got.values[("generate",), "--patience"].source == "SWARM_PATIENCE"
    assert got.values[("chat",), "--seed"].source == f"{tmp_path / 'config.toml'}: key 'seed'"
    assert value(got, "node", "--listen") is None  # its default holds


def test_the_command_line_beats_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Three wrong values: the one that is complained of is the one that counts."""
    file = tmp_path / "mine.toml"
    file.write_text("[generate]\ntop-p = 2.0\n")
    asked = ["generate", "m", "x", "--peer", PEER, "--config", str(file)]
    assert "--top-p is between 0 and 1, got 2.0" in (said := refusal(asked, capsys)) and f"{file}: key 'top-p'" in said
    monkeypatch.setenv("SWARM_TOP_P", "3")
    assert "got 3.0 (--top-p was set by SWARM_TOP_P)" in refusal(asked, capsys)
    assert refusal([*asked, "--top-p", "4"], capsys) == "error: --top-p is between 0 and 1, got 4.0\n"
    monkeypatch.setenv("SWARM_CONFIG", str(tmp_path / "gone.toml"))
    assert "gone.toml" not in refusal(asked, capsys)  # --config wins
    assert "gone.toml cannot be read: No such file" in refusal(asked[:-2], capsys)


def test_lists_switches_and_paths_have_a_form_everywhere(tmp_path: Path) -> None:
    got = settings(
        "peer = 'a'\n[generate]\npeer = ['b', 'c']\nstats = true\n[node]\ndata_dir = '~/x'\n", tmp_path, HOME="/home/me"
    )
    assert value(got, "node", "--peer") == ["a"] and value(got, "generate", "--peer") == ["b", "c"]
    assert value(got, "generate", "--stats") is True and value(got, "node", "--data-dir") == str(Path("~/x").expanduser())
    got = settings("", tmp_path, SWARM_PEER="a, b\nc", SWARM_STATS="off", SWARM_SEED="")
    assert value(got, "node", "--peer") == ["a", "b", "c"] and value(got, "chat", "--stats") is False
    assert value(got, "generate", "--seed") is None  # empty is not set


REFUSED = {
    "key": ("[node]\npers = 'x'\n", ["config.toml", "unknown key 'pers' in [node]", "did you mean peer?"]),
    "key of another": ("[status]\ntop-p = 1\n", ["'top-p' in [status]", "generate"]),
    "table": ("[nodes]\nname = 'x'\n", ["unknown table [nodes]", "did you mean node?"]),
    "text for a number": (
        "[generate]\npatience = 'soon'\n",
        ["config.toml", "'patience' in [generate]", "is a number", "'soon'"],
    ),
    "fraction": ("top-k = 1.5\n", ["'top-k'", "a whole number", "1.5"]),
    "switch": ("[chat]\nstats = 'yes'\n", ["'stats' in [chat]", "true or false", "'yes'"]),
    "number for text": ("[node]\nname = 7\n", ["'name' in [node]", "text", "'7'"]),
    "list": ("peer = [1]\n", ["'peer'", "a list of text"]),
    "no TOML": ("peer : x", ["config.toml", "no TOML"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_says_something_else_is_refused_with_key_got_and_expected(name: str, tmp_path: Path) -> None:
    text, words = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        settings(text, tmp_path)
    assert all(word in str(refused.value) for word in words), refused.value


def test_unknown_variables_are_refused_and_those_of_tests_are_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown variable SWARM_PERS: did you mean SWARM_PEER"):
        settings("", tmp_path, SWARM_PERS="x")
    with pytest.raises(ConfigError, match=r"SWARM_TOP_K is a whole number.*'few'"):
        settings("", tmp_path, SWARM_TOP_K="few")
    settings("", tmp_path, SWARM_FAULT="x", SWARM_FAULTS="x", SWARM_TRACE="x", SWARM_TEST_SEED="1", SWARMING="x")


def test_unknown_options_are_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown option --pers: did you mean --peer? see swarm node --help" in refusal(["node", "m", "--pers", "x"], capsys)


def test_help_is_given_even_where_the_configuration_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWARM_PERS", "x")
    with pytest.raises(SystemExit) as ended:
        main(["node", "--help"])
    assert ended.value.code == 0 and "--peer" in capsys.readouterr().out


def test_a_flag_declared_tomorrow_is_configured_too(tmp_path: Path) -> None:
    """One mechanism, in subcommands as well: options are listed once."""
    app, group = typer.Typer(), typer.Typer()
    seen: list[object] = []

    @group.command("prune")
    def prune(keep_days: Annotated[float, typer.Option("--keep-days", help="Days.")] = 1.0) -> None:
        seen.append(keep_days)

    @app.command("serve")
    def serve(ends: Annotated[bool, typer.Option("--ends/--no-ends", help="Host them.")] = True) -> None:
        seen.append(ends)

    app.add_typer(group, name="cache")
    options = surface.options(app)
    (tmp_path / "c.toml").write_text("[cache]\nkeep-days = 3\n")
    got = configuration.read(options, {"SWARM_ENDS": "no"}, tmp_path / "c.toml")
    command: Any = typer.main.get_command(app)
    for words in (["serve"], ["cache", "prune"], ["serve", "--ends"]):
        command(args=words, standalone_mode=False, default_map=got.default_map())
    assert seen == [False, 3.0, True]


def test_the_commands_own_output_is_a_file_that_means_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = settings("peer = ['a']\n[generate]\nseed = 3\ntop-p = 0.5\nstats = true\n", tmp_path, SWARM_NAME="me")
    shown = "\n".join(show_config.effective(got))
    assert "# SWARM_NAME" in shown and f"# {tmp_path / 'config.toml'}: key 'seed' in [generate]" in shown
    tables = tomllib.loads(shown)
    assert (tables["generate"]["seed"], tables["generate"]["top-p"], tables["node"]["name"]) == (3, 0.5, "me")
    again = settings(shown, tmp_path)
    assert all(again.values[place] and again.values[place].value == found.value for place, found in got.values.items())
    with_all = re.sub(r"(?m)^# (?=[a-z-]+ = )", "", "\n".join(show_config.example(got)))
    assert tomllib.loads(with_all)["generate"]["max-new-tokens"] == 64
    settings(with_all.replace("num-blocks = 0", "num-blocks = 1"), tmp_path)
    with pytest.raises(SystemExit):
        main(["config", "chat"])
    assert "max-new-tokens = 512" in (said := capsys.readouterr().out) and "[node]" not in said


def test_every_option_has_a_variable_and_a_key_of_its_own() -> None:
    assert len(OPTIONS) > 30
    for option in OPTIONS:
        assert option.help and option.flag.startswith("--")
        same = {other.key for other in OPTIONS if other.variable == option.variable}
        assert same == {option.key}


def test_the_table_of_swarm_serve_is_named_gateway_and_stands_beside_what_a_node_serves(tmp_path: Path) -> None:
    got = settings('[[serve]]\nmodel = "one"\n[gateway]\nport = 8001\n', tmp_path)
    assert got.serve == (Serve(model="one"),) and got.default_map()["serve"] == {"port": "8001"}
    shown = list(show_config.effective(got, "serve"))
    assert "[gateway]" in shown and any(line.startswith("port = 8001") for line in shown)


def test_serve_tables_are_read_shown_and_refused(tmp_path: Path) -> None:
    got = settings('[[serve]]\nmodel = "one"\n[[serve]]\nmodel = "two"\nblocks = "3:5"\n[node]\nquiet = true\n', tmp_path)
    assert got.serve == (Serve(model="one"), Serve(model="two", blocks=Span(3, 5)))
    assert settings("\n".join(show_config.effective(got)), tmp_path).serve == got.serve
    assert serve_tables.chosen(["three"], got.serve) == (Serve(model="three"),)  # the command line wins
    for text, says in {
        "serve = 'one'": "headed [[serve]]",
        "[serve]\nmodel = 'one'": "headed [[serve]]",
        "[[serve]]\nblocks = '0:2'": "number 1 has no model",
        "[[serve]]\nmodel = 'one'\n[[serve]]\nmodel = 2": "number 2: model is text",
        "[[serve]]\nmodel = 'one'\nblock = '0:2'": "unknown key 'block', expected model or blocks",
        "[[serve]]\nmodel = 'one'\nblocks = '2'": "blocks: ",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(says)):
            settings(text, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["node"], "Missing argument 'MODEL'"),
        (["node", "a", "b", "--blocks", "0:2"], "give each its own in a [[serve]] table"),
        (["node", "a", "b", "--model-name", "c"], "--model-name names one model, got it with 2"),
        (["node", "a", "b", "a"], "got one twice"),
        (["node", *map(str, range(5))], "at most 4 models, got 5"),
    ],
)
def test_models_that_a_node_cannot_serve_together_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal(arguments, capsys)


def test_num_blocks_beside_the_blocks_of_any_model_is_refused_before_the_node_starts(tmp_path: Path) -> None:
    later = (Serve(model="b"), Serve(model="c", blocks=Span(0, 2)))
    with pytest.raises(ConfigError, match="--blocks says which and --num-blocks says how many"):
        NodeConfig(model="a", more=later, num_blocks=2, data_dir=tmp_path)
