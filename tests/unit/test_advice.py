"""Whoever has to correct a producer is told how, whichever class its events are refused as."""

from schemas import ADVICE, Rejection, advice_on


def test_there_is_advice_on_each_class_and_on_no_other() -> None:
    assert set(ADVICE) == set(Rejection), "give each Rejection a sentence in schemas/advice.py"
    assert all(text.endswith(".") and len(text) <= 250 for text in ADVICE.values())


def test_a_class_that_a_newer_recorder_wrote_has_advice_too() -> None:
    assert advice_on("of-a-later-version") == "Correct what the message names."
    assert advice_on("not-json") == ADVICE[Rejection.NOT_JSON]
