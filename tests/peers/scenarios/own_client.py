"""boxwright's own client, `run` and `cas`, on its own server and on BuildGrid."""
SCENARIOS = []
