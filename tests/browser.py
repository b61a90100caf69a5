"""A Chromium of this machine, to look at web pages with."""
import os
import shutil
import subprocess
from contextlib import contextmanager
from functools import cache

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-wqy-microhei")


@cache
def chromium():
    """The path of a Chromium; one that is not there is installed where that is allowed."""
    if not _found() and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *command], check=False, stdout=subprocess.DEVNULL,
                           env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    return _found()


def _found():
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened(url, **options):
    """The page at an address in a headless Chromium; every address it asks for is kept in `page.asked`."""
    if not chromium():
        pytest.skip(f"没有浏览器，网页没有测试。请安装：apt-get install {' '.join(PACKAGES)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(**options)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        yield page
        browser.close()
