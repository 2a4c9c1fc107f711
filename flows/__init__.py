"""What can be started: one module per flow, and the command line."""

import os

# Prefect and its clients send usage data by default. The client decides when it is imported, which
# is after this. A variable that the user has set wins.
NO_ANALYTICS = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
for _name, _value in NO_ANALYTICS.items():
    os.environ.setdefault(_name, _value)
