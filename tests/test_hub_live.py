"""The real hub still has what the manifest says. Runs weekly with --run-network; skipped otherwise."""

import pytest

from nlp_portfolio.course.datasets import load, manifest, online

HUB_SPLITS = [(name, split) for name, spec in manifest().items() for split in spec.get("hub", {}).get("rows", {})]


@pytest.mark.network
@pytest.mark.parametrize(("name", "split"), HUB_SPLITS)
def test_hub_has_the_columns_and_rows_of_the_manifest(name: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    online.cache_clear()
    data = load(name, split, source="hub")
    assert data.column_names == list(manifest()[name]["columns"])
    assert len(data) == manifest()[name]["hub"]["rows"][split]
