"""What a journey's outcome is: finished, in progress, or dropped ("stopped" on the dashboard)."""

from services.journeys.flow import Outcome


def outcome_of(is_finished: bool, is_recent: bool) -> Outcome:
    """The outcome of a journey.

    Args:
        is_finished: whether it is, by the rule of its walkthrough.
        is_recent: whether its last activity is within the days that are asked for.
    """
    if is_finished:
        return Outcome.FINISHED
    return Outcome.IN_PROGRESS if is_recent else Outcome.DROPPED
