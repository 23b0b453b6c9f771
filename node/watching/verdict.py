"""Whether a model can be asked, and what to do. Pure."""

from __future__ import annotations

from node.watching.model_rows import ModelRows
from protocols.words import counted
from swarm.suggestion import NodeCommand


def verdict(rows: ModelRows, hosting: NodeCommand) -> list[str]:
    """Is the model complete, and if not, what to do."""
    if not rows.is_meant:
        return [f"other weights by this name; {rows.name}@{rows.digest[:12]} chooses them"]
    if not rows.is_complete:
        return [f"missing: blocks {', '.join(rows.missing)}; host them:", hosting.text(rows.name, "--blocks", rows.missing[0])]
    complete = f"complete: every block has {counted(rows.least_replicas, 'node')} or more"
    if rows.is_thin_possible:
        return [f"{complete}; thin clients can ask"]
    return [f"{complete}; thin clients cannot ask: start nodes with --ends that host the first and the last block"]
