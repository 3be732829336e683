"""The check of the mutations can fail: without a mutation, and of one that takes too long or is gone."""

from dataclasses import replace

import pytest

from . import mutations

ONE = mutations.MUTATIONS[0]
FAILS = "print('FAIL  shift is wrong'); raise SystemExit(1)"


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_changes_one_place_of_the_source(mutation):
    source = (mutations.PACKAGE / mutation.path).read_text()
    assert mutations.mutated(mutation, source) != source


def test_a_mutation_of_nothing_is_an_error():
    with pytest.raises(
        AssertionError, match=r"expected 'no such line' once in .*, got 0: change the mutation"
    ):
        mutations.found(replace(ONE, old="no such line"))


def test_a_check_that_fails_whatever_it_is_given_is_seen(monkeypatch, capsys):
    monkeypatch.setattr(mutations, "VERIFY", FAILS)
    assert mutations.main([ONE.name]) == 1
    report = capsys.readouterr().out
    assert "WRONG: expected no failure without a mutation, got status 1" in report
    assert f"{ONE.name:<58} found by: shift is wrong" in report
    assert report.endswith("1 mutations and none at all: 1 of them went wrong\n")


def test_a_mutation_that_nothing_finds_is_seen(monkeypatch, capsys):
    monkeypatch.setattr(mutations, "VERIFY", "print('ok')")
    assert mutations.main([ONE.name]) == 1
    report = capsys.readouterr().out
    assert "no mutation " in report
    assert "WRONG: expected verify to fail, got status 0" in report


def test_a_mutation_found_too_late_is_seen(monkeypatch):
    monkeypatch.setattr(mutations, "VERIFY", f"import time; time.sleep(20); {FAILS}")
    monkeypatch.setattr(mutations, "LIMIT", 2)
    well, line = mutations.attempt(ONE)
    assert not well
    assert "expected a failure within 2 s, got none (load " in line
