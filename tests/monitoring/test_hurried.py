from __future__ import annotations

import copy

from testkit.prometheus import hurried


def test_waits_ranges_and_offsets_are_shorter() -> None:
    """Only durations change, in a copy, and none becomes shorter than five seconds."""
    groups = [
        {
            "name": "a",
            "rules": [
                {"alert": "A", "expr": 'increase(x{y="3m"}[10m]) > x offset 10m', "for": "15m"},
                {"alert": "B", "expr": "rate(x[600s]) < 14 * 86400 - time() + 1.1", "for": "1h"},
                {"alert": "C", "expr": "min_over_time(x[1m]) == 1"},
            ],
        }
    ]
    before = copy.deepcopy(groups)
    rules = hurried(groups, 30)[0]["rules"]
    assert groups == before
    assert (rules[0]["expr"], rules[0]["for"]) == ('increase(x{y="3m"}[20s]) > x offset 20s', "30s")
    assert (rules[1]["expr"], rules[1]["for"]) == ("rate(x[20s]) < 14 * 86400 - time() + 1.1", "120s")
    assert rules[2] == {"alert": "C", "expr": "min_over_time(x[5s]) == 1"}
