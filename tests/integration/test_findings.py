"""What `diagnose` concludes of journeys that are made to differ."""

import time

import pytest

from services.analytics_api.briefs import brief_of
from services.analytics_api.models import Steps
from tests.support.crowd import STEPS, WALKTHROUGH
from tests.support.figures import DAY
from tests.support.world import World, completed

pytestmark = pytest.mark.integration
WT = f"walkthroughs/{WALKTHROUGH}"


async def test_a_change_that_is_more_than_chance_is_told_in_a_sentence_with_its_numbers(world: World) -> None:
    await world.offer(WALKTHROUGH, STEPS)
    now = int(time.time() * 1000)
    people = {f"{when}{n:02}": when for when in ("old", "new") for n in range(60)}
    await world.people(people)
    events = []
    for number, (name, when) in enumerate(people.items()):
        began = now - (22 if when == "old" else 12) * DAY
        # Of the recent ones fifty stop before the third step, of the others five do.
        stops = number % 60 < (5 if when == "old" else 50)
        for place, step in enumerate(STEPS[: 2 if stops else len(STEPS)]):
            events.append(completed(name, step, began + place * 60_000, walkthrough_id=WALKTHROUGH))
    await world.insert(*events)
    await world.drain_marks()
    api = await world.start_api()
    found = {f["kind"]: f for f in (await api.get(f"{WT}/diagnose", days=10))["findings"]}
    whole, step = found["completion_changed"], found["step_changed"]
    assert "16.7% finished (10 of 60" in whole["says"]
    assert "before that 91.7% (55 of 60" in whole["says"]
    assert (step["step_id"], step["people"]) == (STEPS[2], 120)
    assert "16.7% who reached “title of c” did it (10 of 60" in step["says"]
    for finding in (whole, step):
        assert finding["p_value"] < 0.001
        shown = (
            await api.http.get(finding["look_at"], headers={"Authorization": f"Bearer {api.key}"})
        ).json()
        assert (shown["journeys_a"], shown["journeys_b"]) == (60, 60)
    assert found["most_stop_here"]["says"].startswith("55 of 55 people who stopped")


@pytest.mark.parametrize(
    ("stopped", "like_it"),
    [((20, 22, 1), ["b"]), ((3, 60, 2), []), ((5, 9, 0), None), ((0, 0, 0), "nobody")],
    ids=["as many elsewhere", "more than elsewhere", "too few to tell", "nobody"],
)
async def test_where_most_people_stop_is_told_from_chance(
    world: World, stopped: tuple[int, ...], like_it: list[str] | str | None
) -> None:
    await world.offer(WALKTHROUGH, STEPS)
    began = int(time.time() * 1000) - 20 * DAY
    people = {f"{step}{n}": place for place, step in enumerate("bcd") for n in range(stopped[place])}
    await world.people([*people, "new"])
    await world.insert(
        completed("new", "a", int(time.time() * 1000)),
        *(
            completed(name, step, began + at)
            for name, place in people.items()
            for at, step in enumerate(STEPS[: place + 1])
        ),
    )
    await world.drain_marks()
    api = await world.start_api()
    answer = await api.get(f"{WT}/steps")
    told = brief_of(Steps.model_validate(answer)).facts
    assert told.get("may_be_first_by_chance_too") == ("title of b" if like_it == ["b"] else None)
    assert told.get("most_dropped_here") == ("too few stopped to tell: 14" if like_it is None else None)
    found = answer["most_stop"]
    if like_it == "nobody":
        assert found is None
        return
    assert found == {"step_id": "c", "dropped_here": stopped[1], "dropped": sum(stopped), "like_it": like_it}
