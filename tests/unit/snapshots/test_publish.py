"""Folders of cities, whatever they are called."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.snapshots.reading.snapshot import folded
from etl.snapshots.writer import city_folder, city_folders

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


# Letters that differ in case alone, points at the end, what a hash looks like, and letters that Unicode writes in two ways.
ALIKE = st.text(st.sampled_from("aA.~éÉe\u0301\u017fsK\u212a0f %"), max_size=6) | st.sampled_from(
    ["Paris", "paris", "PARIS", "Paris.", "paris..", f"Paris~{'ab' * 8}", f"Paris~{'AB' * 8}", f"Paris~{'AB' * 8}."]
)


@given(st.sets(NAMES | ALIKE, max_size=12))
def test_no_two_cities_share_a_folder_where_case_is_not_seen(cities):
    folders = city_folders(cities)
    assert folders == city_folders(sorted(cities, reverse=True))
    assert set(folders) == cities
    assert len({folder.lower().rstrip(".") for folder in folders.values()}) == len(cities)
    for city, folder in folders.items():
        assert len(folder) <= 255
        assert folder.isascii()
        alike = [each for each in cities if folded(city_folder(each)) == folded(city_folder(city))]
        # Who has no other like it, and the first of those who are alike, is called as if it were alone.
        assert (folder == city_folder(city)) == (city == min(alike, key=str.encode))


def test_the_first_in_byte_order_keeps_its_own_folder():
    folders = city_folders(["paris", "Rome", "PARIS", "Paris", "Rome."])
    assert {city: folder for city, folder in folders.items() if "~" not in folder} == {
        "PARIS": "city=PARIS",
        "Rome": "city=Rome",
    }
    assert folders["Paris"] == "city=Paris~5dd272b4f316b776"
    assert folders["paris"].startswith("city=paris~")
    # Made to look like the folder that another city has got.
    evil = "Paris~" + folders["Paris"].rpartition("~")[2].upper()
    assert folded(city_folders([*folders, evil])[evil]) not in map(folded, folders.values())


def test_paths_are_told_apart_as_forgetful_file_systems_do():
    assert folded("events/city=Saint-Tropez./part-00000.parquet") == "events/city=saint-tropez/part-00000.parquet"
