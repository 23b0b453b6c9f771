"""A directory of `Dataset.save_to_disk`: which Arrow files are in it."""

from __future__ import annotations

import json
from pathlib import Path

from node.training.data.faults import bad

STATE = "state.json"
"""The file that lists the others; what makes a directory a saved dataset."""


def files_of_dataset(folder: Path) -> list[Path]:
    """The Arrow files of a directory that `Dataset.save_to_disk` wrote, in order. DataError if the list of them is damaged."""
    state = folder / STATE
    try:
        found = json.loads(state.read_text())
        names = [str(one["filename"]) for one in found["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bad(
            state, f"lists no files ({type(error).__name__})", "what save_to_disk writes", "save the dataset again"
        ) from None
    if found.get("_indices_files"):
        raise bad(folder, "has an index of records", "plain records", "save it again, after flatten_indices()")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise bad(folder, f"has no file {name[:100]!r}", "all files that state.json lists", "save the dataset again")
    return [folder / name for name in names]
