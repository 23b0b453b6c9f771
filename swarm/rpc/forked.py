"""gRPC in a forked child: its library is loaded a second time.

gRPC's threads do not survive a fork, and its state cannot be made anew: the first call in the child would wait for ever. The library
keeps that state in static variables, which a copy of its file has once more, untouched. The Python modules of gRPC stay as they are,
and use the copy from now on. What the parent made with the first one must neither be used nor destroyed (`swarm.client.loop`).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
from types import ModuleType

from protocols.errors import ConfigError

_NAME = "grpc._cython.cygrpc"


def load_again() -> None:
    """Give this process a gRPC of its own; does nothing if none was loaded. ConfigError if the copy cannot be made or loaded."""
    old = sys.modules.get(_NAME)
    if old is not None:
        new = _copy_of(old)
        sys.modules[_NAME] = new
        for name in [name for name in sys.modules if name.split(".")[0] == "grpc"]:
            _replace(sys.modules[name], old, new)


def _copy_of(old: ModuleType) -> ModuleType:
    """The same library from another file: the loader gives the first one back for the same file."""
    package = sys.modules["grpc._cython"].__path__[0]
    name = os.path.basename(str(old.__file__))
    try:
        with tempfile.TemporaryDirectory(prefix="murmuration-grpc-") as folder:
            path = shutil.copyfile(os.path.join(package, name), os.path.join(folder, name))
            loader = importlib.machinery.ExtensionFileLoader(_NAME, path)
            spec = importlib.util.spec_from_file_location(_NAME, path, loader=loader)
            assert spec is not None
            new = importlib.util.module_from_spec(spec)
            loader.exec_module(new)
            return new
    except (OSError, ImportError) as error:
        raise ConfigError(
            f"gRPC cannot be loaded a second time, which a forked process needs ({error}): "
            "set TMPDIR to a folder with 20 MB that allows programs, or start the process by spawn instead of fork"
        ) from None


def _replace(module: ModuleType, old: ModuleType, new: ModuleType) -> None:
    """What `module` has of the old library, by any name: the library itself, or classes, functions and markers of it."""
    if module is old or module is new:
        return
    theirs = {
        id(value): key for key, value in vars(old).items() if not isinstance(value, (int, str, bytes, float, tuple, ModuleType))
    }
    theirs.pop(id(None), None)
    for key, value in list(vars(module).items()):
        if value is old:
            setattr(module, key, new)
        elif id(value) in theirs and str(getattr(value, "__module__", "")).startswith(("grpc", "cygrpc")):
            setattr(module, key, getattr(new, theirs[id(value)]))
