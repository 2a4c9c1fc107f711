"""How much of an answer's tokens is in the expected one: token F1 and ROUGE-L, 0 to 1.

Tokens are runs of letters, digits and underscores, and every other mark that is not whitespace, of
any language, case-folded; nothing is stemmed, and no word is left out. Texts are compared as they
are encoded: an accent of its own is not the accented letter. Without a common token, and so without
tokens, both are 0.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

_TOKEN = re.compile(r"\w+|[^\w\s]")


def token_f1(answer: str, expected: str) -> float:
    """Return the F1 of the tokens in any order, each counted as often as both texts have it.

    It is ROUGE-1 of Lin 2004 (https://aclanthology.org/W04-1013), and the F1 of SQuAD
    (arXiv:1606.05250, section 6.1) without its removal of English articles and punctuation.
    """
    given, wanted = _tokens(answer), _tokens(expected)
    return _f1((Counter(given) & Counter(wanted)).total(), given, wanted)


def rouge_l(answer: str, expected: str) -> float:
    """Return ROUGE-L of Lin 2004, section 3.1, with beta 1: the F1 of the tokens in common order.

    A line break is whitespace: the texts are compared as one sequence each, not line by line.
    """
    given, wanted = _tokens(answer), _tokens(expected)
    return _f1(_common_length(given, wanted), given, wanted)


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.casefold())


def _f1(num_common: int, given: Sequence[str], wanted: Sequence[str]) -> float:
    """Return 2 PR / (P + R) of the precision `num_common / len(given)` and the recall."""
    return 2 * num_common / max(1, len(given) + len(wanted))


def _common_length(given: Sequence[str], wanted: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A row of the usual table is the bits of one integer, a 0 where the length grows by one (Hyyrö
    2004, "Bit-parallel LCS-length computation revisited"). With ten thousand tokens in either text
    this takes a tenth of a second, a table of numbers a minute.
    """
    places: defaultdict[str, int] = defaultdict(int)
    for place, token in enumerate(given):
        places[token] |= 1 << place
    whole = (1 << len(given)) - 1
    row = whole
    for token in wanted:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & whole
    return len(given) - row.bit_count()
