"""Standard normal noise inside a kernel: the words, the bits and the formulas of csrc/core/step/isa_kernel.inl.

Philox is Triton's own. Logarithm, sine and cosine are ours, as on the CPU: they use correctly rounded operations alone,
so that a seed gives the same bits everywhere, and no stack, which a library needs to reduce arguments of any size.
Oracle: ``stepfuse.samplers.noise.normal_oracle``.
"""

import triton
import triton.language as tl


@triton.jit
def log_unit(u):
    """Ln u for u in (0, 1): u = 2^k m with m in [sqrt(1/2), sqrt(2)), then 2 artanh((m - 1) / (m + 1))."""
    bits = u.to(tl.uint32, bitcast=True) - 0x3F3504F3  # sqrt(1/2): the exponent field becomes k, biased
    k = (bits.to(tl.int32, bitcast=True) >> 23).to(tl.float32)
    m = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    s = tl.div_rn(m - 1.0, m + 1.0)
    s2 = s * s
    tail = s2 * (0.333333333 + s2 * (0.2 + s2 * (0.142857143 + s2 * 0.111111111)))
    return k * 0.693145752 + (2.0 * s + (2.0 * s * tail + k * 1.42860677e-6))


@triton.jit
def cos_sin_turn(u):
    """(cos, sin) of 2 pi u for u in (0, 1): the nearest quarter turn exactly, then Taylor within an eighth."""
    quarter = (4.0 * u + 0.5).to(tl.int32)
    a = 6.28318531 * (u - 0.25 * quarter.to(tl.float32))
    a2 = a * a
    s = a + a * a2 * (-1.66666667e-1 + a2 * (8.33333333e-3 + a2 * (-1.98412698e-4 + a2 * 2.75573192e-6)))
    c = 1.0 + a2 * (-0.5 + a2 * (4.16666667e-2 + a2 * (-1.38888889e-3 + a2 * (2.48015873e-5 + a2 * -2.75573192e-7))))
    odd = (quarter & 1) != 0
    along = tl.where(odd, s, c)
    across = tl.where(odd, c, s)
    return tl.where(((quarter + 1) & 2) != 0, -along, along), tl.where((quarter & 2) != 0, -across, across)


@triton.jit
def unit(word):
    """23 random bits and a half: exact in float32, never 0 and never 1."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23


@triton.jit
def box_muller(first, second):
    """Two standard normals from two random words."""
    radius = tl.sqrt_rn(-2.0 * log_unit(unit(first)))
    cosine, sine = cos_sin_turn(unit(second))
    return radius * cosine, radius * sine


@triton.jit
def normal(seed, step, stream: tl.constexpr, first_quad, BLOCK: tl.constexpr):
    """Elements [4 first_quad, 4 first_quad + BLOCK) of one sample's noise, float32."""
    quads = first_quad + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = tl.philox(seed, quads, step, stream, 0)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    # Joined so that the last two axes, read in order, are elements 0 to 3 of a block.
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,))
