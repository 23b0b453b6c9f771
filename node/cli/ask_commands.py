"""The commands by which people ask: `generate`, `chat`, `serve`, `status`, `top`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from node.cli.flags import completion, options
from node.cli.flags.command_options import ClientOptions, MeetingOptions, Serving, with_flags


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
    from node.cli.ask import generate
    from node.cli.terminal import prompts

    asking, sampling = asked.asking(model), asked.sampling(as_model_says=False)  # a wrong flag, before stdin is read
    generate.run(asking, sampling, prompts.chosen(prompt, prompt_file), asked.stats, asked.thin)


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
    from node.cli.ask import chat
    from node.cli.ask.conversation import Manner
    from node.cli.terminal import prompts

    system = None if system is None else prompts.read(system, "--system")

    with_stats = asked.stats or sys.stderr.isatty()
    manner = Manner(max_new_tokens=asked.max_new_tokens, system=system, keeps_all=keep_all, with_stats=with_stats)
    chat.run(asked.asking(model), asked.sampling(as_model_says=True), manner, asked.thin, keeps_history=history)


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
    from node.cli.host import serve

    serve.run(model, serving)


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
    machines: options.Machines = False,
    as_json: options.AsJson = False,
    *,
    asked: MeetingOptions,
) -> None:
    """Show who hosts what: peers, spans, gaps, load and speeds."""
    from node.cli.watch import status

    status.run(model, asked.enter(), with_machines=machines, is_json=as_json, data_dir=asked.data_dir, lan=asked.lan)


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
    from node.cli.watch import top

    top.run(model, asked.enter(), is_once=once, is_json=as_json, data_dir=asked.data_dir, lan=asked.lan)
