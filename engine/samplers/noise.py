"""Counter-based noise: the compiled generator, and its oracle in numpy.

A normal depends on (seed, step, stream, element) alone. Philox4x32-10 (Salmon et al., 2011) with the seed as its key
turns the counter (element // 4, step, stream, 0) into four words, these into four uniforms, and Box-Muller these into
four normals.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.arguments import whole_number

#: Streams of one seed: the starting state, the noise that a step adds, and what an encoded picture deviates by.
INITIAL_STATE, STEP, POSTERIOR = 0, 1, 2

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def normal(seed: int, shape: tuple[int, ...], *, step: int = 0, stream: int = INITIAL_STATE) -> npt.NDArray[np.float32]:
    """Standard normal noise of one sample.

    Args:
        seed: 64-bit key, 0 ≤ seed < 2^64.
        shape: Shape of the sample; elements are numbered in C order.
        step: Step that adds the noise.
        stream: ``INITIAL_STATE``, ``STEP`` or ``POSTERIOR``.

    Returns:
        Shape ``shape``, float32: what the engine uses for this seed, to the bit.

    Raises:
        ValueError: If the seed is out of range.

    Examples:
        >>> noise = sf.normal(7, (1, 28, 28))  # what seed 7 begins from
        >>> noise.dtype, bool((noise == sf.normal(7, (1, 28, 28))).all())
        (dtype('float32'), True)
    """
    seed = whole_number("seed", seed)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be between 0 and 2^64 - 1, got {seed}")
    return _core.normal(seed, step, stream, int(np.prod(shape))).reshape(shape)


def philox4x32(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> npt.NDArray[np.uint64]:
    """Philox4x32-10 of counters of shape (4, n), words below 2^32 kept in uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _HIGH) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HIGH) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def normal_oracle(seed: int, shape: tuple[int, ...], *, step: int = 0, stream: int = 0) -> npt.NDArray[np.float64]:
    """The noise in float64: what ``normal`` gives, before any rounding of logarithm, root, sine and cosine."""
    size = int(np.prod(shape))
    counter = np.zeros((4, -(-size // 4)), dtype=np.uint64)
    counter[0] = np.arange(counter.shape[1])
    counter[1], counter[2] = step, stream
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    uniform = ((words >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23
    radius = np.sqrt(-2 * np.log(uniform[0::2]))
    angle = 2 * np.pi * uniform[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # (pair, cosine or sine, block)
    return pairs.reshape(4, -1).T.reshape(-1)[:size].reshape(shape)
