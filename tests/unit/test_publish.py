"""Folders of cities, whatever they are called."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.stage import city_folder

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=120)


@given(NAMES)
def test_a_folder_stays_where_it_is_and_names_its_city(city):
    folder = city_folder(city)
    assert folder.startswith("city=")
    assert len(folder.encode()) <= 255
    assert "/" not in folder
    assert "\\" not in folder
    assert folder.isascii()
    if "~" not in folder and city:
        assert unquote(folder.removeprefix("city=")) == city


@given(NAMES, NAMES)
def test_two_cities_never_share_a_folder(one, two):
    assert (city_folder(one) == city_folder(two)) == (one == two)


@pytest.mark.parametrize("city", ["", "__HIVE_DEFAULT_PARTITION__", "東" * 100, "x" * 251])
def test_long_and_reserved_names_become_prefix_and_hash(city):
    folder = city_folder(city)
    assert "~" in folder
    assert len(folder) <= 255
    assert "%" not in folder[-19:-17]


def test_the_contract_s_example():
    assert city_folder("New York") == "city=New%20York"
