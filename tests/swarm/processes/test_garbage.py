"""What imports make is not looked at by the collector."""

from __future__ import annotations

from tests.forked import ForkServer

CODE = """
import gc, weakref
from swarm import garbage

class Cycle:
    def __init__(self):
        self.me = self

def is_collected(found):
    gc.collect()
    return found() is None

with garbage.importing():
    assert not gc.isenabled()
    imported = weakref.ref(Cycle())
assert gc.isenabled() and not is_collected(imported)
assert is_collected(weakref.ref(Cycle()))

try:
    with garbage.importing():
        raise ImportError
except ImportError:
    assert gc.isenabled()

gc.disable()
with garbage.importing():
    pass
assert not gc.isenabled()
print("well")
"""


def test_what_was_imported_stays_and_what_comes_later_is_collected(fork_server: ForkServer) -> None:
    done = fork_server.run([CODE], kind="code")
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
