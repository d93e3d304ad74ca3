"""Sizes of grids and tiles. Triton's own functions serve kernels as well, and take microseconds on the host."""


def cdiv(count: int, size: int) -> int:
    """Return count / size, rounded up."""
    return -(-count // size)


def next_power_of_2(number: int) -> int:
    """Return the least power of two that is no less than a positive number."""
    return 1 << (number - 1).bit_length()
