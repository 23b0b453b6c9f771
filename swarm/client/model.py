"""The model you can call: `SwarmModelForCausalLM.from_pretrained(MODEL, peers=[...])`, then `generate` as with transformers.

The embedding, final norm and head are loaded here, from the checkpoint; every block runs at some node of the swarm. What comes
back is an instance of the checkpoint's own class (LlamaForCausalLM, …) and of SwarmModelForCausalLM.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.errors import CheckpointError
from swarm import waiting
from swarm.checkpoints import chat_template
from swarm.client import arguments, connection
from swarm.client.backend import Backend
from swarm.client.blocks import RemoteBlocks
from swarm.client.embedding import Texts, embed
from swarm.client.fetching import InTrainingError
from swarm.client.generation import RemoteGeneration
from swarm.client.remote_class import attach, become_remote
from swarm.client.sampling import Sampling
from swarm.client.stream import StreamedToken, Streaming, stream
from swarm.client.thin import ThinGeneration, build_thin
from swarm.client.tokenizer import is_from_peers, try_out
from swarm.meeting.bootstrap import FindConfig
from swarm.models.checkpoint import Checkpoint
from swarm.models.loading import EndsModel, load_ends
from swarm.models.tokenizer import load as load_tokenizer
from swarm.waiting import OnWait, Waits

log = logging.getLogger(__name__)


class SwarmModelForCausalLM(Streaming, RemoteGeneration):
    """A transformers generation model whose blocks are in a swarm. Make one with `from_pretrained`; `close` it, or let it go."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        peers: str | Sequence[str] = (),
        swarm: str = "public",
        dtype: str | torch.dtype = "auto",
        device: str | int | torch.device = "cpu",
        patience_s: float = ROUTE_TIMEOUT_S,
        priority: int = 0,
        model_name: str | None = None,
        cache_dir: str | Path | None = None,
        find: FindConfig | None = None,
        thin: bool | None = None,
        join: str | Path | None = None,
        allow: str | Path | Iterable[str] | None = None,
        deny: str | Path | Iterable[str] | None = None,
        trust: str | Path | Iterable[str] | None = None,
        identity: str | Path | None = None,
        accept_new_weights: bool = False,
        follow: bool = False,
        on_wait: OnWait | None = None,
        **others: Any,
    ) -> Any:
        """Load embedding and head of `model` and find its blocks; with `thin`, load nothing.

        model: a directory in Hugging Face form, a name that the swarm serves (NAME@DIGEST chooses among weights; config, tokenizer
        and ends then come from peers), or a Hub name. Its name in the swarm is the Hub name or the directory's last part,
        unless `model_name` says otherwise.
        peers: one or several multiaddrs of any peers of the swarm (`/ip4/…/p2p/…`, what `swarm node` prints); none = the last known
        ones, then neighbours on the local network, if the extra `lan` is installed.
        find: which peers to ask if none answers, if not as just said.
        join: an invitation to a swarm (`swarm invite` prints one), or a file that holds it; the key of a private swarm is kept below
        `cache_dir`, so that later calls need only `swarm`.
        allow, deny, trust: files of PeerIDs (one a line, read again when they change), or PeerIDs: only these, never these, these first.
        identity: a key file, made if there is none, so that this is the same peer each time (nodes with `--allow` need that); None = a
        fresh one.
        dtype: compute dtype of the route, embedding and head; "auto" takes the one in which most blocks are served.
        cache_dir: where hashes and fetched weights are kept; the first time, every weight of a directory is read once.
        thin: `model` is a name that the swarm serves (or name@digest), and nodes host its ends too: no weight is here, only the config and
        the tokenizer, which come from peers and are kept below `cache_dir`. Neither DHT nor hivemind is needed then. None = only of a model
        in training, whose embedding and head change with each version; False refuses such a model.
        follow: of a model in training, every call takes the newest version that is served when it begins (`version` says which) and keeps
        it. If nodes drop it before the answer ends, the call raises VersionGoneError; with `follow` the text so far is computed again with
        the newest version, and the answer goes on with that (logged; `past_key_values.versions` has all of them).
        accept_new_weights: a name means the weights that it meant here before, and others are refused (ModelMismatchError); True takes
        what most nodes serve now. NAME@DIGEST does the same for one digest.
        patience_s: how long a call waits for nodes that cover the model before it raises NoRouteError.
        priority: 0, or down to -100; the lower, the more device time others get if nodes are busy.
        device: of embedding and head; blocks are on their nodes' devices.
        on_wait: called with what is waited for (`swarm.waiting.Wait`; `str` of it is for people), while loading and at every later
        step, and with None when that is over; from any thread, so it must be quick. `swarm.waiting` logs the same, level INFO.
        others: what transformers and Petals call otherwise (`torch_dtype`, `device_map`, `initial_peers`), or what asks for nothing
        else than happens here; everything else raises BadRequestError, which says what to use (`arguments.py`).

        Raises BadRequestError (arguments), ModelNotFoundError, CheckpointError, ModelNotSupportedError, PeerUnreachableError (no peer
        answers), NoRouteError (no peer serves it), or ModelMismatchError, which names the first tensor that differs from what is served.
        """
        chosen = arguments.settled({"peers": peers, "dtype": dtype, "device": device}, others, cls.from_pretrained)
        where = None if thin else arguments.device_of(chosen["device"])  # refused before a peer is asked
        settings = connection.Settings(
            peers=arguments.peers_of(chosen["peers"]), swarm=swarm, dtype=chosen["dtype"] or "auto", route_timeout_s=patience_s,
            priority=priority, model_name=model_name, cache_dir=cache_dir, find=find,
            accept_new_weights=accept_new_weights, follow=follow, waits=Waits(on_wait),
        )  # fmt: skip
        lists = {"allow": allow, "deny": deny, "trust": trust}
        settings = connection.entered(settings, None if join is None else str(join), lists, identity)
        return connected(model, settings, where, thin)

    def stream(
        self,
        prompt: str | Sequence[int] | Tensor,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        **options: Any,
    ) -> AsyncIterator[StreamedToken]:
        """Continue one prompt, token by token, in the caller's loop: `async for token in model.stream("Once")`.

        The tokens are those of `generate` with the same settings. temperature 0 is greedy; options: further arguments of `generate` that
        concern one sequence (`repetition_penalty`, `stop_strings`, `logits_processor`, `prompt_lookup_num_tokens`, …).
        Leaving the loop early: `aclose()` the generator, or cancel the task; the session ends with it.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return stream(self, prompt, max_new_tokens, sampling, options)

    def embed(self, texts: Texts) -> Tensor:
        """Embeddings of one text or several, or of their token ids: [n, H] float32 on the CPU, each of length 1.

        Each is the mean over all tokens of transformers' last hidden states (`AutoModel`), made of length 1; one after the other.
        BadRequestError: a text has no token, or the model does not give such states to a thin client.
        """
        return embed(self, texts, isinstance(self, ThinGeneration))

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, loaded at the first use; CheckpointError if it has none."""
        found = self.tokenizer_if_any()
        if found is None:
            raise CheckpointError(f"{self.remote.path} holds no tokenizer that can be read; pass token ids instead of text")
        return found

    def tokenizer_if_any(self) -> Any:
        """The checkpoint's tokenizer, or None."""
        if "swarm_tokenizer" not in self.__dict__:
            if is_from_peers(Path(self.remote.path)):
                try_out(Path(self.remote.path), self.remote.backend.model.name)
            found = load_tokenizer(self.remote.path)
            if found is not None and found.chat_template is None:  # as transformers' processors, which own that file
                found.chat_template = chat_template.of_processor(Path(self.remote.path)).get("default")
            self.__dict__["swarm_tokenizer"] = found
        return self.__dict__["swarm_tokenizer"]

    @property
    def version(self) -> int | None:
        """Of a model in training: the version (optimizer steps) that computed the latest step, of whichever call.

        None before the first step, and for any other model. If several threads generate, `past_key_values.versions` and
        `StreamedToken.version` say it of one answer.
        """
        version: int | None = self.remote.backend.version
        return version

    def close(self) -> None:
        """Let go of the swarm; open sessions end. Letting the model go does the same."""
        cast("weakref.finalize[Any, Any]", self.__dict__["swarm_finalizer"])()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connected(model: str | Path, settings: connection.Settings, device: torch.device | None, thin: bool | None = None) -> Any:
    """What `from_pretrained` returns. device: of embedding and head; None = a thin model, which has neither. thin: as there."""
    try:
        checkpoint, backend = (connection.connect if device else connection.connect_thin)(arguments.model_of(model), settings)
    except InTrainingError as error:
        if thin is not None:
            raise
        log.info("%s", error)
        return connected(model, settings, None)
    try:
        if device is None:
            return build_thin(checkpoint, backend, SwarmModelForCausalLM)
        with settings.waits.on(waiting.loading(f"embedding and head of {checkpoint.name}")):
            ends = load_ends(checkpoint, dtype=backend.dtype, device=device)
        return build(ends, checkpoint, backend)
    except BaseException:
        backend.close()
        raise


def build(ends: EndsModel, checkpoint: Checkpoint, backend: Backend) -> Any:
    """Join embedding and head with a backend into a model that generates."""
    model = ends.model
    blocks = RemoteBlocks(backend, ends.returns_tuple, ends.template)
    attach(model, blocks, ends.owner, ends.attribute)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    become_remote(model, (SwarmModelForCausalLM,), checkpoint, backend, ends.num_blocks, vocab_size)
    return model
