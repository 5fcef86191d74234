"""What a journey's outcome is: finished, in progress, or dropped ("stopped" on the dashboard)."""

from services.journeys.flow import Outcome


def outcome_of(steps_done: int, is_recent: bool, steps: int) -> Outcome:
    """The outcome of a journey.

    Args:
        steps_done: how many of the walkthrough's current steps it has done.
        is_recent: whether its last activity is within the days that are asked for.
        steps: how many steps the walkthrough has.
    """
    if steps_done == steps and steps_done > 0:
        return Outcome.FINISHED
    return Outcome.IN_PROGRESS if is_recent else Outcome.DROPPED
