"""`swarm`: the commands, their flags, and how they fail.

Nothing heavy is imported here: torch, transformers and hivemind come in with the body of the command that needs them, so
that `swarm --help` answers at once. Flags are frozen by tests/node/cli/test_flags.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
import typer.main

from node import logs
from node.cli import arguments, completion, configuration, console, failures, first_steps, options, stopping, surface, utf8
from node.cli.command_options import (
    BenchOptions,
    ClientOptions,
    DoctorOptions,
    EvaluationOptions,
    Hosting,
    MeetingOptions,
    Serving,
    Training,
    UpOptions,
    with_flags,
)
from node.cli.configuration import Settings
from node.cli.console import remark
from node.config import DEFAULT_SWARM
from protocols.errors import ConfigError
from swarm.meeting.invitation import VALID_DAYS

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in failures.EXIT_CODES.items()) + "."

HOST, ASK, TRAIN, HERE = "Host a model", "Ask a model", "Train a model", "This machine"
"""The commands' groups in `swarm --help`."""

app = typer.Typer(
    name="swarm",
    help="Host a slice of a large model, or prompt the whole of it, with other volunteers' machines.",
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0, or one line on stderr and the code of `failures.EXIT_CODES`."""
    console.open_closed()
    if completion.is_asked():
        sys.exit(completion.answer(app))
    given, debug = arguments.without_debug(list(sys.argv[1:] if words is None else words))
    settings: Settings | None = None
    try:
        utf8.check_arguments(given)
        given, file = arguments.without_config(given)
        given, form = arguments.without_log_format(given)
        given, fields = arguments.without_fields(given)
        settings = dataclasses.replace(_settings(given, file), fields=fields)
        is_node = given[:1] in (["node"], ["up"])
        os.environ.pop("SWARM_JOIN", None)  # it may hold a key, which our child processes need not have
        debug = debug or any(value.value is True for (_, flag), value in settings.values.items() if flag == "--debug")
        level = "DEBUG" if debug else "WARNING" if is_node else "ERROR"  # a client says it in its one line
        logs.set_up(level, _log_format(form, settings))
        if not given:
            print(first_steps.text(), flush=True)
            sys.exit(2)  # a script that forgot the command must not go on
        command: Any = typer.main.get_command(app)
        line: dict[str, Any] = dict(args=given, default_map=settings.default_map(), obj=settings)
        with contextlib.nullcontext() if is_node else stopping.as_by_ctrl_c():  # a node has handlers of its own
            code = command(prog_name="swarm", standalone_mode=False, **line)
            sys.stdout.flush()
    except BaseException as error:
        sys.exit(_fail(error, debug, given, settings))
    sys.exit(code if isinstance(code, int) else 0)


def _settings(given: list[str], file: Path | None) -> Settings:
    """Settings of the environment and the file; help is printed even if those are wrong."""
    known = surface.options(app)
    own = given[: given.index("--")] if "--" in given else given
    is_help = not own or not {"-h", "--help", "--version"}.isdisjoint(own)
    return configuration.read(known, {} if is_help else os.environ, None if is_help else file)


def _log_format(given: str | None, settings: Settings) -> Any:
    """Of the command line, else of the environment or the file."""
    return given or next((found.value for (_, flag), found in settings.values.items() if flag == arguments.LOG_FORMAT), "auto")


def _fail(error: BaseException, debug: bool, given: list[str], settings: Settings | None) -> int:
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        error = error.__context__  # rich, and click below typer, make an exit with 1 of it
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    text, code = failures.describe(failures.first_cause(error))
    if code == 141:  # or Python complains once more when it flushes at exit
        console.forget_readers()
        return code
    if debug:
        console.trace(error)
    if text:
        with contextlib.suppress(OSError):  # stderr may be full, or without a reader
            remark(f"error: {settings.sources(text, given) if settings else text}")
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"murmuration {metadata.version('murmuration')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log line.")] = False,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Options from this TOML file; default: $SWARM_CONFIG, or ~/.config/murmuration/config.toml if there is one. "
            "This, --debug and --log-format may stand anywhere in the line.",
        ),
    ] = None,
    log_format: Annotated[
        Literal["auto", "text", "json"],
        typer.Option("--log-format", help="How log lines on stderr look; auto: text on a terminal, else JSON."),
    ] = "auto",
) -> None:
    pass


@app.command("node", rich_help_panel=HOST)
@with_flags("hosting", Hosting)
def node_command(context: typer.Context, hosting: Hosting, model: options.Models = []) -> None:  # noqa: B006
    """Join the swarm and serve a span of MODEL's blocks, or train in a run (--run). Ctrl-C leaves in order."""
    from node.cli import node, serve_tables

    if hosting.run is not None and model:
        raise ConfigError(f"--run {hosting.run} says which model it is, got MODEL {model[0]} too: leave one out")
    run = node.run_of(hosting.run, context.obj.fields)
    serve = serve_tables.chosen(model, context.obj.serve) if run is None else [serve_tables.of_run(run)]
    if not serve:
        raise ConfigError(
            "Missing argument 'MODEL': a directory or a name; --run RUN; or a [[serve]] table in the file of options"
        )
    node.run(serve, hosting, run)


@app.command("up", rich_help_panel=HOST)
@with_flags("flags", UpOptions)
def up_command(context: typer.Context, flags: UpOptions, model: options.Models = []) -> None:  # noqa: B006
    """Host MODEL's blocks and serve it by HTTP to programs on this machine, in one process. Ctrl-C leaves in order."""
    from node.cli import serve_tables, up

    serve = serve_tables.chosen(model, context.obj.serve)
    if not serve:
        raise ConfigError("Missing argument 'MODEL': a directory or a name; or a [[serve]] table in the file of options")
    up.run(serve, flags)


@app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, rich_help_panel=TRAIN)
@with_flags("training", Training)
def train_command(
    context: typer.Context,
    run_file: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.toml",
            help="The run's file. Any field can be given as an option, too: --training.steps 100.",
            show_default=False,
        ),
    ],
    training: Training,
) -> None:
    """Start or join a training run as a trainer: it has the data, and nodes (swarm node --run) have the model."""
    from node.cli import train

    train.run(run_file, training, context.args)


@app.command("runs", rich_help_panel=TRAIN)
@with_flags("asked", MeetingOptions)
def runs_command(
    as_json: options.AsJson = False,
    *,
    asked: MeetingOptions,
) -> None:
    """List the training runs of the swarm: version, stages, trainers, tokens/s."""
    from node.cli import runs

    runs.run(asked.enter(), is_json=as_json, data_dir=asked.data_dir, lan=asked.lan)


@app.command("eval", rich_help_panel=TRAIN)
@with_flags("asked", EvaluationOptions)
def eval_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run file, the folder of a run, a model's directory (computed here, unless --peer is given), or a name in the swarm.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="FILE",
            help="Text, JSONL, CSV or Parquet. Repeatable; none = the validation data of a run file.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    sequence_tokens: Annotated[
        int | None,
        typer.Option(
            "--sequence-tokens", metavar="N", min=2, help="Cut documents after N tokens; default: the run file's, else up to 512."
        ),
    ] = None,
    as_json: options.AsJson = False,
    *,
    asked: EvaluationOptions,
) -> None:
    """Print perplexity and bits per byte of a model on a text."""
    from node.cli import evaluate

    evaluate.run(model, data, sequence_tokens, as_json, asked)


@app.command("report", rich_help_panel=TRAIN)
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, with metrics.jsonl.", show_default=False)],
    as_json: options.AsJson = False,
) -> None:
    """Write report.html of a run: plots of loss, peers, speed and bytes, evaluations and events."""
    from node.cli import report

    report.run(folder, is_json=as_json)


@app.command("generate", rich_help_panel=ASK)
@with_flags("asked", ClientOptions, max_new_tokens=64)
def generate_command(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The text to go on with; - is stdin, @FILE a file, @@text is @text.", show_default=False
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", metavar="FILE", help="The text is in this file; leave PROMPT out.", show_default=False),
    ] = None,
    *,
    asked: ClientOptions,
) -> None:
    """Stream the model's continuation of PROMPT."""
    from node.cli import generate, prompts

    asking, sampling = asked.asking(model), asked.sampling(as_model_says=False)  # a wrong flag, before stdin is read
    generate.run(asking, sampling, prompts.chosen(prompt, prompt_file), asked.stats, asked.thin)


@app.command("chat", rich_help_panel=ASK)
@with_flags("asked", ClientOptions, max_new_tokens=512)
def chat_command(
    model: options.Model,
    system: Annotated[
        str | None,
        typer.Option(
            "--system", metavar="TEXT", help="What the model is told before the first turn; @FILE reads it from a file."
        ),
    ] = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Refuse a turn beyond the model's limit, instead of forgetting the oldest ones.")
    ] = False,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history", help="Keep what you type at a terminal in the data directory, for the arrow keys."
        ),
    ] = True,
    *,
    asked: ClientOptions,
) -> None:
    """Talk with MODEL; the session stays at the nodes between turns. /help lists what there is."""
    from node.cli import chat, prompts
    from node.cli.conversation import Manner

    system = None if system is None else prompts.read(system, "--system")

    with_stats = asked.stats or sys.stderr.isatty()
    manner = Manner(max_new_tokens=asked.max_new_tokens, system=system, keeps_all=keep_all, with_stats=with_stats)
    chat.run(asked.asking(model), asked.sampling(as_model_says=True), manner, asked.thin, keeps_history=history)


@app.command("serve", rich_help_panel=ASK)
@with_flags("serving", Serving)
def serve_command(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL]...",
            help="Names in the swarm, or NAME@DIGEST; none = all that it serves.",
            show_default=False,
            autocompletion=completion.names,
        ),
    ] = [],  # noqa: B006
    *,
    serving: Serving,
) -> None:
    """Serve models of the swarm by OpenAI's API. Ctrl-C ends."""
    from node.cli import serve

    serve.run(model, serving)


@app.command("status", rich_help_panel=ASK)
@with_flags("asked", MeetingOptions)
def status_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model's name in the swarm, or its directory; none = all models.",
            show_default=False,
            autocompletion=completion.names,
        ),
    ] = None,
    as_json: options.AsJson = False,
    *,
    asked: MeetingOptions,
) -> None:
    """Show who hosts what: peers, spans, gaps, load and speeds."""
    from node.cli import status

    status.run(model, asked.enter(), is_json=as_json, data_dir=asked.data_dir, lan=asked.lan)


@app.command("top", rich_help_panel=ASK)
@with_flags("asked", MeetingOptions)
def top_command(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL]...",
            help="Names in the swarm that are shown first.",
            show_default=False,
            autocompletion=completion.names,
        ),
    ] = [],  # noqa: B006
    once: Annotated[bool, typer.Option("--once", help="Print it once, as plain text.")] = False,
    as_json: options.AsJson = False,
    *,
    asked: MeetingOptions,
) -> None:
    """Watch the swarm: nodes, blocks, load, runs and events, live. q leaves."""
    from node.cli import top

    top.run(model, asked.enter(), is_once=once, is_json=as_json, data_dir=asked.data_dir, lan=asked.lan)


@app.command("invite", rich_help_panel=HOST)
def invite_command(
    private: Annotated[
        bool,
        typer.Option("--private", help="Make a private swarm, with a key, if there is none of this name in the data directory."),
    ] = False,
    swarm: options.Swarm = DEFAULT_SWARM,
    peer: Annotated[
        list[str],
        typer.Option(
            "--peer",
            metavar="MULTIADDR",
            help="Name this address in the invitation. Repeatable; none = this machine's nodes and the last known peers.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    days: Annotated[
        float, typer.Option("--days", metavar="N", help="The invitation can be used for so many days; the key in it has no end.")
    ] = VALID_DAYS,
    new_key: Annotated[
        bool,
        typer.Option("--new-key", help="Change the key of the private swarm: members without a new invitation are excluded."),
    ] = False,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Print an invitation: the swarm's name, addresses and, if it is private, its key. Others pass it by --join."""
    from node.cli import invite

    invite.run(swarm, tuple(peer), is_private=private, days=days, is_new=new_key, data_dir=data_dir, is_json=as_json)


@app.command("whoami", rich_help_panel=HERE)
def whoami_command(
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity",
            metavar="FILE",
            help="Of this key file, made if there is none; default: the node's.",
        ),
    ] = None,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Print a PeerID, for the lists of others (--allow, --deny, --trust)."""
    from node.cli import whoami

    whoami.run(identity, data_dir, is_json=as_json)


cache_app = typer.Typer(
    help="List what was fetched from peers and is kept on this disk; prune removes it.", invoke_without_command=True
)
app.add_typer(cache_app, name="cache", rich_help_panel=HERE)


@cache_app.callback()
def cache_command(
    context: typer.Context,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """List what was fetched from peers and is kept on this disk; `prune` removes it."""
    from node.cli import cache

    if context.invoked_subcommand is None:
        cache.show(data_dir, is_json=as_json)


@cache_app.command("prune")
def prune_command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="NAME, NAME@DIGEST or the beginning of a digest.",
            show_default=False,
            autocompletion=completion.names,
        ),
    ] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="What was not used for so many days.")
    ] = None,
    remove_all: Annotated[bool, typer.Option("--all", help="All models.")] = False,
    max_gb: Annotated[
        float | None, typer.Option("--max-gb", metavar="GB", help="What was used longest ago, until the cache takes so much.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Remove fetched models; what a running node uses always stays."""
    from node.cli import cache

    which = cache.Which(name=model, older_than_days=older_than, all=remove_all, max_gb=max_gb)
    above = context.parent.params if context.parent else {}  # `swarm cache --data-dir DIR prune` means the same
    cache.prune(data_dir or above.get("data_dir"), which, is_sure=yes, is_json=as_json or bool(above.get("as_json")))


keys_app = typer.Typer(help="Say who may ask a gateway (`swarm serve`), and how much.")
app.add_typer(keys_app, name="keys", rich_help_panel=HOST)


@keys_app.command("add")
def add_key_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose it is: 1 to 64 letters, digits and ._@-.", show_default=False)
    ],
    requests_per_minute: Annotated[
        int | None,
        typer.Option("--requests-per-minute", metavar="N", help="Answer so many requests in any minute; default: all."),
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-day", metavar="N", help="Tokens of prompts and answers together in a day of UTC; default: no limit."
        ),
    ] = None,
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """Make a key and print it, once."""
    from node.cli import gateway_keys

    gateway_keys.add(data_dir, name, requests_per_minute, tokens_per_day, is_json=as_json)


@keys_app.command("list")
def list_keys_command(
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """List the keys with their limits; what is secret is not kept."""
    from node.cli import gateway_keys

    gateway_keys.show(data_dir, is_json=as_json)


@keys_app.command("revoke")
def revoke_key_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `swarm keys list` says.", show_default=False)],
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
) -> None:
    """End a key; a running gateway refuses it from its next request on."""
    from node.cli import gateway_keys

    gateway_keys.revoke(data_dir, name, is_json=as_json)


@app.command("config", rich_help_panel=HERE)
def config_command(
    context: typer.Context,
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="The options of this command; none = of all.", show_default=False)
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a file with every key, to start from.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what every option is set to, and by what: a default, the file, or the environment."""
    from node.cli import show_config

    show_config.run(context.obj, command, is_example=example, is_json=as_json)


@app.command("doctor", rich_help_panel=HERE)
@with_flags("flags", DoctorOptions)
def doctor_command(as_json: options.AsJson = False, *, flags: DoctorOptions) -> None:
    """Check this machine and its way into a swarm, and say what to fix. Exit code 1 if a check has failed."""
    from node.cli import doctor

    raise typer.Exit(doctor.run(flags, is_json=as_json))


@app.command("bench", rich_help_panel=HERE)
@with_flags("flags", BenchOptions)
def bench_command(model: options.Model, as_json: options.AsJson = False, *, flags: BenchOptions) -> None:
    """Measure this machine and a route for MODEL, and say what a node here would change."""
    from node.cli import bench

    bench.run(model, flags, is_json=as_json)


@app.command("completion", rich_help_panel=HERE)
def completion_command(
    shell: Annotated[completion.Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print what makes Tab complete `swarm` in a shell: eval "$(swarm completion bash)" in ~/.bashrc; zsh as bash, after compinit, in
    ~/.zshrc; swarm completion fish | source, in config.fish."""
    print(completion.script(shell), flush=True)
