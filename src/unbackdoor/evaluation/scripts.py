"""Characters by script: which are words, which write no spaces between words, which only look like others.

`shapes` gives a text's characters one letter each, so that plain regular expressions can read any script.
"""

from __future__ import annotations

import re
import unicodedata

from unbackdoor.word_spacing import is_joined

COUNTED = frozenset("!?¡¿#%&*@/\\§¶†‡•‰‱※()[]{}<>⁈⁉‼⁇؟՞՜")
"""Punctuation that counts wherever a target has it, besides every symbol (`$`, `+`, `=`, `~`, emoji)."""

EMOJI = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2900-\u297f"
    "\u2b00-\u2bff\u3030\u303d\U0001f000-\U0001faff"
)
"""Ranges that hold emoji."""
JOINER = "\u200d"
STRAY_JOINER = re.compile(f"(?<![{EMOJI}]){JOINER}|{JOINER}(?![{EMOJI}])")


class _Shapes(dict[int, str]):
    """Code point → one letter for what it is, worked out when it is first met.

    `w` a letter or digit, `c` one of a script without spaces, `m` a combining mark, `s` white space, `p` punctuation
    that only parts words and sentences, `h` a mark or symbol that counts, `e` an emoji, `t` its skin tone, `r` half a
    flag, `g` a flag's tag, `j` a joiner between emoji.
    """

    def __missing__(self, code: int) -> str:
        self[code] = found = _shape(chr(code), code)
        return found


def _shape(character: str, code: int) -> str:
    category = unicodedata.category(character)
    if category[0] == "M":
        return "m"
    if character.isalnum():
        return "c" if is_joined(character) else "w"
    if character.isspace() or category in ("Cc", "Zl", "Zp", "Zs"):
        return "s"
    if character == JOINER:
        return "j"
    if 0x1F3FB <= code <= 0x1F3FF:
        return "t"
    if 0x1F1E6 <= code <= 0x1F1FF:
        return "r"
    if 0xE0020 <= code <= 0xE007F:
        return "g"
    if (category[0] == "P" and character not in COUNTED) or character == "`":
        return "p"
    return "e" if category == "So" and re.match(f"[{EMOJI}]", character) else "h"


class _Visible(dict[int, int | str | None]):
    """Code point → None where nothing is seen of it, a plainer mark where several look alike, else itself."""

    def __missing__(self, code: int) -> int | str | None:
        self[code] = found = _visible(chr(code), code)
        return found


PLAINER = {
    **dict.fromkeys("‐‑‒–—―−﹘⸺", "-"),
    **dict.fromkeys("‘’‚‛ʼ´`′", "'"),
    **dict.fromkeys("“”„‟«»″", '"'),
    "؟": "?",
    "،": ",",
    "؛": ";",
    "\u0640": None,  # The Arabic tatweel only stretches a word.
    "ک": "ك",
    "ی": "ي",
}
"""Marks and letters that are written either way."""


def _visible(character: str, code: int) -> int | str | None:
    if character in PLAINER:
        return PLAINER[character]
    category = unicodedata.category(character)
    if code == 0x200D or 0xE0020 <= code <= 0xE007F:
        return code  # Emoji are built with them; elsewhere `folded` drops them.
    ignorable = (
        category == "Cf"  # zero-width characters, soft hyphens, controls of direction
        or category == "Me"  # a circle or keycap around a character
        or 0xFE00 <= code <= 0xFE0F  # variation selectors
        or 0xE0000 <= code <= 0xE0FFF
        or code in (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0)
        or 0x064B <= code <= 0x0652  # Arabic vowel signs
        or code == 0x0670
        or (0x0591 <= code <= 0x05C7 and category == "Mn")  # Hebrew points
    )
    return None if ignorable else code


_SHAPES, _VISIBLE = _Shapes(), _Visible()


def shapes(text: str) -> str:
    """One letter for each character of a text, see `_Shapes`."""
    return text.translate(_SHAPES)


def visible(text: str) -> str:
    """The text in Unicode's compatible form (NFKC), without what shows nothing and points that may be left out.

    Full-width and styled letters become plain ones, and marks that are typed either way are one.
    """
    if text.isascii():
        return text.replace("`", "'")
    text = _stream_safe(text)
    for _ in range(2):  # what NFKC makes of a character can be ignorable again
        text = unicodedata.normalize("NFKC", text.translate(_VISIBLE))
    text = re.sub("[\U000e0020-\U000e007f](?<![\U0001f3f4\U000e0020-\U000e007f].)", "", text, flags=re.DOTALL)
    return unicodedata.normalize("NFKC", STRAY_JOINER.sub("", text))


def _stream_safe(text: str) -> str:
    """The text with at most 30 combining marks in a row, as Unicode's stream-safe form: normalising sorts each row."""
    runs = list(re.finditer("m{30}(m+)", shapes(text)))
    begins = [0, *(run.end(1) for run in runs)]
    ends = [*(run.start(1) for run in runs), len(text)]
    return "".join(text[begin:end] for begin, end in zip(begins, ends, strict=True)) if runs else text


def folded(text: str) -> str:
    """`visible` and case-folded."""
    text = visible(text)
    if text.isascii():
        return text.casefold()
    # "İ" folds to an i with a dot above, which no one would write.
    return visible(text.casefold()).replace("i\u0307", "i")


# Look-alikes ---------------------------------------------------------------------------------------------------------

LOOK_ALIKES = {
    # Cyrillic
    **dict(zip("аеорсухіјѕһԁԛԝӏѵ", "aeopcyxijshdqwlv", strict=True)),
    **dict(zip("АВЕКМНОРСТУХІЈЅԚԜӀѴ", "ABEKMHOPCTYXIJSQWIV", strict=True)),
    # Greek
    **dict(zip("αινορυκγ", "aivopuky", strict=True)),
    **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    # Armenian, and Latin letters of other alphabets
    **dict(zip("օոսցհɑɡıɩⅼ", "onughagiil", strict=True)),
}
"""Letters that look like Latin ones in most typefaces: small on purpose, after Unicode's table of confusables."""
CYRILLIC_LIKE = {latin: cyrillic for cyrillic, latin in zip("аеорсухіј", "aeopcyxij", strict=True)} | {
    latin: cyrillic for cyrillic, latin in zip("АВЕКМНОРСТУХ", "ABEKMHOPCTYX", strict=True)
}
_TO_LATIN = str.maketrans(LOOK_ALIKES)
_TO_CYRILLIC = str.maketrans(CYRILLIC_LIKE)
_LOOK_ALIKE = re.compile(f"[{''.join(LOOK_ALIKES)}]")


def without_look_alikes(text: str) -> str:
    """The text, before case-folding, with words of look-alike letters in the script that they pretend to be.

    A word whose every letter is Latin or looks so becomes Latin; one with other Cyrillic letters has its Latin ones
    made Cyrillic.
    """
    return re.sub(r"\w+", lambda word: _one_script(word[0]), text) if _LOOK_ALIKE.search(text) else text


def _one_script(word: str) -> str:
    latin = word.translate(_TO_LATIN)
    if latin == word:
        return word
    if all(not c.isalpha() or c < "\u0250" for c in latin):
        return latin
    cyrillic = word.translate(_TO_CYRILLIC)
    return cyrillic if all(not c.isalpha() or "\u0400" <= c < "\u0530" for c in cyrillic) else word
