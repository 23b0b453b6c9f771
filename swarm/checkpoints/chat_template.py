"""Where a checkpoint keeps its chat template: in one of four places.

transformers' tokenizer reads the first three; `chat_template.json` is read by its processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.checkpoints.bounds import read_json

TEMPLATES = "additional_chat_templates"
"""The folder of templates with other names than `default`."""

MAX_TEMPLATE = 1 << 18
"""Letters of a chat template."""


def of(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a checkpoint by name, from the first place that has any. config: its `tokenizer_config.json`."""
    return _template_files(folder) or _listed(folder, config.get("chat_template")) or of_processor(folder)


def default(named: Mapping[str, str]) -> str | None:
    """The one that a conversation is rendered with. ModelNotSupportedError if there are several, and none is called `default`."""
    if named and "default" not in named:
        raise ModelNotSupportedError(
            f"the model has chat templates for {', '.join(sorted(named))[:120]}, and none called default; use `swarm generate`"
        )
    return named.get("default")


def of_processor(folder: Path) -> dict[str, str]:
    """What `chat_template.json` says, in which models that also see or hear keep their template."""
    path = folder / "chat_template.json"
    return _listed(folder, read_json(path).get("chat_template")) if path.exists() else {}


def _template_files(folder: Path) -> dict[str, str]:
    """`chat_template.jinja`, and the files of `additional_chat_templates/`, each by its name."""
    files = {path.name.removesuffix(".jinja"): path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    if (folder / "chat_template.jinja").exists():
        files.setdefault("default", folder / "chat_template.jinja")
    found = {}
    for name, path in files.items():
        if path.stat().st_size > MAX_TEMPLATE:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; a chat template has at most {MAX_TEMPLATE}")
        found[name] = path.read_text(encoding="utf-8", errors="replace")
    return found


def _listed(folder: Path, found: object) -> dict[str, str]:
    """What `tokenizer_config.json` says: one text, or a list of texts with names."""
    if isinstance(found, list):
        named = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
    else:
        named = {} if found is None else {"default": found}
    for template in named.values():
        if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
            raise CheckpointError(
                f"{folder.name}: a chat template is text of at most {MAX_TEMPLATE} letters, got {type(template).__name__}"
            )
    return {name: str(template) for name, template in named.items()}
