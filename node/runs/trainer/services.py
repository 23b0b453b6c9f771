"""What other peers call at a trainer."""

from __future__ import annotations

from node.about import AboutHere
from node.runs.keeper_server import KeeperServer
from node.runs.trainer.journal_server import JournalServer
from node.runs.trainer.lease_handler import LeaseHandler
from node.runs.trainer.notes import Notes
from node.runs.trainer.part import TrainerPart
from protocols.ids import ModelId
from swarm.rpc.call import Handlers
from swarm.weights.uploader import Uploader


class TrainerServices:
    """They are there before the trainer has met the swarm: `handlers` are its server's. What they tell is added as it comes to be."""

    def __init__(self, upload_bytes_s: int) -> None:
        self.uploader, self.leases = Uploader(upload_bytes_s), LeaseHandler()
        self.keepers, self.journals = KeeperServer(self.uploader.turn), JournalServer(self.uploader.spend)
        self.parts = list[TrainerPart]()
        """What this process does in its run, once it does."""

    def handlers(self) -> Handlers:
        """By method name."""
        about = AboutHere("cpu", trained=lambda: [one.trained() for one in self.parts])
        return {
            **about.handlers(), **self.uploader.handlers(), **self.leases.handlers(), **self.journals.handlers(),
            **self.keepers.handlers(),
        }  # fmt: skip

    def open(self, run: ModelId, part: TrainerPart, noted: Notes) -> None:
        """Tell and answer for this part from now on."""
        self.parts.append(part)
        self.leases.open(run, part.turns)
        self.journals.open(run, noted, lambda: part.turns.works_for)
