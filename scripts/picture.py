"""README's picture: nodes, blocks, one token's way, and a death.

An SVG with its own colours for light and dark pages (`prefers-color-scheme`). `scripts/docs.py` writes it to docs/route.svg.
Units: pixels of the view box; x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs" / "route.svg"
WIDTH, HEIGHT = 840, 348
NODE_WIDTH, NODE_HEIGHT = 190, 92
BLOCK = 38
"""Side of a block's square, in pixels."""

STYLE = """
  .page { font: 15px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f; }
  .small { font-size: 13px; fill: #57606a; }
  .box { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.5; }
  .block { fill: #ddf4ff; stroke: #54aeff; }
  .way { fill: none; stroke: #0969da; stroke-width: 2.5; }
  .way-head { fill: #0969da; }
  .new { fill: none; stroke: #1a7f37; stroke-width: 2.5; stroke-dasharray: 7 5; }
  .new-head, .new-text { fill: #1a7f37; }
  .dead { fill: none; stroke: #cf222e; stroke-width: 2.5; }
  .faded { opacity: 0.5; }
  .dead-text { fill: #cf222e; }
  .name { font-weight: 600; }
  .middle { text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #e6edf3; }
    .small { fill: #9198a1; }
    .box { fill: #161b22; stroke: #6e7681; }
    .block { fill: #0c2d6b; stroke: #388bfd; }
    .way { stroke: #58a6ff; }
    .way-head { fill: #58a6ff; }
    .new { stroke: #3fb950; }
    .new-head, .new-text { fill: #3fb950; }
    .dead { stroke: #f85149; }
    .dead-text { fill: #f85149; }
  }
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A box with the blocks that the node hosts; `x`, `y` are its upper left corner."""

    name: str
    blocks: range
    x: int
    y: int

    def draw(self) -> list[str]:
        parts = [
            f'<rect class="box" x="{self.x}" y="{self.y}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="10"/>',
            f'<text class="name" x="{self.x + 14}" y="{self.y + 25}">{self.name}</text>',
        ]
        left = self.x + (NODE_WIDTH - (len(self.blocks) * (BLOCK + 10) - 10)) // 2
        for place, block in enumerate(self.blocks):
            x, y = left + place * (BLOCK + 10), self.y + 40
            parts.append(f'<rect class="block" x="{x}" y="{y}" width="{BLOCK}" height="{BLOCK}" rx="5"/>')
            parts.append(f'<text class="middle" x="{x + BLOCK // 2}" y="{y + 25}">{block}</text>')
        return parts


CLIENT_X, CLIENT_Y, CLIENT_WIDTH, CLIENT_HEIGHT = 20, 50, 150, NODE_HEIGHT
A = Node("node A", range(0, 3), 310, 50)
B = Node("node B", range(3, 6), 630, 50)
C = Node("node C, replica of B", range(3, 6), 630, 222)
TOP = 26
"""Height of the way back to the client, in pixels."""


def route() -> str:
    """The whole picture, as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="One token\'s way">',
        f"<style>{STYLE}</style>",
        "<defs>",
        *_arrow_head("way"),
        *_arrow_head("new"),
        "</defs>",
        '<g class="page">',
        *_client(),
        *A.draw(),
        '<g class="faded">',
        *B.draw(),
        "</g>",
        *C.draw(),
        *_way(),
        *_death(),
        _label("small", CLIENT_X, HEIGHT - 6, "squares: blocks (layers) of the model, numbered from 0"),
        "</g>",
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _arrow_head(kind: str) -> list[str]:
    path = f'<path class="{kind}-head" d="M0 0 10 5 0 10z"/>'
    return [
        f'<marker id="{kind}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">{path}</marker>'
    ]


def _client() -> list[str]:
    middle = CLIENT_X + CLIENT_WIDTH // 2
    return [
        f'<rect class="box" x="{CLIENT_X}" y="{CLIENT_Y}" width="{CLIENT_WIDTH}" height="{CLIENT_HEIGHT}" rx="10"/>',
        f'<text class="name middle" x="{middle}" y="{CLIENT_Y + 38}">client</text>',
        f'<text class="small middle" x="{middle}" y="{CLIENT_Y + 62}">needs no weights</text>',
    ]


def _way() -> list[str]:
    """The round of one token: client, A, B, client."""
    row = A.y + NODE_HEIGHT // 2
    start, back = CLIENT_X + CLIENT_WIDTH, CLIENT_X + CLIENT_WIDTH // 2
    return [
        _line("way", f"M{start} {row} H{A.x - 3}"),
        _label("small middle", (start + A.x) // 2, row, "a token"),
        _line("way", f"M{A.x + NODE_WIDTH} {row} H{B.x - 3}"),
        _label("small middle", (A.x + NODE_WIDTH + B.x) // 2, row, "a hidden state"),
        _line("way", f"M{B.x + NODE_WIDTH // 2} {B.y} V{TOP} H{back} V{CLIENT_Y - 3}"),
        _label(
            "small middle", (back + B.x + NODE_WIDTH // 2) // 2, TOP, "hidden state or logits: the client picks the next token"
        ),
    ]


def _death() -> list[str]:
    """A cross over B, and the way through C that replaces it."""
    right, low = B.x + NODE_WIDTH, B.y + NODE_HEIGHT
    row, back, down = C.y + NODE_HEIGHT // 2, CLIENT_X + CLIENT_WIDTH // 2, A.x + NODE_WIDTH // 2
    return [
        _line("dead", f"M{B.x} {B.y} L{right} {low} M{right} {B.y} L{B.x} {low}", head=False),
        _label("dead-text name middle", B.x + NODE_WIDTH // 2, low + 32, "B dies"),
        _line("new", f"M{down} {A.y + NODE_HEIGHT + 2} V{row - 16} H{C.x - 3}"),
        _label("new-text", down + 12, row - 34, "A sends C everything"),
        _label("new-text", down + 12, row - 16, "that it sent to B"),
        _line("new", f"M{C.x} {row + 16} H{back} V{CLIENT_Y + CLIENT_HEIGHT + 3}"),
        _label("new-text", back + 12, row - 2, "the answer goes on,"),
        _label("new-text", back + 12, row + 16, "with the same tokens"),
    ]


def _label(kind: str, x: int, line: int, text: str) -> str:
    """A text just above a line's height."""
    return f'<text class="{kind}" x="{x}" y="{line - 8}">{text}</text>'


def _line(kind: str, path: str, head: bool = True) -> str:
    end = f' marker-end="url(#{kind})"' if head else ""
    return f'<path class="{kind}" d="{path}"{end}/>'
