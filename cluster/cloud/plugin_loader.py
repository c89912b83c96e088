"""What SkyPilot loads for us: one file that needs nothing of ours, so that it can always be loaded.

SkyPilot refuses to start when a plugin cannot be imported. So its lists of plugins do not name a module of this package
but a loader: when this package is gone or broken, the loader says so in the server's log, and SkyPilot runs as if there
were no plugin.
"""

from __future__ import annotations

from typing import Final

MODULE: Final = "alpaca_jobs_skypilot_plugin"
ENTRY: Final = f"{MODULE}.AlpacaJobsPlugin"
LOADER: Final = '''"""Loads alpaca-jobs's recovery strategy into SkyPilot. Written by `alpaca-jobs plugin install`.

This file may not fail: SkyPilot's API server does not start when a plugin cannot be loaded.
Remove it with `alpaca-jobs plugin remove`, or delete it together with its entry in ~/.sky/plugins.yaml.
"""

import logging

from sky.server import plugins


class AlpacaJobsPlugin(plugins.BasePlugin):
    """Registers the strategy, or says in the log why it cannot."""

    is_registered = False

    @property
    def name(self):  # what `alpaca-jobs launch` asks the server for
        return "alpaca-jobs" if self.is_registered else "alpaca-jobs (not loaded)"

    def install(self, extension_context):
        try:
            from cluster.cloud.sky_plugin import register

            register()
            self.is_registered = True
        except BaseException as exc:  # whatever it is, it is not worth the user's server
            logging.getLogger("sky.alpaca_jobs").warning(
                "alpaca-jobs's recovery strategy is not loaded (%s: %s); its jobs recover by SkyPilot's own.",
                type(exc).__name__, exc,
            )
'''
