"""A title that is nearly right is found, and a name that may mean several means them all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.titles import meant, slug

TITLES = ["Install Bun", "Install Node.js", "Deploy to production", "Bundle assets", "日本語の手引き", "C"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("install bun", ["Install Bun"]),
        ("  Install-BUN! ", ["Install Bun"]),
        ("installbun", ["Install Bun"]),
        ("Instal Bun", ["Install Bun"]),
        ("Isntall Bun", ["Install Bun"]),
        ("Install Bum", ["Install Bun"]),
        ("Bun", ["Install Bun"]),
        ("bund", ["Bundle assets"]),
        ("Node", ["Install Node.js"]),
        ("nodejs install", []),
        ("js node", ["Install Node.js"]),
        ("prodution", ["Deploy to production"]),
        ("install", ["Install Bun", "Install Node.js"]),
        ("instal", ["Install Bun", "Install Node.js"]),
        ("日本語の手引き", ["日本語の手引き"]),
        ("日本語", ["日本語の手引き"]),
        ("c", ["C"]),
        ("in", []),
        ("Uninstall everything", []),
        ("!?", []),
        ("", []),
    ],
)
def test_a_name_means_what_it_fits_best(name: str, found: list[str]) -> None:
    assert [TITLES[place] for place in meant(name, TITLES)] == found


@given(st.text("abc dé", max_size=12), st.integers(0, 12), st.sampled_from("xyz"))
def test_one_typo_changes_nothing(text: str, at: int, letter: str) -> None:
    titles = ["something else", f"Learn{text}"]
    for typo in (text[:at] + letter + text[at:], text[:at] + letter + text[at + 1 :]):
        assert meant(f"learn{typo}", titles) == [1]


def test_the_name_of_a_command_is_understood() -> None:
    for title in TITLES[:4]:
        assert [TITLES[place] for place in meant(slug(title), TITLES)] == [title]
    assert [slug(title) for title in TITLES] == [
        "install-bun",
        "install-node-js",
        "deploy-to-production",
        "bundle-assets",
        "",
        "c",
    ]


def test_what_lies_behind_500_characters_written_out_is_not_compared() -> None:
    title = "\u337f" * 200  # each stands for four letters
    assert meant(title + "anything", [title]) == [0]
