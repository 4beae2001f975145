"""What values look like in GBNF: numbers within bounds, formats of strings, repetitions. Pure.

Numbers have at most 16 digits, so that none is endless.

https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

SPACE = 'space ::= (" " | "\\n" [ ]{0,16})?'
HEX = "[0-9a-fA-F]"
PLAIN = '[^"\\\\\\x7F\\x00-\\x1F]'  # may stand in a JSON string as it is
PAIR = f'[dD] [89abAB] {HEX}{{2}} "\\\\u" [dD] [c-fC-F] {HEX}{{2}}'  # only a pair of surrogates is a character
UNICODE = f"[0-9a-cA-Ce-fE-F] {HEX}{{3}} | [dD] [0-7] {HEX}{{2}} | {PAIR}"
CHAR = f'char ::= {PLAIN} | "\\\\" (["\\\\/bfnrt] | "u" ({UNICODE}))'
DIGITS = "[0-9]{0,15}"
FRACTION = '("." [0-9]{1,16})?'
EXPONENT = "([eE] [-+]? [0-9] [1-9]?)?"
ANY_NUMBER = f'"-"? ("0" | [1-9] {DIGITS}) {FRACTION} {EXPONENT}'
LONG_MONTH = '("0" [13578] | "1" [02]) "-" ("0" [1-9] | [1-2] [0-9] | "3" [01])'
SHORT_MONTH = '("0" [469] | "11") "-" ("0" [1-9] | [1-2] [0-9] | "30")'
FEBRUARY = '"02-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'  # which years have a 29th is beyond a grammar
DATE = f'[1-2] [0-9]{{3}} "-" ({LONG_MONTH} | {SHORT_MONTH} | {FEBRUARY})'
ZONE = '("Z" | [-+] ("0" [0-9] | "1" [0-4]) ":" [0-5] [0-9])'
TIME = f'([0-1] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{{1,6}})? {ZONE}'
OCTET = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9]? [0-9])'
LABEL = "[A-Za-z0-9] ([A-Za-z0-9-]{0,30} [A-Za-z0-9])?"
ATOM = "[A-Za-z0-9_+-]{1,30}"
PATH = '("/" [A-Za-z0-9._~-]{0,60}){0,8} ("?" [A-Za-z0-9._~=&+-]{0,200})?'
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f'{DATE} "T" {TIME}',
    "uuid": f'{HEX}{{8}} "-" {HEX}{{4}} "-" {HEX}{{4}} "-" {HEX}{{4}} "-" {HEX}{{12}}',
    "email": f'{ATOM} ("." {ATOM}){{0,3}} "@" {LABEL} ("." {LABEL}){{1,3}}',
    "ipv4": f'{OCTET} ("." {OCTET}){{3}}',
    "ipv6": f'{HEX}{{1,4}} (":" {HEX}{{1,4}}){{7}}',
    "duration": '"P" ([0-9]{1,4} [DWMY] | "T" [0-9]{1,4} [HMS])',
    "hostname": f'{LABEL} ("." {LABEL}){{0,3}}',
    "uri": f'"http" "s"? "://" {LABEL} ("." {LABEL}){{0,3}} (":" [1-9] [0-9]{{1,3}})? {PATH}',
}

EMPTY = '""'


def integers(low: int | None, high: int | None) -> str:
    """The whole numbers from low to high, both included; None is no bound."""
    if low is None and high is None:
        return f'"-"? ("0" | [1-9] {DIGITS})'
    ways = []
    if low is None or low < 0:
        ways.append('"-" ' + _naturals(max(1, -high) if high is not None else 1, -low if low is not None else None))
    if high is None or high >= 0:
        ways.append(_naturals(max(0, low or 0), high))
    return f"({' | '.join(ways)})"


def decimals(low: int | None, high: int | None, *, open_low: bool, open_high: bool) -> str:
    """The decimal numbers between whole bounds. open: the bound itself is excluded."""
    ways = []
    if low is None or low < 0:
        nearest = max(0, -high) if high is not None else 0
        without = open_high and high is not None and high <= 0
        ways.append(f'"-" ({_magnitudes(nearest, None if low is None else -low, without, open_low)})')
    if high is None or high > 0 or (high == 0 and not open_high):
        without = open_low and low is not None and low >= 0
        ways.append(f"({_magnitudes(max(0, low or 0), high, without, open_high)})")
    return f"({' | '.join(ways)})"


def _magnitudes(low: int, high: int | None, open_low: bool, open_high: bool) -> str:
    """Decimals from low to high, neither negative. Six places keep 0.999… from being read as the bound."""
    if low == high:
        return f'"{low}" ("." "0"{{1,6}})?'
    places = '("." [0-9]{1,6})?'
    ways = [f'"{low}" "." "0"{{0,5}} [1-9]' if open_low else f'"{low}" {places}']
    if high is None or high - 1 > low:
        ways.append(f"{_naturals(low + 1, None if high is None else high - 1)} {places}")
    if high is not None and not open_high:
        ways.append(f'"{high}" ("." "0"{{1,6}})?')
    return " | ".join(ways)


def _naturals(low: int, high: int | None) -> str:
    """The digits of whole numbers from low to high, without leading zeros."""
    if high is None:
        length = len(str(low))
        longer = f" | [1-9] [0-9]{{{length},15}}" if length <= 15 else ""
        return f"({_same_length(str(low), '9' * length)}{longer})"
    ways = []
    for length in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        ways.append(_same_length(str(least), str(min(high, 10**length - 1))))
    return f"({' | '.join(ways)})"


def _same_length(low: str, high: str) -> str:
    if low == high:
        return f'"{low}"'
    if len(low) == 1:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return f'"{low[0]}" {_same_length(low[1:], high[1:])}'
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    ways = []
    if low[1:] != "0" * rest:
        ways.append(f'"{first}" {_same_length(low[1:], "9" * rest)}')
        first += 1
    if high[1:] != "9" * rest:
        ways.append(f'"{last}" {_same_length("0" * rest, high[1:])}')
        last -= 1
    if first <= last:
        ways.append(f"[{first}-{last}] [0-9]{{{rest}}}")
    return f"({' | '.join(ways)})"


def times(expression: str, least: int, most: int) -> str:
    """A bounded repetition. llama.cpp unrolls it, so a long one is written as blocks of 64 and a remainder."""
    block = 64
    if most <= 2 * block:
        return f"{expression}{{{least},{most}}}"
    blocks, rest = divmod(least, block)
    must = f"({expression}{{{block}}}){{{blocks}}} {expression}{{{rest}}}" if least else ""
    more = (most - least - block + 1) // block  # and a remainder of at least block - 1, so that no length is left out
    return f"{must} ({expression}{{{block}}}){{0,{more}}} {expression}{{0,{most - least - more * block}}}".strip()


def separated(item: str, least: int, most: int) -> str:
    if most == 0:
        return '""'
    more = times(f'("," space {item})', max(0, least - 1), most - 1)
    return f"{item} {more}" if least else f"({item} {more})?"
