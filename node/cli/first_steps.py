"""What `swarm` alone prints: the commands in a newcomer's order."""

from __future__ import annotations

STEPS: dict[str, dict[str, str]] = {
    "This machine": {
        "swarm doctor": "is it ready? what to fix",
        "swarm bench MODEL": "what would it add to a swarm?",
    },
    "Ask a swarm": {
        "swarm status": "what it serves, and who hosts it; live: swarm top",
        "swarm chat NAME --thin": "talk with one; nothing is loaded here",
        "swarm generate NAME TEXT": "let it go on with a text (- reads stdin)",
        "swarm serve": "OpenAI's API for your programs, at 127.0.0.1:8000",
    },
    "Host a model": {
        "swarm up MODEL": "host it and serve the API, in one process",
        "swarm node MODEL": "host the blocks that are needed most",
        "swarm invite": "print what others join with (--private: a key, too)",
    },
    "Train": {
        "swarm train RUN.toml": "begin a run, or join it with data",
        "swarm runs": "how far the runs are",
    },
}
"""A heading, and below it the lines to type, each with what it does."""

WIDTH = 25
"""Letters of the first column."""


def text() -> str:
    """The whole page; no line is longer than 80 letters."""
    lines = ["swarm: run a large language model on the machines of many volunteers.", ""]
    for heading, steps in STEPS.items():
        lines += [heading, *(f"  {line:<{WIDTH}} {what}" for line, what in steps.items()), ""]
    return "\n".join(
        [
            *lines,
            "MODEL is a directory, a Hub name, or a NAME that the swarm serves.",
            "To find the swarm: --peer ADDRESS or --join INVITATION, as others tell you.",
            "Every command: swarm --help, swarm COMMAND --help. Tab: swarm completion --help.",
        ]
    )
