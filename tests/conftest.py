"""Loads the fixtures where tests run: not in the process that deals them out to others (`-n`), which would import all
libraries before those begin to."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    deals_out = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not deals_out:
        config.pluginmanager.import_plugin("shared_fixtures")
