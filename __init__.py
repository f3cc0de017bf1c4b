"""ComfyUI-Text2Layer: a prompt becomes foreground, background, layer mask and their composition."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201 - its type is the host's
    """Gives ComfyUI the extension; nothing is imported before."""
    from .nodes import Text2LayerExtension

    return Text2LayerExtension()
