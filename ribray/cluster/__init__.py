"""Everything that imports Ray: the session, the pool of actors, distributed training, sweeps."""

import os

# Ray would connect by itself, to whatever cluster it finds, where a thread asks for something after the session's end.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
