"""What some tests need of the machine beside Python: a browser, Slurm. Absent, they are skipped, or fail."""

import os
import shutil
from typing import NoReturn

import pytest

# Set, as .ci/run does, a service that is absent is a failure: no test is left out unnoticed.
REQUIRED = "HVAE_JAX_REQUIRE_SERVICES"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def leave_out(reason: str, install: str) -> NoReturn:
    """Ends a test whose service is absent: as skipped, or where services are required as failed.

    Args:
      reason: what is absent.
      install: how to get it.
    """
    message = f"{reason}; {install}"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{message} ({REQUIRED}=1)")
    pytest.skip(message)


def find_browser(downloaded: str) -> str:
    """A Chromium that is installed, else the one that Playwright downloaded; without one the test ends.

    Args:
      downloaded: where Playwright would have put its own, `playwright.chromium.executable_path`. Asked of
        the Playwright that the test has open: a second one cannot be opened inside it.
    """
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    if os.path.exists(downloaded):
        return downloaded
    leave_out(
        "the report was not looked at, since there is no browser",
        "`playwright install chromium`, or on Debian `apt-get install chromium-headless-shell`",
    )
