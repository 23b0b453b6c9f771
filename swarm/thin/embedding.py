"""Embeddings of texts: the mean of their final hidden states.

The last hop adds up the hidden states, so only one vector crosses the network for each prefill chunk.

Shapes: T tokens of a text, H hidden size.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from protocols.errors import BadRequestError, InternalError
from protocols.step_spec import StepSpec
from protocols.tensors import WireTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from swarm.thin.generation import Steps

    Vector: TypeAlias = NDArray[np.float32]
    """[H]"""


async def embed(session: Steps, ids: Sequence[int]) -> Vector:
    """The mean [H] over all tokens of the last hidden states, behind the model's last norm, of length 1.

    session: without tokens; it has those of the text then. Raises as `Session.step`; BadRequestError without a token.
    """
    import numpy as np

    if not ids:
        raise BadRequestError("the text is empty: 0 tokens, expected at least 1")
    tokens = WireTensor("int32", (len(ids),), "none", struct.pack(f"<{len(ids)}i", *ids))
    output = await session.step((), (len(ids),), tokens, StepSpec(kind="ids", result="pooled"))
    sums = np.frombuffer(output.values.data, dtype="<f4").astype(np.float64).reshape(output.values.shape)
    return normalised(sums.sum(0))


def normalised(vector: NDArray[np.float64]) -> Vector:
    """Of length 1; InternalError for a vector without direction."""
    import numpy as np

    length = float(np.linalg.norm(vector))
    if not length:
        raise InternalError("the final hidden states of this text add up to 0: there is no embedding of it")
    found: Vector = (vector / length).astype(np.float32)
    return found
