"""Bytes, counts and durations as readers read them: three digits, in a unit that suits them."""

SECONDS = {"years": 31_556_952, "days": 86_400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
DURATIONS = {"years": 2 * 31_556_952, "days": 3 * 86_400, "h": 3 * 3600, "min": 180, "s": 1, "ms": 1e-3, "µs": 0}


def in_unit(size: float) -> tuple[float, str]:
    """What to divide bytes by, and what the quotient is then called.

    >>> in_unit(3 * 2**30)
    (1073741824.0, 'GiB')
    """
    power = next((n for n in range(4, 0, -1) if size >= 1024.0**n), 0)
    return 1024.0**power, ("bytes", "KiB", "MiB", "GiB", "TiB")[power]


def bytes_words(size: float) -> str:
    """Bytes with three digits, in the unit that suits them.

    >>> bytes_words(498_000_000), bytes_words(0), bytes_words(1023.9 * 2**30)
    ('475 MiB', '0', '1,024 GiB')
    """
    if size == 0:
        return "0"
    unit, name = in_unit(size)
    return f"{_three_digits(size / unit)} {name}"


def count_words(number: float) -> str:
    """A number with three digits, a large one with k, M, G, T, P or E behind it.

    >>> count_words(3.5e11) + "FLOP", count_words(12)
    ('350 GFLOP', '12')
    """
    power = next((n for n in range(6, 0, -1) if number >= 1000.0**n), 0)
    return f"{_three_digits(number / 1000.0**power)} {' kMGTPE'[power]}".rstrip()


def seconds_words(seconds: float) -> str:
    """A duration with three digits, in the unit that suits it.

    >>> seconds_words(0.0125), seconds_words(90), seconds_words(7200), seconds_words(1e9)
    ('12.5 ms', '90 s', '120 min', '31.7 years')
    """
    unit = next(unit for unit, least in DURATIONS.items() if seconds >= least)
    return f"{_three_digits(seconds / SECONDS[unit])} {unit}"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
