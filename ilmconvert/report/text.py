"""Numbers as people read them."""

from __future__ import annotations

import math

NONE, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def share(
    value: float | None, interval: tuple[float, float] | list[float] | None = None, *, digits: int = 1, sign: str = ""
) -> str | None:
    """A share in per cent, with its 95 % interval; None stays None. ``sign="+"`` shows the sign of a difference.

    >>> share(0.5, (0.25, 0.75)), share(0.125, digits=2, sign="+")
    ('50.0 % (95 %: 25.0 to 75.0)', '+12.50 %')
    """
    if value is None:
        return None
    text, *ends = (f"{100 * number:{sign}.{digits}f}" for number in (value, *(interval or ())))
    return f"{text} % (95 %: {ends[0]} to {ends[1]})" if ends else f"{text} %"


def decibels(value: float | None) -> str:
    """A signal-to-error ratio.

    >>> decibels(92.44), decibels(math.inf), decibels(math.nan)
    ('92 dB', 'exact', 'not finite')
    """
    if value is None:
        return NONE
    if value != value:
        return "not finite"
    return "exact" if value == math.inf else f"{value:.0f} dB"


def duration(seconds: float | None) -> str:
    """A time in the unit that fits.

    >>> duration(0.0123), duration(75), duration(7380)
    ('12.3 ms', '1 min 15 s', '2 h 3 min')
    """
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def small(value: float | None) -> str:
    """A number with two digits, powers of ten as people write them.

    >>> small(0.0321), small(0.0), ascii(small(1.5e-06))
    ('0.032', '0', "'1.5 \\\\xd7 10\\\\u207b\\\\u2076'")
    """
    if value is None:
        return NONE
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not finite"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits} {TIMES} 10{str(int(power)).translate(_SUPERSCRIPT)}"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
