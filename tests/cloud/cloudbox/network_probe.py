"""The one patch to SkyPilot in these tests: a plugin that points its "is the network up?" probe at the pretend AWS.

SkyPilot asks https://8.8.8.8 and https://1.1.1.1 before it believes a preemption, and waits for ever where neither
can be reached. There is no other way to tell it (0.14.1: a private list in sky.backends.backend_utils).
"""

from __future__ import annotations

from sky.backends import backend_utils
from sky.server import plugins


class NetworkProbe(plugins.BasePlugin):
    """Takes the URL to probe instead; installing it twice changes nothing."""

    def __init__(self, url: str) -> None:
        self._url = url

    def install(self, extension_context: plugins.ExtensionContext) -> None:
        """Replace the list in place: others may have imported it."""
        backend_utils._TEST_IP_LIST[:] = [self._url]
