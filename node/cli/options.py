"""The flags that several commands share, each worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory in Hugging Face form, or a Hub name.", show_default=False)
]
Peers = Annotated[
    list[str],
    typer.Option(
        "--peer",
        metavar="MULTIADDR",
        help="Join by this peer: an address that `swarm node` printed. Repeatable.",
        show_default=False,
    ),
]
AskedPeers = Annotated[
    list[str],
    typer.Option(
        "--peer",
        metavar="MULTIADDR",
        help="Ask by this peer: an address that `swarm node` printed. At least one; repeatable, and any that answers will do.",
        show_default=False,
    ),
]
Swarm = Annotated[str, typer.Option("--swarm", metavar="NAME", help="Which swarm; peers of different names never meet.")]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model-name", metavar="NAME", help="The model's name in the swarm; default: the Hub name, or the directory's last part."
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where to compute: auto, cpu, cuda:0, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Number format: auto, float32, bfloat16, float16.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Keys and digests; default: $XDG_DATA_HOME/murmuration, ~/.local/share/murmuration."
    ),
]

# --- generate and chat

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Stop after so many tokens.")]
Temperature = Annotated[float | None, typer.Option("--temperature", metavar="T", help="Sample; 0 = greedy, as is the default.")]
TopP = Annotated[float | None, typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens that sum to P.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Sample from the K likeliest tokens.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.")]
Patience = Annotated[float, typer.Option("--patience", metavar="S", help="Seconds to wait for nodes that cover the model.")]
Stats = Annotated[
    bool, typer.Option("--stats", help="Say tokens/s, hops and deaths survived on stderr (always done on a terminal).")
]
