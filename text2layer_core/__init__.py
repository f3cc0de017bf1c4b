"""Layered image generation after Text2Layer (arXiv 2307.09781): the library, which runs without ComfyUI."""
