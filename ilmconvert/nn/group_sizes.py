"""How channels are divided into groups: what is allowed, and what is chosen where nothing is said."""

from __future__ import annotations


def divisors(n: int) -> list[int]:
    """All divisors of ``n`` in ascending order.

    >>> divisors(40)
    [1, 2, 4, 5, 8, 10, 20, 40]
    """
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def check_divides(name: str, value: int, num_channels: int) -> None:
    """Raise a ValueError that names the divisors unless ``value`` divides ``num_channels``."""
    if value < 1 or num_channels % value:
        allowed = ", ".join(map(str, divisors(num_channels)))
        raise ValueError(f"{name}={value} doesn't divide num_channels={num_channels}; use one of {allowed}")


def best_num_groups(num_channels: int, at_most: int = 32) -> int:
    """The largest divisor of ``num_channels`` up to ``at_most`` that leaves two channels a group.

    >>> [best_num_groups(c) for c in (64, 40, 58, 19, 1)]
    [32, 20, 29, 1, 1]
    """
    fitting = [d for d in divisors(num_channels) if d <= at_most and 2 * d <= num_channels]
    return fitting[-1] if fitting else 1


def best_key_group_size(num_channels: int, at_most: int = 16) -> int:
    """The largest divisor of ``num_channels`` up to ``at_most``.

    >>> [best_key_group_size(c) for c in (64, 40, 58, 19, 1)]
    [16, 10, 2, 1, 1]
    """
    return [d for d in divisors(num_channels) if d <= at_most][-1]
