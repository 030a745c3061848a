"""A window on the screen, where there is one."""

from __future__ import annotations

import os
import platform

import cv2

from yolact.data.images import RgbImage
from yolact.errors import ConfigError

_QUIT = (ord("q"), 27)
_TITLE = "yolact"


def has_display() -> bool:
    """Whether this process can open a window.

    Asked before OpenCV is: without a display its window library ends the whole process.
    """
    if platform.system() == "Linux":
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


def require_display(option: str) -> None:
    """Check that a window can be opened, before long work starts.

    Raises:
        ConfigError: There is no display; the hint says what to do instead of ``option``.
    """
    if not has_display():
        raise ConfigError(
            f"{option} needs a display, and this machine shows none",
            hint="write pictures instead: --image IN:OUT, --images IN:OUT, --video IN:OUT, "
            "or sparseml.yolact.annotate",
        )


def show(image: RgbImage, wait_ms: int = 0) -> bool:
    """Show a picture; False when the user asked to stop (q or Esc).

    Args:
        image: RGB.
        wait_ms: How long to wait for a key; 0 waits for one.

    Raises:
        ConfigError: This build of OpenCV has no windows.
    """
    try:
        cv2.imshow(_TITLE, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return (cv2.waitKey(wait_ms) & 0xFF) not in _QUIT
    except cv2.error as error:
        raise ConfigError(
            "this build of OpenCV cannot open windows",
            hint="pip install opencv-python (not opencv-python-headless)",
        ) from error


def close() -> None:
    """Close the window, if one is open."""
    if has_display():
        cv2.destroyAllWindows()
