"""Counter-based random numbers: a pure function of (seed, position)."""

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits.

    Position `position` of the SplitMix64 stream `seed` (Steele, Lea, Flood, "Fast splittable
    pseudorandom number generators", 2014). The same request draws the same numbers in any batch,
    on any data plane and after any resume.
    """
    z = (_mix(seed & _MASK) + (position + 1) * _GAMMA) & _MASK
    return (_mix(z) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
