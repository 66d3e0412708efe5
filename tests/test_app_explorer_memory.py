"""What is kept within a limit of memory, and what is given up for it."""

from interp.app.explorer.memory import GIB, Shelf


def shelf(limit):
    return Shelf(limit, weigh=len)


def test_what_was_put_is_found_again():
    kept = shelf(10)
    kept.put("a", b"1234", "text a")
    assert kept.get("a") == b"1234"
    assert kept.used == 4


def test_what_nobody_put_is_none():
    assert shelf(10).get("a") is None


def test_the_least_recently_used_goes_first():
    kept = shelf(10)
    kept.put("a", b"1234", "text a")
    kept.put("b", b"1234", "text b")
    kept.get("a")
    kept.put("c", b"1234", "text c")
    assert kept.names == ["text a", "text c"]


def test_it_says_what_it_gave_up_and_for_what():
    kept = Shelf(GIB, weigh=lambda value: value)
    kept.put("a", GIB, "model a")
    kept.put("b", GIB // 2, "model b")
    assert list(kept.evictions) == ["model a (1.00 GiB) made room for model b"]


def test_the_newest_is_kept_however_large():
    kept = shelf(2)
    kept.put("a", b"1", "small")
    kept.put("b", b"12345", "large")
    assert kept.names == ["large"]


def test_a_key_holds_one_value():
    kept = shelf(10)
    kept.put("a", b"1234", "old")
    kept.put("a", b"12", "new")
    assert (kept.used, kept.names) == (2, ["new"])
