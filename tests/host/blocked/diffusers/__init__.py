"""Stands in the way of the real diffusers on the path of the test hosts: nothing in the pack may import it there."""

raise ImportError("diffusers must not be imported inside ComfyUI")
