"""Any configuration is trained, or refused by the name of a setting; nothing is left of those.

A sample, the same every time; a thousand of them: python tests/stress.py settings --count 1000.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from generated import configurations, materials, tried
from hypothesis import HealthCheck, Phase, given, settings

SAMPLE = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def test_any_configuration_is_trained_or_refused_by_name(tmp_path: Path) -> None:
    materials(tmp_path)
    ends: Counter[str] = Counter()

    @SAMPLE
    @given(configurations(tmp_path))
    def check(drawn: tuple[dict[str, object], list[str]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ends[tried(*drawn, Path(folder) / "run")] += 1

    check()
    assert ends["trained"], "none of the sample can be trained"
    assert ends["refused when read"] + ends["refused when made"], "none of it is refused"
