"""Prompts of the protocol, which clients show to people as commands: one that starts each walkthrough.

A prompt is words for the model alone. Nothing begins before the model calls the tool.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from mcp_types import GetPromptResult, ListPromptsResult, Prompt, PromptMessage, TextContent

from services.runtime.titles import meant, one_line, slug
from services.walkthrough_mcp.guide import Offer

#: How many prompts a page has.
PAGE: Final = 50
_TITLE: Final = 100
_DESCRIPTION: Final = 300


def page(offers: Sequence[Offer], cursor: str | None) -> ListPromptsResult:
    """The prompts from a cursor on, and the cursor of those that follow.

    Raises:
        ValueError: there is no such cursor.
    """
    start = _place(cursor, len(offers))
    end = start + PAGE
    prompts = [_prompt(name, offer) for name, offer in _named(offers)[start:end]]
    return ListPromptsResult(prompts=prompts, next_cursor=str(end) if end < len(offers) else None)


def prompt(offers: Sequence[Offer], name: str) -> GetPromptResult:
    """The prompt of that name, or of a walkthrough whose title or id that is.

    Raises:
        KeyError: there is none, or several may be meant.
    """
    found = [offer for known, offer in _named(offers) if known == name]
    found = found or [offer for offer in offers if offer.walkthrough_id == name]
    found = found or [offers[place] for place in meant(name, [offer.title for offer in offers])]
    if len(found) != 1:
        raise KeyError(name)
    title = one_line(found[0].title, _TITLE)
    words = (
        f"Lead me through the walkthrough “{title}”, one step at a time. Begin with a call of "
        f'start_walkthrough with name "{found[0].walkthrough_id}".'
    )
    message = PromptMessage(role="user", content=TextContent(type="text", text=words))
    return GetPromptResult(description=f"Start or resume “{title}”", messages=[message])


def _place(cursor: str | None, total: int) -> int:
    if cursor is None:
        return 0
    if not cursor.isdecimal() or len(cursor) > len(str(total)) or not 0 < int(cursor) <= total:
        raise ValueError(cursor)
    return int(cursor)


def _named(offers: Sequence[Offer]) -> list[tuple[str, Offer]]:
    """Each with the name of its command: the words of its title, or its id where others have the same."""
    names = [slug(one_line(offer.title, _TITLE)) for offer in offers]
    times = Counter(names)
    return [
        (name if name and times[name] == 1 else offer.walkthrough_id, offer)
        for name, offer in zip(names, offers, strict=True)
    ]


def _prompt(name: str, offer: Offer) -> Prompt:
    title = one_line(offer.title, _TITLE)
    about = one_line(offer.description or "", _DESCRIPTION)
    return Prompt(name=name, title=title, description=about or f"Start or resume “{title}”")
