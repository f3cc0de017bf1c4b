"""Training and evaluation; runs without ComfyUI."""
