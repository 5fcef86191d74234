"""Which titles a name means, where people and agents write it nearly right. No I/O."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Final, TypeAlias

#: Shorter words have to be written right, and shorter beginnings mean nothing.
_LEAST_TYPO: Final = 4
_LEAST_START: Final = 3
#: Words of a name beyond these are not looked at.
_MOST_WORDS: Final = 20
#: Nor characters beyond these, before and after compatibility forms are written out: one may become 18.
_MOST_CHARACTERS: Final = 500
#: So many characters of all titles are split into words. Letters that are not ASCII count more often,
#: for writing them out takes longer, and each title counts as some characters more.
_MOST_SPLIT: Final = 60_000
_OTHER_LETTERS: Final = 6
_EACH_TITLE: Final = 16
#: So much is compared for all names together, in steps of about 100 ns; for a typo it takes some more.
_MOST_COMPARED: Final = 200_000
_TYPO: Final = 15

_Words: TypeAlias = list[str]


class _TooMuchError(Exception):
    """What is left of the names is not compared."""


class Titles:
    """Titles among which names are looked up. Whoever writes them may be hostile, and others wait meanwhile.

    Each is split once, and the work is bounded for all names together. Where titles have too many characters,
    the longest are meant by what is written exactly like them. Once too much was compared, names mean the
    titles alone that have the same words.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = titles
        self._left = _MOST_COMPARED
        self._nearly: dict[str, set[int]] = {}

    def meant(self, name: str) -> list[int]:
        """Which of the titles a name means: their places, those alone that it fits best.

        In this order: the same words, whatever case, spaces and punctuation; one typo; words of the title;
        words of the title with a typo each, or their beginnings.
        """
        named = _words(name)
        if not named:
            return []
        same = " ".join(named)
        if found := self._as_words.get(same, []) + self._as_written.get(name, []):
            return sorted(found)
        try:
            return self._nearly_same("".join(named)) or self._with_words(named[:_MOST_WORDS])
        except _TooMuchError:
            return []

    def _nearly_same(self, name: str) -> list[int]:
        found: list[int] = []
        for length in range(len(name) - 1, len(name) + 2):
            for title, places in self._without_spaces.get(length, {}).items():
                if title == name or self._is_one_typo(name, title):
                    found += places
        return sorted(found)

    def _with_words(self, named: _Words) -> list[int]:
        words = dict.fromkeys(named)
        return self._in_all(self._holding.get(word, set()) for word in words) or self._in_all(
            self._with_nearly(word) for word in words
        )

    def _in_all(self, found: Iterator[set[int]]) -> list[int]:
        """Places that are in all of these; the first are in no more than there are."""
        among = next(found)
        for places in found:
            if not among:
                break
            self._count(min(len(among), len(places)))
            among = among & places
        return sorted(among)

    def _with_nearly(self, word: str) -> set[int]:
        """Titles that have a word, one that begins with it, or one that is a typo away."""
        found = self._nearly.get(word)
        if found is None:
            found = self._nearly[word] = set()
            for other in self._like(word):
                self._count(len(self._holding[other]))
                found |= self._holding[other]
        return found

    def _like(self, word: str) -> Iterator[str]:
        if word in self._holding:
            yield word
        if len(word) >= _LEAST_START:
            for other in islice(self._in_order, bisect_left(self._in_order, word), None):
                if not other.startswith(word):
                    break
                yield other
        for length in range(len(word) - 1, len(word) + 2):
            for other in self._by_length.get(length, ()):
                if self._is_one_typo(word, other):
                    yield other

    def _is_one_typo(self, one: str, other: str) -> bool:
        self._count(_TYPO + len(one) // 20)
        return _is_one_typo(one, other)

    def _count(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise _TooMuchError

    @cached_property
    def _split(self) -> dict[int, _Words]:
        """Words of the titles that are compared, by place; nobody needs them where all names are ids."""
        return {place: _words(self._titles[place]) for place in sorted(_affordable(self._titles))}

    @cached_property
    def _as_written(self) -> dict[str, list[int]]:
        """Titles that are not split, by what is written."""
        found: dict[str, list[int]] = {}
        if len(self._split) < len(self._titles):
            for place, title in enumerate(self._titles):
                if place not in self._split:
                    found.setdefault(title, []).append(place)
        return found

    @cached_property
    def _as_words(self) -> dict[str, list[int]]:
        """Titles by their words."""
        found: dict[str, list[int]] = {}
        for place, words in self._split.items():
            found.setdefault(" ".join(words), []).append(place)
        return found

    @cached_property
    def _without_spaces(self) -> dict[int, dict[str, list[int]]]:
        """Titles by how many letters they have, and by these."""
        found: dict[int, dict[str, list[int]]] = {}
        for place, words in self._split.items():
            title = "".join(words)
            found.setdefault(len(title), {}).setdefault(title, []).append(place)
        return found

    @cached_property
    def _holding(self) -> dict[str, set[int]]:
        """Which titles have a word."""
        found: dict[str, set[int]] = {}
        for place, words in self._split.items():
            for word in words:
                found.setdefault(word, set()).add(place)
        return found

    @cached_property
    def _in_order(self) -> list[str]:
        return sorted(self._holding)

    @cached_property
    def _by_length(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for word in self._holding:
            found.setdefault(len(word), []).append(word)
        return found


def meant(name: str, titles: Sequence[str]) -> list[int]:
    """Which of the titles one name means: see `Titles`, which is for several."""
    return Titles(titles).meant(name)


def slug(title: str) -> str:
    """A title as the name of a command, which `meant` understands; empty where it has other letters."""
    words = _words(title)
    return "-".join(words) if all(word.isascii() for word in words) else ""


def one_line(text: str, most: int) -> str:
    """A title, or what else somebody wrote, on one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _words(text: str) -> _Words:
    plain = unicodedata.normalize("NFKC", text[:_MOST_CHARACTERS])[:_MOST_CHARACTERS]
    return re.findall(r"[^\W_]+", plain.casefold())


def _affordable(titles: Sequence[str]) -> Iterator[int]:
    """Places of the titles that are split: the shortest, so that long ones are in nobody's way."""
    left = _MOST_SPLIT
    for place in sorted(range(len(titles)), key=lambda place: len(titles[place])):
        title = titles[place]
        letters = min(len(title), _MOST_CHARACTERS)
        left -= _EACH_TITLE + letters * (1 if title.isascii() else _OTHER_LETTERS)
        if left < 0:
            return
        yield place


def _is_one_typo(one: str, other: str) -> bool:
    """Whether one letter more, less or another, or two letters changed about, make one text of the other."""
    if min(len(one), len(other)) < _LEAST_TYPO or abs(len(one) - len(other)) > 1:
        return False
    start = _shared(one, other)
    one, other = one[start:], other[start:]
    end = _shared(one[::-1], other[::-1])
    one, other = one[: len(one) - end], other[: len(other) - end]
    return max(len(one), len(other)) <= 1 or (len(one) == 2 and one == other[::-1])


def _shared(one: str, other: str) -> int:
    """How many letters two texts begin with alike."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
