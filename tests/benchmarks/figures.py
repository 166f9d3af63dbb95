"""What a benchmark returns."""

import json

SMALL = [
    "refine.scales=[1.0,0.5]",
    "refine.loss_scales=[1.0]",
    "refine.iterations=3",
    "refine.batch_size=3",
    "refine.crop_size=64",
    "refine.resize_long=[60,90]",
]
"""Settings of a refinement that takes a moment."""


def values(result):
    """Return the figures' medians, of a result that is whole: JSON, with notes that name a baseline."""
    json.dumps(result, allow_nan=False)
    assert set(result) == {"settings", "figures", "notes"}
    return {name: figure["value"] for name, figure in result["figures"].items()}
