"""Numbers as people write them in an answer: signs, thousands separators, fractions, currency, percent.

Exact: what is read is a fraction, so 0.5, .50 and 1/2 are the same number.
"""

import re
from collections import deque
from decimal import Decimal
from fractions import Fraction

MARK = "####"
"""what GSM8K (arXiv:2110.14168) puts before the final number"""
_LONGEST = 300
"""characters of a number; a longer run of digits is none"""
_DIGITS = r"(?<!\d)(?<!\d\.)(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|(?<![\d.])\.\d++"
_CURRENCY = "[$€£¥₹]"
# A minus is a sign unless it stands between two things, as in 10-4 and GPT-4, or before a space, as in 10 - 4 and in lists.
_NUMBER = re.compile(
    rf"(?:(?P<sign>(?<![0-9A-Za-z)\]%])[-\u2212]){_CURRENCY}?|{_CURRENCY}(?P<minus>[-\u2212])?)?"
    rf"(?P<above>{_DIGITS})(?:(?P<power>[eE][+-]?\d{{1,3}})(?!\w)|/(?P<below>\d++(?:\.\d++)?))?"
)


def last_number(text: str) -> Fraction | None:
    """The last number of `text`, after its last `####` where it has one; None where there is none.

    >>> last_number("She makes 9 * 2 = $<<9*2=18>>18 a day.\\n#### 1,018"), last_number("so -$5.00."), last_number("none")
    (Fraction(1018, 1), Fraction(-5, 1), None)
    """
    numbers = deque(_NUMBER.finditer(text.rpartition(MARK)[2]), maxlen=1)
    if not numbers or len(numbers[0][0]) > _LONGEST:
        return None
    found = numbers[0]
    above = Fraction(Decimal(found["above"].replace(",", "") + (found["power"] or "")))
    below = Fraction(Decimal(found["below"])) if found["below"] else Fraction(1)
    if below == 0:
        return None
    return (-above if found["sign"] or found["minus"] else above) / below
