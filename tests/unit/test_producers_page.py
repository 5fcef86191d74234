"""The page for producers names all that is refused, and its example is an event."""

import re
from pathlib import Path

from schemas import Rejection, StepCompleted, decode

PAGE = (Path(__file__).parents[2] / "docs" / "producers.md").read_text()


def test_it_names_each_class_of_what_is_refused() -> None:
    assert [name for name in Rejection if f"`{name}`" not in PAGE] == []


def test_its_example_is_an_event_with_every_field_of_a_completion() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    event = decode(example.encode(), 1_764_000_000_000)
    assert isinstance(event, StepCompleted)
    assert event.model_fields_set == set(StepCompleted.model_fields)
