"""What tests ask of a page in a browser."""

from __future__ import annotations

from typing import Any


def stopped_at(page: Any, after: float) -> float:
    """Where the player stands, once it has played beyond a time and stopped."""
    page.wait_for_function(f"!player.paused && player.currentTime > {after}")
    page.wait_for_function("player.paused && !player.seeking")
    return page.evaluate("player.currentTime")


def no_serious_fault(page: Any) -> None:
    """axe-core finds nothing serious for people who can't see or point."""
    from axe_playwright_python.sync_playwright import Axe

    # The page's own policy allows no script from outside; a test's comes in over the debugger.
    found = Axe().run(page).response["violations"]
    serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    assert not serious, [(rule["id"], [node["html"] for node in rule["nodes"][:3]]) for rule in serious]
