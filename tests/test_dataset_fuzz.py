"""A share of ``fuzz_datasets.py``, which ran with 5,000 cases for docs/results/datasets."""

from collections import Counter

from fuzz_datasets import FORMATS, make_sources, run_cases


def test_broken_files_are_refused_and_none_crashes_or_hangs(tmp_path):
    make_sources(tmp_path)
    results = run_cases(range(280), seed=1, sources=tmp_path)
    assert [result for result in results if result[3] not in ("refused", "sound")] == []
    counts = Counter((format_, outcome) for _, format_, _, outcome in results)
    assert all(counts[format_, "refused"] >= 30 for format_ in FORMATS)
