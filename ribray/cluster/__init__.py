"""Everything that imports Ray: the session, the pool of actors, distributed training."""
