"""The drawn world of the quickstart, its small network, and how that network was pretrained."""
