"""The flags that several commands share, each worded once.

`command_options.py` has the flags of each command as one value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node.cli.flags import completion
from protocols.orders import MAX_BAN_S

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A directory in Hugging Face form (or with one GGUF file), a name (or NAME@DIGEST) that the swarm serves, or a Hub name.",
        show_default=False,
        autocompletion=completion.names,
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="A directory in Hugging Face form (or with one GGUF file), a name (or NAME@DIGEST) that the swarm serves, or a Hub name. "
        "Several: one node serves all of them.",
        show_default=False,
        autocompletion=completion.names,
    ),
]
Peers = Annotated[
    list[str],
    typer.Option(
        "--peer",
        metavar="MULTIADDR",
        help="Join by this peer: an address that `swarm node` printed. Repeatable; none = the last known ones, then neighbours.",
        show_default=False,
    ),
]
AskedPeers = Annotated[
    list[str],
    typer.Option(
        "--peer",
        metavar="MULTIADDR",
        help="Ask by this peer: an address that `swarm node` printed. Repeatable, and any that answers will do; none = the last "
        "known ones, then neighbours.",
        show_default=False,
    ),
]
Lan = Annotated[
    bool,
    typer.Option(
        "--lan/--no-lan",
        help="Look for neighbours on the local network if no --peer is given (extra `lan`); a node also tells them of itself.",
    ),
]
Swarm = Annotated[str, typer.Option("--swarm", metavar="NAME", help="Which swarm; peers of different names never meet.")]
Join = Annotated[
    str | None,
    typer.Option(
        "--join",
        metavar="INVITATION",
        help="Enter the swarm of this invitation (`swarm invite` prints one), or of the file that holds it. A word on the command "
        "line can be seen by other users of this machine (`ps`): a file or SWARM_JOIN cannot.",
        show_default=False,
    ),
]
Allow = Annotated[
    Path | None,
    typer.Option(
        "--allow",
        metavar="FILE",
        help="Only the peers whose PeerIDs are in FILE, one a line: they may call, are called and believed.",
    ),
]
Deny = Annotated[
    Path | None, typer.Option("--deny", metavar="FILE", help="Never the peers in FILE; read again when it changes, as all three.")
]
Trust = Annotated[
    Path | None,
    typer.Option("--trust", metavar="FILE", help="The peers in FILE are tried first and need not prove themselves first."),
]
ClientIdentity = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="Be the same peer each time, for nodes with --allow: a key file, made if there is none; default: a fresh one each time.",
    ),
]
NodeIdentity = Annotated[
    Path | None,
    typer.Option("--identity", metavar="FILE", help="Key file, made if there is none; default: one in the data directory."),
]
Listen = Annotated[
    str, typer.Option("--listen", metavar="HOST:PORT", help="Listen here: p2p at PORT, gRPC at PORT + 1; port 0 = free ones.")
]
Announce = Annotated[
    str | None, typer.Option("--announce", metavar="HOST:PORT", help="What others dial, if a port is forwarded to us.")
]
Machines = Annotated[
    bool, typer.Option("--machines", help="Also ask each node what its machine is, and what it has served and trained.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead, for programs.")]
MetricsAt = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="[HOST:]PORT",
        help="Count what is done, and let Prometheus read it here; without HOST on this machine only, port 0 = a free one.",
        show_default=False,
    ),
]
Node = Annotated[
    str,
    typer.Argument(
        metavar="NODE",
        help="A node's PeerID, its last 6 letters or more, its name if no other has it, or an address that `swarm node` printed.",
        show_default=False,
    ),
]
Banned = Annotated[str, typer.Argument(metavar="PEER", help="The PeerID that is banned: 52 letters.", show_default=False)]
BanSeconds = Annotated[
    int, typer.Option("--seconds", metavar="N", min=1, max=MAX_BAN_S, help="How long the ban holds; up to 30 days.")
]
OperatorKey = Annotated[
    Path | None,
    typer.Option(
        "--operator-key",
        metavar="FILE",
        help="The secret key of an operator (swarm operator new): orders are given in its name. For a gateway: its page gets buttons.",
        show_default=False,
    ),
]
Dashboard = Annotated[
    str | None,
    typer.Option(
        "--dashboard",
        metavar="[HOST:]PORT",
        help="Show the swarm in a browser here; without HOST on this machine only, port 0 = a free one.",
        show_default=False,
    ),
]
Otlp = Annotated[
    str | None,
    typer.Option(
        "--otlp",
        metavar="URL",
        help="Send traces to the OpenTelemetry collector at this URL, as http://127.0.0.1:4318 (extra `otel`); default: as the variable "
        "OTEL_EXPORTER_OTLP_ENDPOINT says, else none.",
        show_default=False,
    ),
]
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
        "--data-dir",
        metavar="DIR",
        help="Keys, digests and fetched weights; default: $XDG_DATA_HOME/murmuration, ~/.local/share/murmuration.",
    ),
]
AcceptNewWeights = Annotated[
    bool,
    typer.Option(
        "--accept-new-weights",
        help="Take the weights that a name means now, even if it meant others here before; NAME@DIGEST does the same for one.",
    ),
]

# --- serve and up

Port = Annotated[int, typer.Option("--port", metavar="PORT", help="Listen for HTTP here; 0 = a free port.")]
Host = Annotated[str, typer.Option("--host", metavar="HOST", help="Listen on this address of this machine.")]
RunsDir = Annotated[
    Path | None,
    typer.Option("--runs-dir", metavar="DIR", help="Show on the page what `swarm train --out DIR` writes on this machine."),
]
MaxRequests = Annotated[int, typer.Option("--max-requests", metavar="N", help="Answer so many requests at once; others wait.")]
MaxSeconds = Annotated[
    float,
    typer.Option("--max-seconds", metavar="S", help="End an answer so many seconds after its request came, as at its length."),
]
AllowOrigin = Annotated[
    list[str],
    typer.Option(
        "--allow-origin",
        metavar="ORIGIN",
        help="Let web pages of this origin, as https://chat.example, use the API (CORS); repeatable; * = of any, if there are keys.",
        show_default=False,
    ),
]

# --- generate and chat

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Stop after so many tokens.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="T", help="Sample; 0 = greedy. Default: greedy, but chat does as the model's settings say."
    ),
]
TopP = Annotated[float | None, typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens that sum to P.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Sample from the K likeliest tokens.")]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Pick the likeliest token, also if the model's own settings say to sample.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Makes sampling repeatable.")]
Patience = Annotated[float, typer.Option("--patience", metavar="S", help="Seconds to wait for nodes that cover the model.")]
Priority = Annotated[
    int,
    typer.Option(
        "--priority", metavar="N", help="0, or down to -100: the lower, the more device time others get if nodes are busy."
    ),
]
Speculate = Annotated[
    int | None,
    typer.Option(
        "--speculate",
        metavar="N",
        help="Guess up to N tokens ahead, from what was said before (or by --draft), and check them in one trip; the text stays the same.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option("--draft", metavar="MODEL", help="Let this small model of the same tokenizer guess, on this machine."),
]
Stats = Annotated[
    bool,
    typer.Option(
        "--stats",
        help="Say tokens/s, hops, deaths survived and where the time went on stderr (the first three are always said on a terminal).",
    ),
]
Thin = Annotated[
    bool,
    typer.Option(
        "--thin",
        help="Load nothing here: nodes embed and project too, config and tokenizer come from peers. MODEL is its name in the swarm.",
    ),
]
Follow = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Of a model in training: if nodes drop the version that an answer began with, go on with the newest one instead of ending.",
    ),
]
