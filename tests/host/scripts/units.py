"""Checks of the nodes' parts on a host's own classes, in its Python and its folder: `python units.py PACK FOLDER`.

FOLDER is a base directory whose files `test_units.py` writes. Each `check_*` is one test; one line of JSON says what
came of each, "" or the traceback. No file of pytest's is needed, since hosts have none.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import json
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any

import torch

PACK, FOLDER = (Path(argument) for argument in sys.argv[1:3])
NAME = "text2layer_pack"
MIN_TILED_PSNR = 30  # measured 33: as VAEDecodeTiled in test_stock_nodes.py


def part(name: str) -> Any:
    """A module of the pack."""
    return importlib.import_module(f"{NAME}.{name}")


def load(model: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE, as the loader gives them."""
    return part("nodes.loader").Text2LayerModelLoader.execute(model).args


def refusal(function: Any, *arguments: Any) -> str:
    """The message of the ValueError that a call must raise."""
    try:
        function(*arguments)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message, message
        return message
    raise AssertionError(f"{function} took {arguments}")


def reference() -> dict[str, torch.Tensor]:
    """What our own classes, on diffusers and transformers, make of the same numbers; written by the test."""
    import comfy.utils

    return comfy.utils.load_torch_file(str(FOLDER / "reference.safetensors"), safe_load=True)


def check_unet_equals_diffusers() -> None:
    """Four levels, as Stable Diffusion's; the limit is the host's and diffusers' different order of additions."""
    expected = reference()
    unet = load("four-level.safetensors")[0].model.diffusion_model
    with torch.no_grad():
        found = unet(expected["latents"], expected["timesteps"], context=expected["context"])
    torch.testing.assert_close(found, expected["predicted"], rtol=1e-4, atol=1e-4)


def check_schedule_equals_ours() -> None:
    """The noise levels by sigma^2 = (1 - a) / a, and the latent's scale."""
    expected = reference()
    model = load("four-level.safetensors")[0].model
    alphas = expected["alphas_cumprod"].double()
    sigmas = ((1 - alphas) / alphas).sqrt().float()
    torch.testing.assert_close(model.model_sampling.sigmas, sigmas, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.process_latent_out(expected["latents"].clone()), expected["unscaled"])


def check_clip_equals_ours() -> None:
    expected = reference()["context"][:1]
    clip = load("four-level.safetensors")[1]
    found = clip.encode_from_tokens(clip.tokenize("a red fox on snow"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def check_vae_equals_ours() -> None:
    """Among them the folded BatchNorm: our own class runs it as it was trained."""
    expected = reference()
    vae = load("four-level.safetensors")[2]
    layers = part("text2layer_core.layers").TwoLayerImage.from_stack(expected["stack"])
    torch.testing.assert_close(vae.encode_layers(layers), expected["encoded"], rtol=1e-4, atol=1e-4)
    decoded = vae.decode_layers(expected["latents"])
    torch.testing.assert_close(decoded.layers.stack(), expected["decoded"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded.predicted_composed, expected["predicted_composed"], rtol=1e-4, atol=1e-4)


def check_batch_order_in_decode() -> None:
    """Whole against one by one."""
    latents = reference()["latents"]
    vae = load("four-level.safetensors")[2]
    whole = vae.decode_layers(latents).layers.stack()
    alone = torch.cat([vae.decode_layers(one[None]).layers.stack() for one in latents])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)
    assert (whole[0] - whole[1]).abs().mean() > 1e-3


def check_out_of_memory_becomes_tiles() -> None:
    """The first decode fails as on a full GPU; the tiles' picture is near the whole one's, with nothing left out."""
    import comfy.model_management

    vae = load("text2layer-mini (bundled)")[2]
    latents = vae.encode_layers(part("text2layer_core.layers").TwoLayerImage.from_stack(wide_scene()))
    whole = vae.decode_layers(latents)
    stage, calls = vae.first_stage_model, []
    decode = stage.decode

    def full_once(samples: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(samples.shape))
        if len(calls) == 1:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return decode(samples)

    stage.decode = full_once
    tiled = vae.decode_layers(latents)
    assert len(calls) > 3, calls
    assert tiled.layers.stack().shape == whole.layers.stack().shape
    assert tiled.predicted_composed.shape == whole.predicted_composed.shape
    found = part("text2layer_core.metrics").psnr(tiled.layers.stack(), whole.layers.stack())
    assert float(found) > MIN_TILED_PSNR, found


def check_out_of_memory_encodes_in_tiles() -> None:
    """As above, the other way: latents near the whole picture's, layers of them near the truth."""
    import comfy.model_management

    vae = load("text2layer-mini (bundled)")[2]
    layers = part("text2layer_core.layers").TwoLayerImage.from_stack(wide_scene())
    whole = vae.encode_layers(layers)
    stage, calls = vae.first_stage_model, []
    encode = stage.encode

    def full_once(stack: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(stack.shape))
        if len(calls) == 1:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return encode(stack)

    stage.encode = full_once
    tiled = vae.encode_layers(layers)
    assert len(calls) > 3, calls
    assert tiled.shape == whole.shape
    psnr = part("text2layer_core.metrics").psnr
    found = psnr(vae.decode_layers(tiled).layers.stack(), vae.decode_layers(whole).layers.stack())
    assert float(found) > MIN_TILED_PSNR, found


def wide_scene() -> torch.Tensor:
    """A disc of orange over blue, [F, B, m] (1, 7, 384, 768): wider than a tile."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 384), torch.linspace(0, 1, 768), indexing="ij")
    mask = (torch.hypot(x - 0.5, y - 0.5) < 0.3).float()
    return torch.stack([0.9 - 0.2 * y, 0.5 - 0.2 * y, 0.2 * x, 0.2 + 0.3 * x, 0.3 + 0.3 * x, 0 * x + 0.8, mask])[None]


def check_low_vram_gives_the_same() -> None:
    """--lowvram and --novram exclude --cpu; what they do, loading a model only partly, is done here by hand."""
    expected = reference()
    model, _, vae = load("four-level.safetensors")
    for patcher in (model, vae.patcher):
        patcher.load(patcher.load_device, lowvram_model_memory=1)
        assert patcher.model.model_lowvram
    with torch.no_grad():
        found = model.model.diffusion_model(expected["latents"], expected["timesteps"], context=expected["context"])
        decoded = vae.first_stage_model.decode(expected["latents"]).clamp(0, 1)
    torch.testing.assert_close(found, expected["predicted"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded[:, :7], expected["decoded"], rtol=1e-4, atol=1e-4)


def check_a_mask_without_batch_serves_all() -> None:
    """Some nodes give a MASK of (H, W)."""
    convert = part("nodes.convert")
    picture, mask = torch.rand(2, 5, 7, 3), torch.rand(5, 7)
    found = convert.layers_from_images(picture, picture, mask)
    assert torch.equal(found.mask, mask.expand(2, 1, 5, 7))
    assert "foreground_mask must have the foreground's size 7x5, got 7x4" in refusal(
        convert.layers_from_images, picture, picture, mask[:4]
    )


def check_dynamic_vram_loads() -> None:
    """With it, which today's host uses on NVIDIA cards, layers hold no weights until a file fills them.

    The file itself is read without it: that part needs the card.
    """
    try:
        import comfy.memory_management as memory
    except ImportError:
        return  # an older host has none
    import comfy.utils

    expected, before, read = reference(), memory.aimdo_enabled, comfy.utils.load_torch_file

    def load_torch_file(*arguments: Any, **options: Any) -> Any:
        memory.aimdo_enabled = before
        try:
            return read(*arguments, **options)
        finally:
            memory.aimdo_enabled = True

    memory.aimdo_enabled, comfy.utils.load_torch_file = True, load_torch_file
    try:
        model, clip, vae = load("four-level.safetensors")
        assert "missing (1): mid_block.resnets.0.conv1.weight" in refusal(load, "broken.safetensors")
    finally:
        memory.aimdo_enabled, comfy.utils.load_torch_file = before, read
    with torch.no_grad():
        found = model.model.diffusion_model(expected["latents"], expected["timesteps"], context=expected["context"])
    torch.testing.assert_close(found, expected["predicted"], rtol=1e-4, atol=1e-4)
    context = clip.encode_from_tokens(clip.tokenize("a red fox on snow"))
    torch.testing.assert_close(context, expected["context"][:1], rtol=1e-4, atol=1e-4)
    layers = vae.decode_layers(expected["latents"]).layers
    torch.testing.assert_close(layers.stack(), expected["decoded"], rtol=1e-4, atol=1e-4)


def live_numbers() -> int:
    """How many numbers all tensors hold."""
    gc.collect()
    return sum(item.numel() for item in gc.get_objects() if isinstance(item, torch.Tensor))


def check_nothing_is_pinned() -> None:
    """Once the host drops what the loader gave and unloads, no part is alive, nor a tensor that was not before."""
    import comfy.model_management

    before = live_numbers()
    model, clip, vae = load("four-level.safetensors")
    vae.decode_layers(reference()["latents"])
    clip.encode_from_tokens(clip.tokenize("a fox"))
    comfy.model_management.load_models_gpu([model])
    alive = [weakref.ref(part) for part in (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model)]
    del model, clip, vae
    comfy.model_management.unload_all_models()
    gc.collect()
    assert [part() for part in alive] == [None] * 3
    assert live_numbers() <= before + 1000, (before, live_numbers())


def check_paths_lead_nowhere_else() -> None:
    path = part("nodes.model_files").model_path
    outside = FOLDER / "outside.safetensors"
    assert outside.exists()
    for name in ("../../etc/passwd", "../../outside.safetensors", str(outside), "", ".", "notes.txt", "pickled.ckpt"):
        message = refusal(path, name)
        assert message.startswith("model must be "), message
        assert message.endswith(f"got {name!r}"), message
    assert path("four-level.safetensors") == FOLDER / "models" / "text2layer" / "four-level.safetensors"


def check_extra_paths_are_kept() -> None:
    """A folder set as extra_model_paths.yaml sets it, before the pack came; only safetensors are listed."""
    import folder_paths

    folders = folder_paths.get_folder_paths("text2layer")
    assert sorted(folders) == sorted(str(FOLDER / name) for name in ("extra", "models/text2layer"))
    assert folder_paths.folder_names_and_paths["text2layer"][1] == {".safetensors"}
    files = part("nodes.model_files")
    expected = ["broken.safetensors", "four-level.safetensors", str(Path("sub") / "mine.safetensors")]
    assert sorted(files.model_names()[1:]) == expected, files.model_names()
    assert files.model_path(expected[2]) == FOLDER / "extra" / expected[2]
    files.register_model_folder()  # hosts may ask for the nodes again
    assert folder_paths.get_folder_paths("text2layer") == folders


def check_missing_tensor_is_named() -> None:
    message = refusal(load, "broken.safetensors")
    assert "broken.safetensors" in message, message
    assert "missing (1): mid_block.resnets.0.conv1.weight" in message, message


def check_stock_model_is_refused() -> None:
    """A model of the host's own class, small: Stable Diffusion v1's real one has 860 million parameters."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1],
        "num_res_blocks": [1], "transformer_depth": [0], "transformer_depth_output": [0, 0],
        "transformer_depth_middle": 0, "context_dim": 32, "num_heads": 8, "use_spatial_transformer": True,
        "adm_in_channels": None,
    }
    stock = comfy.supported_models.SD15(config)
    stock.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(stock, device="cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    message = refusal(part("nodes.latents").Text2LayerEmptyLatent.execute, patcher, 64, 64, 1)
    assert message.startswith("model must come from Load Text2Layer Model"), message
    assert "SD15" in message, message


def prepare() -> None:
    """As main.py: its folder on the path, options read, extra paths set; then the pack, under a name of its own."""
    sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(FOLDER)]
    sys.path.insert(0, str(Path.cwd()))
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths
    import utils.extra_config  # noqa: F401 - first, as there: older hosts put a folder with another "utils" on the path

    folder_paths.add_model_folder_path("text2layer", str(FOLDER / "extra"))
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec and spec.loader
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asyncio.run(nodes_of(module))


async def nodes_of(module: Any) -> None:
    extension = await module.comfy_entrypoint()
    assert await extension.get_node_list()


def main() -> None:
    """Runs all; the results are the last line."""
    prepare()
    results = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                with torch.inference_mode():
                    check()
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
