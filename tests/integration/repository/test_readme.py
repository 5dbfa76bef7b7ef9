"""The README's example runs as it stands, on a real database, and what it trains ranks items."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import bpr_etl

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def test_the_example_trains_a_model_that_ranks_chosen_items_higher(small_world, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 15
    assert example.count('"postgresql://..."') == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("postgresql://...", small_world), names)  # noqa: S102 - our own README
    held_out = (
        bpr_etl.open_snapshot("bpr").scan("triples", split="test").select("user_idx", "pos_idx", "neg_idx").collect()
    )
    user, chosen, other = held_out.to_numpy().T
    users, items = names["users"], names["items"]
    higher = ((users[user] * (items[chosen] - items[other])).sum(1) > 0).mean()
    assert len(held_out) > 1_000
    assert higher > 0.55
