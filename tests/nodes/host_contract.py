"""What the nodes declare on a real host: run by that host's Python, in its folder, with the pack's folder as argument.

Prints node id -> /object_info's description of the node, as JSON, in the last line.
"""

from __future__ import annotations

import asyncio
import json
import sys

import comfy.options


def main() -> None:
    """Loads the pack as the host does at its start."""
    pack = sys.argv.pop(1)
    sys.argv.append("--cpu")
    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401 - as main.py does: `nodes` puts another `utils` in front

    import nodes

    before = set(nodes.NODE_CLASS_MAPPINGS)
    if not asyncio.run(nodes.load_custom_node(pack)):
        raise SystemExit(f"the host did not load {pack}")
    classes = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name not in before}
    print("\n" + json.dumps({name: node.GET_NODE_INFO_V1() for name, node in classes.items()}))


if __name__ == "__main__":
    main()
