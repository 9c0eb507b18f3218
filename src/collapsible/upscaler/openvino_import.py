"""OpenVINO without its telemetry.

``import openvino`` starts a process that tells a web service about the import, unless the package
openvino-telemetry is missing; then OpenVINO puts a stub in its place. Nothing here calls home, so
that package is hidden while OpenVINO is imported.
"""

from __future__ import annotations

import sys
from typing import Any

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """The module ``openvino``, imported without telemetry. Raises ``ImportError`` without it."""
    hidden = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hidden:
        # The import system takes None for "there is no such module".
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
    return openvino
