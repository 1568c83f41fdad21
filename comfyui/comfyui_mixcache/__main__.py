"""`python -m comfyui_mixcache COMFYUI/custom_nodes`: lets ComfyUI find the nodes where they were installed by pip."""

from __future__ import annotations

import sys
from pathlib import Path

LINK = '''"""The nodes of the package comfyui_mixcache, which pip has installed."""

from comfyui_mixcache import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
'''


def main(arguments: list[str]) -> str | None:
    """Writes the link; the error, where there is one."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        return "say where ComfyUI's custom_nodes are: python -m comfyui_mixcache path/to/ComfyUI/custom_nodes"
    link = Path(arguments[0], "comfyui_mixcache_link", "__init__.py")
    link.parent.mkdir(exist_ok=True)
    link.write_text(LINK)
    print(f"wrote {link}; start ComfyUI again")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
