"""The commands of training: `train`, `runs`, `eval`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.cli.flags import options
from node.cli.flags.command_options import EvaluationOptions, MeetingOptions, Training, with_flags


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
    from node.cli.train import train

    train.run(run_file, training, context.args)


@with_flags("asked", MeetingOptions)
def runs_command(
    as_json: options.AsJson = False,
    *,
    asked: MeetingOptions,
) -> None:
    """List the training runs of the swarm: version, stages, trainers, tokens/s."""
    from node.cli.watch import runs

    runs.run(asked.enter(), is_json=as_json, data_dir=asked.data_dir, lan=asked.lan)


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
    from node.cli.ask import evaluate

    evaluate.run(model, data, sequence_tokens, as_json, asked)


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run, with metrics.jsonl.", show_default=False)],
    as_json: options.AsJson = False,
) -> None:
    """Write report.html of a run: plots of loss, peers, speed and bytes, evaluations and events."""
    from node.cli.train import report

    report.run(folder, is_json=as_json)
