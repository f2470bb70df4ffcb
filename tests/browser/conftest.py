"""A real Chromium, driven by Playwright: Debian's, in a profile of its own; nothing is downloaded."""

import shutil
from pathlib import Path

import pytest

_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ASIDE = ("data:", "blob:")


@pytest.fixture(scope="session")
def chromium():
    """Path of Debian's Chromium."""
    pytest.importorskip("playwright", reason="no Playwright here: pip install -c constraints.txt playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no Chromium here (/usr/bin/chromium): apt-get install chromium")
    return Path(found)


@pytest.fixture
def browser(chromium, tmp_path):
    """A function that opens a window of a given width; all are closed at the end.  It fails where a page asks another address."""
    from playwright.sync_api import sync_playwright

    elsewhere = []
    with sync_playwright() as playwright:
        windows = []

        def window(width=1280, height=900):
            profile = tmp_path / f"profile-{len(windows)}"
            opened = playwright.chromium.launch_persistent_context(
                profile, executable_path=chromium, args=_ARGUMENTS, viewport={"width": width, "height": height}, headless=True
            )
            opened.on("request", lambda asked: elsewhere.append(asked.url) if not _here(asked.url) else None)
            opened.set_default_timeout(120_000)  # of a busy machine
            windows.append(opened)
            return opened.pages[0] if opened.pages else opened.new_page()

        yield window
        for opened in windows:
            opened.close()
    assert elsewhere == []


def _here(url):
    return url.startswith((*ASIDE, "file:")) or "//127.0.0.1:" in url
