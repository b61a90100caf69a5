"""A Chromium of this machine, to look at web pages with."""
import shutil
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

from tests import packages

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened(url, **options):
    """The page at an address in a headless Chromium; every address it asks for is kept in `page.asked`."""
    if not chromium():
        packages.skip_without("chromium", "no browser looks at the pages")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(**options)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        yield page
        browser.close()
