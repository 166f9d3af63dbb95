"""What a benchmark returns."""

import json


def values(result):
    """Return the figures' medians, of a result that is whole: JSON, with notes that name a baseline."""
    json.dumps(result, allow_nan=False)
    assert set(result) == {"settings", "figures", "notes"}
    return {name: figure["value"] for name, figure in result["figures"].items()}
