"""Without a browser its tests are left out with a sentence, and in CI they fail with it."""

from pathlib import Path

import pytest

from tests.browser import Browser, missing, why_skipped


def test_only_ci_may_not_do_without_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    assert (
        why_skipped() == missing() == "no Chromium on this machine; on Debian: apt-get install chromium chromium-driver"
    )
    (tmp_path / "chromium").write_text("")
    (tmp_path / "chromium").chmod(0o755)
    assert why_skipped() == "no chromedriver on this machine; on Debian: apt-get install chromium-driver"
    monkeypatch.setenv("CI", "true")
    assert why_skipped() == ""
    with pytest.raises(RuntimeError, match="no chromedriver on this machine"):
        Browser(tmp_path)
    (tmp_path / "chromium").rename(tmp_path / "chromedriver")
    assert missing().startswith("no Chromium on this machine")
    (tmp_path / "google-chrome").write_text("")
    (tmp_path / "google-chrome").chmod(0o755)
    assert missing() == ""
