"""How good masks are: confusion matrices, IoU over thresholds, and the numbers the papers published."""
