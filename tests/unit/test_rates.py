"""How many new people an address, and all addresses, may bring to a server."""

import pytest

from services.runtime.settings import Settings
from services.walkthrough_mcp.rates import Rates, Refusal


def rates(**bounds: str) -> Rates:
    return Rates(
        Settings(
            kafka_bootstrap_servers=["127.0.0.1:1"],
            database_url="postgresql://nowhere/none",
            **{f"mcp_new_people_{name}": f"{bound}/minute" for name, bound in bounds.items()},
        )
    )


async def come(many: Rates, address: str | None, server: str, count: int) -> int:
    """How many of so many new people get in."""
    for number in range(count):
        try:
            await many.check_new_person(server, address)
        except Refusal:
            return number
    return count


async def test_a_flood_at_one_server_leaves_others_to_who_shares_the_address() -> None:
    many = rates(rate="3", address_rate="8", server_rate="100")
    assert await come(many, "10.0.0.1", "a", 100) == 3
    assert await come(many, "10.0.0.1", "b", 3) == 3
    assert await come(many, "10.0.0.1", "c", 100) == 2, "all servers together"
    assert await come(many, "10.0.0.2", "c", 3) == 3
    with pytest.raises(Refusal, match="More than 3 new people in 60 seconds") as refused:
        await many.check_new_person("c", "10.0.0.2")
    assert (refused.value.status, refused.value.retry_after) == (429, 60)


async def test_what_is_refused_to_one_address_counts_for_no_other() -> None:
    many = rates(rate="3", address_rate="100", server_rate="5")
    for _ in range(10):
        await come(many, "10.0.0.1", "a", 100)
    assert await come(many, "10.0.0.2", "a", 3) == 2, "the server has its bound from all addresses"
    assert await come(many, "10.0.0.2", "b", 3) == 3


async def test_a_hundred_strangers_behind_one_address_get_on_at_once() -> None:
    many = rates()
    assert await come(many, "10.0.0.1", "a", 100) == 100


async def test_people_who_sign_in_count_for_the_server_alone() -> None:
    many = rates(rate="1", address_rate="1", server_rate="5")
    assert await come(many, None, "a", 100) == 5, "its issuer may be its own"
    assert await come(many, None, "b", 5) == 5


async def test_no_rate_is_no_limit() -> None:
    many = Rates(
        Settings(
            kafka_bootstrap_servers=["127.0.0.1:1"],
            database_url="postgresql://nowhere/none",
            mcp_new_people_rate="",
        )
    )
    assert await come(many, "10.0.0.1", "a", 1_000) == 1_000
    assert await come(many, "10.0.0.1", "b", 3_000) == 2_000
