"""Names of steps for ids: how many of one call are compared with titles."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from services.analytics_api.names import with_steps
from services.analytics_api.problems import ProblemError
from services.runtime import titles as runtime_titles

STEPS: Any = SimpleNamespace(steps=[SimpleNamespace(id=f"wts_{n}", title=f"Title {n}") for n in range(200)])


def test_many_names_that_are_no_ids_are_refused_before_all_are_compared() -> None:
    names = [f"nobody {n}" for n in range(11)]
    with pytest.raises(ProblemError, match="name the rest by id"):
        with_steps(STEPS, {"step": names, "through": [f"1:{name}" for name in names]})


def test_ids_are_not_counted() -> None:
    ids = [step.id for step in STEPS.steps]
    assert with_steps(STEPS, {"step": ids, "exclude": ["title 7"]}) == {"step": ids, "exclude": ["wts_7"]}


def test_a_title_that_is_nearly_right_is_found_and_one_of_several_is_asked_for() -> None:
    titles = {"wts_1": "Install Bun", "wts_2": "Run it", "wts_3": "Run it again"}
    of: Any = SimpleNamespace(steps=[SimpleNamespace(id=i, title=title) for i, title in titles.items()])
    names = ["wts_2", "install bun", "Bun", "nothing"]
    assert with_steps(of, {"step": names}) == {"step": ["wts_2", "wts_1", "wts_1", "nothing"]}
    several = r"several may be meant: “Run it” \(wts_2\), “Run it again” \(wts_3\)"
    with pytest.raises(ProblemError, match=several):
        with_steps(of, {"start_at": "run"})


@pytest.mark.parametrize(
    "titles",
    [
        [" ".join(f"abcz{n}{word}" for word in range(70)) for n in range(300)],
        ["\ufdfa" * 500 for _ in range(300)],
        [f"title {n}" for n in range(20_000)],
    ],
    ids=["near words", "letters that are long written out", "many"],
)
def test_the_work_for_all_names_of_a_call_is_bounded_whatever_the_titles_are(
    monkeypatch: pytest.MonkeyPatch, titles: list[str]
) -> None:
    """All other calls wait for it, those of other organizations too."""
    work: Counter[str] = Counter()

    def counting(name: str, work_of: Callable[[str], int]) -> None:
        original: Any = getattr(runtime_titles, name)

        def counted(text: str, *others: str) -> Any:
            work[name] += work_of(text)
            return original(text, *others)

        monkeypatch.setattr(runtime_titles, name, counted)

    counting("_words", len)
    counting("_is_one_typo", lambda _: 1)
    of: Any = SimpleNamespace(steps=[SimpleNamespace(id=f"wts_{n}", title=t) for n, t in enumerate(titles)])
    names = [" ".join(f"abcy{n}{word}" for word in range(20)) for n in range(20)]
    assert with_steps(of, {"step": names}) == {"step": names}
    assert work["_words"] <= 100_000
    assert work["_is_one_typo"] <= 15_000


def test_short_titles_are_looked_up_beside_hostile_ones_and_these_by_what_they_say_exactly() -> None:
    titles = [f"{n} " + "\ufdfa" * 490 for n in range(300)] + ["Install Bun"]
    of: Any = SimpleNamespace(steps=[SimpleNamespace(id=f"wts_{n}", title=t) for n, t in enumerate(titles)])
    longest = "the last " + "\ufdfa" * 491
    of.steps.append(SimpleNamespace(id="wts_longest", title=longest))
    assert with_steps(of, {"step": ["instal bun", longest]}) == {"step": ["wts_300", "wts_longest"]}
