"""ribray: RIB weakly supervised segmentation, from one photograph to a scalable experiment on Ray.

What this module offers is loaded when it is first asked for: importing it takes neither torch nor Ray.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RIB", "AdvCAM", "ImageError", "Result", "RibrayError", "UsageError", "__version__"]

if TYPE_CHECKING:
    from ribray.api import RIB, AdvCAM, Result
    from ribray.errors import ImageError, RibrayError, UsageError

_PLACES = {
    **dict.fromkeys(("RIB", "AdvCAM", "Result"), "api"),
    **dict.fromkeys(("ImageError", "RibrayError", "UsageError"), "errors"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'ribray' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"ribray.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
