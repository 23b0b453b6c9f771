"""From a run file to the signed spec of the run."""

from __future__ import annotations

from node.training.spec.run_file import RunFile
from protocols.errors import BadRequestError, ConfigError
from protocols.runs import BatchRule, DataRule, RunSpec


def spec_of(run_file: RunFile, *, num_parameters: int, data_digest: str = "", base: str = "") -> RunSpec:
    """What this file says of the run, for all of its peers.

    num_parameters: of the model, a tied head counted once (`ModelPlan`). data_digest: of the tokens of data.train; "" on a machine
    without them, whose spec can be compared but not begun. base: the digest of the checkpoint that version 0 is; "" = it is drawn.
    ConfigError names the field that is out of bounds.
    """
    training = run_file.training
    try:
        return RunSpec(
            name=run_file.name,
            seed=run_file.seed,
            base=base,
            data=DataRule(digest=data_digest, sequence_tokens=run_file.data.sequence_tokens, packing=run_file.data.packing),
            batch=BatchRule(
                steps=training.num_steps(num_parameters),
                batch_tokens=training.batch_tokens,
                micro_batch_sequences=training.micro_batch_sequences,
            ),
            optimizer=run_file.optimizer,
            schedule=run_file.schedule,
            averaging=run_file.averaging,
            activations=training.activations,
            checkpoint_every=run_file.checkpoint.every_steps,
            serve_every=run_file.serving.every_versions,
        )
    except ConfigError:
        raise
    except BadRequestError as error:
        raise ConfigError(f"run {run_file.name}: {error}; change it in the run file") from None
