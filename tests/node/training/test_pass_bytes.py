"""Bytes of a pass on the wire, and a real model's pass."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.device.thread import Device
from node.training.servicer import TrainingServicer
from node.training.stage import Stage
from node.training.trained_stage import TrainedStage
from node.training.unit_state import UnitState
from protocols.ids import Span
from protocols.route import Hop
from protocols.training import NO_TARGET
from protocols.units import Blocks
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.rpc import ChannelPool, RpcServer, tls
from swarm.training.chain import train
from tests.families import make_checkpoint
from tests.node.training.toy_run import RUN, THIRDS, TRAINER, TrainingNode, batch, new_identity, pass_of, running, spec_of

MOST = 1.03
"""Bytes of a pass between two hops, over those of its hidden states and their gradient."""


class Meter:
    """A proxy that counts what passes, TLS and gRPC included."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def before(self, address: str) -> AsyncIterator[str]:
        """The address that leads to `address`."""
        host, _, port = address.rpartition(":")

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)

        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.num_bytes += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.mark.parametrize(("codec", "token_bytes"), [("none", 4 * 320), ("bfloat16", 2 * 320), ("int8", 320 + 4 * 3)])
async def test_a_pass_takes_three_hundredths_more_than_its_values(codec: str, token_bytes: int) -> None:
    """10M parameters: 8 sequences of 128 tokens, hidden size 320."""
    width, shape, num = 320, (8, 128), 4
    nodes, meter = [TrainingNode(span, width=width, shape=shape) for span in THIRDS], Meter()
    async with running(*nodes) as pool, meter.before(nodes[1].address) as address:
        route = (nodes[0].hop(), nodes[1].hop(address=address), nodes[2].hop())
        await train(pool, pass_of(route, 0, batch(0, shape, is_packed=True), codec=codec))  # connects
        before = meter.num_bytes
        for index in range(1, 1 + num):
            result = await train(pool, pass_of(route, index, batch(index, shape, is_packed=True), codec=codec))
        await asyncio.sleep(0)
        least = num * 2 * token_bytes * shape[0] * shape[1]
        assert least < meter.num_bytes - before <= MOST * least, (meter.num_bytes - before) / least
        assert sum(receipt.num_bytes for receipt in result.receipts) == 2 * least // num


async def test_the_gradients_of_a_real_model_through_two_nodes_are_transformers_own(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    checkpoint = open_checkpoint(folder)
    spans = (Span(0, 1), Span(1, checkpoint.num_blocks))
    own = batch(1, is_packed=False)
    nodes = [RealNode(folder, span) for span in spans]
    pool = ChannelPool(TRAINER)
    try:
        route = tuple([await node.start() for node in nodes])
        result = await train(pool, pass_of(route, 1, own))
    finally:
        await pool.close()
        for node in nodes:
            await node.stop()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = model(own.ids.long()).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), own.labels.flatten().long(), ignore_index=NO_TARGET, reduction="sum"
    )
    loss.backward()
    assert result.loss_sum == pytest.approx(float(loss.detach()), rel=1e-5)
    right = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    got = {key: value for node in nodes for key, value in node.block_sums().items()}
    matched = {name: gradient for name, gradient in right.items() if ".layers." in name}
    assert len(got) == len(matched) > 10
    for name, gradient in matched.items():
        assert torch.allclose(got[name.partition(".layers.")[2]], gradient, atol=1e-5), name


class RealNode:
    """A stage of a checkpoint behind a server."""

    def __init__(self, folder: Path, span: Span) -> None:
        checkpoint = open_checkpoint(folder)
        _, parts = load_parts(checkpoint, span, dtype=torch.float32)
        stage = Stage(parts, load_ends(checkpoint, dtype=torch.float32), checkpoint.num_blocks)
        states = {unit: UnitState(unit, stage.parameters(unit)) for unit in stage.units}
        self.identity, self.span = new_identity(), span
        self.trained = TrainedStage(run=RUN, stage=stage, states=states, spec=spec_of())
        self.pool, self.certificate = ChannelPool(self.identity), tls.make(self.identity)
        servicer = TrainingServicer(Device())
        servicer.open(self.trained)
        servicer.connect(self.identity.peer_id, self.pool)
        self.server = RpcServer(self.identity, self.certificate, servicer.handlers())

    async def start(self) -> Hop:
        address = f"127.0.0.1:{await self.server.start()}"
        return Hop(self.identity.peer_id, (address,), self.certificate.der, Blocks.of(self.span))

    async def stop(self) -> None:
        await self.server.stop()
        await self.pool.close()

    def block_sums(self) -> dict[str, torch.Tensor]:
        return {
            name: tensor
            for unit, state in self.trained.states.items()
            if isinstance(unit, Blocks)
            for name, tensor in state.views(state.flat).items()
        }
