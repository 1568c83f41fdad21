"""This folder as one of ComfyUI's `custom_nodes`."""

from __future__ import annotations

from .comfyui_mixcache import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
