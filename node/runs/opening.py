"""Opens a run by its file or its name.

The first participant makes the run's manifest: from its file, its data and, if version 0 is drawn, by drawing each unit once. All others
take the manifest that the swarm has; one who has the run file as well compares it first, and is told the first field that differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from node.events import Event, OnEvent
from node.training.data.token_data import TokenData
from node.training.data.tokens import TokenSettings, open_tokens
from node.training.initial import manifest_of_base, manifest_of_run
from node.training.spec.model_plan import ModelPlan, check_frames, plan_model
from node.training.spec.resolving import spec_of
from node.training.spec.run_file import RunFile
from node.training.spec.tokenizer import tokenizer_folder
from protocols.errors import ConfigError, ModelMismatchError, NoRouteError
from protocols.ids import ModelId
from protocols.runs import RunSpec, difference
from protocols.weights import Manifest
from swarm.checkpoints.digest import build_manifest
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.config import config_from_json
from swarm.peer.peer import Peer
from swarm.places import expanded
from swarm.weights.cache import ModelCache
from swarm.weights.lookup import Found, find_in_cache, find_in_swarm, once_readable, open_cache
from swarm.weights.naming import Naming
from swarm.weights.shelf import Shelf

LOOKS_S = (1.0, 2.0)
"""Seconds until further looks into the directory, if the run was not found right after joining."""

Progress = Callable[[str, int, int], None]
"""Told (what is done, how much of it is done, all of it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run that this process takes part in. `close` it."""

    model: ModelId
    """The run's name, and the digest of its manifest."""
    manifest: Manifest
    checkpoint: Checkpoint
    """Version 0; of a run whose weights are drawn, or come from peers, its files appear as units are fetched."""
    shelf: Shelf
    """What this process can give of version 0."""
    cache: ModelCache | None
    """Where fetched units go; None if version 0 is a directory of this machine."""

    @property
    def spec(self) -> RunSpec:
        assert self.manifest.run is not None
        return self.manifest.run

    @property
    def is_drawn(self) -> bool:
        """Is version 0 drawn from the seed?"""
        return not self.spec.base

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What a run file says of model and data, read on this machine."""

    file: RunFile
    plan: ModelPlan
    tokenizer: Path
    """Folder of the tokenizer's files."""
    train: TokenData | None
    """None if the files are not on this machine."""

    @property
    def spec(self) -> RunSpec:
        """Its digest of the data is "" if the data is not here."""
        digest = "" if self.train is None else self.train.digest
        return spec_of(self.file, num_parameters=self.plan.num_parameters, data_digest=digest)


def reading(progress: Callable[[int, int], None], on_event: OnEvent) -> Progress:
    """Tells how far it is, and at the end, by an event `read`, how much there was."""

    def tell(what: str, done: int, total: int) -> None:
        progress(done, total)
        if done == total:
            on_event(Event("read", f"{total:,} {what}"))

    return tell


def read_data(file: RunFile, data_dir: Path, progress: Progress, *, is_needed: bool) -> RunData:
    """Plan the model and open the training data. Blocks. is_needed: False = a machine without the files gets `train` of None."""
    plan = plan_model(file)
    spec_of(file, num_parameters=plan.num_parameters)  # what the run file has wrong is said before its text is read
    tokenizer = tokenizer_folder(file, plan.vocabulary, data_dir / "tokenizers")
    settings = TokenSettings(tokenizer=tokenizer, vocab_size=plan.vocabulary, cache=data_dir / "tokens")
    try:
        train = open_tokens(
            file.data.train, Path("/"), settings, progress=lambda done, total: progress("bytes of text", done, total)
        )
    except ConfigError:
        if is_needed:
            raise
        train = None
    return RunData(file=file, plan=plan, tokenizer=tokenizer, train=train)


def open_validation(data: RunData, data_dir: Path, progress: Progress) -> TokenData | None:
    """The validation data; None if the run file names none. Blocks."""
    if not data.file.data.validation:
        return None
    settings = TokenSettings(tokenizer=data.tokenizer, vocab_size=data.plan.vocabulary, cache=data_dir / "tokens")
    return open_tokens(
        data.file.data.validation,
        Path("/"),
        settings,
        "data.validation",
        lambda done, total: progress("bytes of text", done, total),
    )


class RunOpener:
    """Opens runs for one peer."""

    def __init__(self, peer: Peer, data_dir: Path, naming: Naming, progress: Progress = lambda what, done, total: None) -> None:
        self._peer, self._naming, self._progress, self._data_dir = peer, naming, progress, data_dir
        self._root = data_dir / "weights"

    async def by_name(self, name: str) -> OpenRun:
        """A run that the swarm knows, or one whose files are here from before. NoRouteError if there is none."""
        found = await self._find(name)
        if found is None:
            cached = await asyncio.to_thread(find_in_cache, self._root, name, self._naming)
            if cached is None:
                raise NoRouteError(
                    f"no peer takes part in a run called {name}: check the name and --peer, or begin it with its run file"
                )
            found = Found(model=cached[0], records=())
        return await self._take(found)

    async def by_file(self, data: RunData) -> OpenRun:
        """The run of a file: the swarm's, if it is the same, else a new one.

        ModelMismatchError names the first field in which the swarm's run of that name differs. ConfigError if no peer has begun it, and the
        data is not here, or as of `check_frames`.
        """
        check_frames(data.file, data.plan)
        found = await self._find(data.file.name)
        if found is None:
            return await asyncio.to_thread(self._begin, data)
        run = await self._take(found)
        if what := difference(_comparable(data.spec, run.spec), run.spec):
            run.close()
            raise ModelMismatchError(
                f"a run called {data.file.name} is under way with another spec: {what}; give yours another name, or take part in that one: "
                f"swarm node --run {data.file.name}"
            )
        return run

    async def _find(self, name: str) -> Found | None:
        def look() -> Awaitable[Found | None]:
            return find_in_swarm(self._peer.directory, name, self._naming)

        found = await once_readable(look)
        for pause_s in LOOKS_S if found is None and self._peer.num_neighbours else ():
            await asyncio.sleep(pause_s)
            if found := await once_readable(look):
                break
        return found

    async def _take(self, found: Found) -> OpenRun:
        cache = await open_cache(self._root, found, self._peer.pool, self._naming)
        if cache.manifest.run is None:
            cache.close()
            raise ConfigError(
                f"{found.model.name} is a model that is not in training: serve it by `swarm node {found.model.name}`"
            )
        checkpoint = await asyncio.to_thread(open_checkpoint, cache.directory)
        return OpenRun(
            model=cache.model, manifest=cache.manifest, checkpoint=checkpoint, shelf=Shelf.of_cache(cache), cache=cache
        )

    def _begin(self, data: RunData) -> OpenRun:
        """As the run's first participant. Blocks."""
        if data.train is None:
            raise ConfigError(
                f"no peer takes part in {data.file.name}, and data.train is not on this machine: begin the run where the data is"
            )
        place = data.file.model.checkpoint
        return self._begin_with(data, open_checkpoint(expanded(place))) if place is not None else self._begin_drawn(data)

    def _begin_drawn(self, data: RunData) -> OpenRun:
        config: Any = config_from_json(data.plan.raw_config, "model.config")
        manifest = manifest_of_run(
            config, data.spec, data.tokenizer, lambda done, total: self._progress("units of version 0", done, total)
        )
        model = ModelId(data.file.name, manifest.digest)
        cache = ModelCache(self._root, model, manifest)
        for entry in manifest.files:
            cache.write(entry.name, (data.tokenizer / entry.name).read_bytes())
        checkpoint = open_checkpoint(cache.directory)
        return OpenRun(model=model, manifest=manifest, checkpoint=checkpoint, shelf=Shelf.of_cache(cache), cache=cache)

    def _begin_with(self, data: RunData, checkpoint: Checkpoint) -> OpenRun:
        base = build_manifest(checkpoint, self._data_dir / "digests")
        manifest = manifest_of_base(checkpoint, replace(data.spec, base=base.digest), self._data_dir / "digests")
        model = ModelId(data.file.name, manifest.digest)
        shelf = Shelf.of_directory(model, manifest, checkpoint.tensors, checkpoint.path)
        return OpenRun(model=model, manifest=manifest, checkpoint=checkpoint, shelf=shelf, cache=None)


def _comparable(ours: RunSpec, theirs: RunSpec) -> RunSpec:
    """Our spec, with the base that theirs names: which checkpoint ours begins with shows in the manifest's tensors."""
    return replace(ours, base=theirs.base)
