"""What other peers call at a node."""

from __future__ import annotations

from node import hardware, metrics
from node.about import AboutHere
from node.config import NodeConfig
from node.device.thread import Device, DeviceConfig
from node.events import OnEvent
from node.gradients.frozen_stages import FrozenStages
from node.measuring import Measures
from node.operating.orders import Orders
from node.runs.stage.node_run import NodeRun
from node.runs.stage.pause_switch import PauseSwitch
from node.serving.dispatcher import Dispatcher
from node.training.servicer import TrainingServicer
from protocols.weights_id import Weights
from swarm.bans import Bans
from swarm.peer.peer import Peer
from swarm.rpc.call import Handlers
from swarm.weights.uploader import Uploader


class NodeServices:
    """They are there before the node has met the swarm: `handlers` are its server's, `connect` says by which peer they call others."""

    def __init__(self, config: NodeConfig, bans: Bans, on_event: OnEvent, switch: PauseSwitch | None) -> None:
        self._config = config
        self.device_name, self.device = hardware.pick_device(config.device), _device(config)
        self.dispatcher, self.uploader = Dispatcher(), Uploader(config.upload_bytes_s)
        self.orders = Orders(self.dispatcher, bans, on_event, is_test=config.is_test)
        frozen = FrozenStages(self.dispatcher.host_of, self.device, lambda: hardware.room_bytes(self.device_name))
        self.passes = TrainingServicer(self.device, frozen=frozen.stage_of, on_sent=self.uploader.spend)
        self.training: NodeRun | None = None
        """The node's part in a training run."""
        if config.run is not None:
            self.training = NodeRun(config, self.device, self.passes, self.uploader, self.dispatcher, on_event, switch)

    def handlers(self) -> Handlers:
        """By method name."""
        about = AboutHere(self.device_name, self.device.tally, tuple if self.training is None else self.training.trained)
        return {
            **about.handlers(), **self.dispatcher.handlers(), **self.uploader.handlers(), **self.passes.handlers(),
            **self.orders.handlers(), **({} if self.training is None else self.training.handlers()),
        }  # fmt: skip

    def connect(self, peer: Peer) -> None:
        """The node's peer is up. Bans and a pause of earlier runs hold from now on."""
        self.orders.keep(peer, self._config.data_dir)
        self.passes.connect(peer.peer_id, peer.pool)
        if self.training is not None:
            self.training.connect(peer)

    def tell(self, measures: Measures, peer: Peer) -> None:
        """What is read anew whenever Prometheus asks."""
        counts, memory, dispatcher = measures.metrics, self.device.memory, self.dispatcher
        counts.read_from(metrics.NODE_PEERS, lambda: peer.num_neighbours)
        counts.read_from(metrics.NODE_FREE, lambda: max(0, memory.free_bytes))
        counts.read_from(metrics.NODE_USED, lambda: memory.used_bytes)
        counts.read_from(metrics.NODE_SESSIONS, lambda: dispatcher.num_sessions)
        counts.read_from(metrics.NODE_KEPT, lambda: sum([host.num_kept for host in dispatcher.hosts]))
        counts.read_from(metrics.NODE_WAITING, lambda: sum([host.num_waiting for host in dispatcher.hosts]))
        counts.read_from(metrics.NODE_BLOCKS, lambda: len(_hosted(dispatcher)))


def _hosted(dispatcher: Dispatcher) -> set[tuple[Weights, int]]:
    spans = [(host.served.weights, host.served.span) for host in dispatcher.hosts]
    return {(weights, block) for weights, span in spans for block in range(span.start, span.stop)}


def _device(config: NodeConfig) -> Device:
    return Device(config=DeviceConfig() if config.train_share is None else DeviceConfig(train_share=config.train_share))
