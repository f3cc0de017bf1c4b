"""Stock nodes on our MODEL, CLIP and VAE."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.host.comfyui import Server
from tests.host.graphs import (
    Graph,
    Node,
    decode,
    empty,
    encode,
    generate,
    get_json,
    ksampler,
    load,
    native,
    preview,
    psnr_of,
    read_picture,
    run,
    save_picture,
    scene_layers,
    show,
)
from text2layer_core.checkpoint import bundled_model_path, load_checkpoint, read_header, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from headless.client import ComfyClient

pytestmark = pytest.mark.comfy

Tensors = dict[str, torch.Tensor]
RANK = 4
MIN_PREVIEW_GAIN = 1.5  # dB; measured 2.7 with a model trained too little to draw scenes
MIN_TILED_PSNR = 30  # measured 32.8; tiles see other statistics in GroupNorm and attention


def test_vae_decode_gives_composed(client: ComfyClient) -> None:
    graph = Graph()
    loader = load(graph)
    latent = ksampler(graph, loader, empty(graph, loader, 96, 64))
    ours = decode(graph, loader, latent)
    stock = preview(graph, graph("VAEDecode", samples=latent, vae=loader[2]))
    shown = run(client, graph)
    (picture,) = shown[stock.name].pictures
    assert picture.shape == (1, 3, 64, 96)
    assert (picture - shown[ours.name].sample.composed).abs().max() <= 1 / 255


def test_tiled_decode_is_close(client: ComfyClient, tmp_path: Path) -> None:
    """A scene of 512x384 in tiles of 256."""
    graph = Graph()
    loader = load(graph)
    foreground, background, mask = scene_layers(512, 384)
    parts = {"foreground": foreground, "background": background, "mask": mask.expand(-1, 3, -1, -1)}
    large = {name: client.upload(save_picture(tmp_path / f"large-{name}.png", part)) for name, part in parts.items()}
    latent = encode(graph, loader, large)
    ours = decode(graph, loader, latent)
    tiled = graph("VAEDecodeTiled", samples=latent, vae=loader[2], tile_size=256, overlap=64, temporal_size=64,
                  temporal_overlap=8)
    stock = preview(graph, tiled)
    shown = run(client, graph)
    (picture,) = shown[stock.name].pictures
    assert picture.shape == (1, 3, 384, 512)
    assert psnr_of(picture, shown[ours.name].sample.composed) > MIN_TILED_PSNR


@pytest.mark.parametrize(
    ("node", "options"), [("VAEEncode", {}), ("VAEEncodeTiled", {"tile_size": 512, "overlap": 64, "temporal_size": 64,
                                                                 "temporal_overlap": 8})])
def test_vae_encode_names_our_encoder(
    client: ComfyClient, scene: dict[str, str], node: str, options: dict[str, int]
) -> None:
    from headless.client import ComfyError

    graph = Graph()
    loader = load(graph)
    flat = graph(node, pixels=graph("LoadImage", image=scene["foreground"]), vae=loader[2], **options)
    decode(graph, loader, flat)
    with pytest.raises(ComfyError, match=r"pixels .* use Text2LayerEncode$") as caught:
        run(client, graph)
    assert "\n" not in str(caught.value)


def lora() -> Tensors:
    """A random LoRA on the attention of the bundled UNet and on its text encoder's matrices, in PEFT's names."""
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    for key, weight in load_file(bundled_model_path()).items():
        attention = key.startswith("unet.") and (".attn1.to_" in key or ".attn2.to_" in key)
        if weight.ndim == 2 and (attention or key.startswith("text_encoder.text_model.encoder.layers.")):
            base = key.removesuffix(".weight")
            tensors[f"{base}.lora_B.weight"] = torch.randn(weight.shape[0], RANK, generator=generator) * 0.2
            tensors[f"{base}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=generator) * 0.2
    return tensors


def kohya_names(tensors: Tensors) -> Tensors:
    def name(base: str, matrix: str) -> str:
        flat = base.replace("text_encoder.", "lora_te.").replace("unet.", "lora_unet.").replace(".", "_")
        return f"{flat}.lora_{matrix}.weight"

    return renamed(tensors, name)


def processor_names(tensors: Tensors) -> Tensors:
    """Those of diffusers before PEFT: its attention processors' and transformers' layers'."""
    def name(base: str, matrix: str) -> str:
        if base.startswith("text_encoder."):
            return f"{base}.lora_linear_layer.{matrix}.weight"
        return f"{base.replace('.to_', '.processor.to_').removesuffix('.0')}_lora.{matrix}.weight"

    return renamed(tensors, name)


def renamed(tensors: Tensors, name: Callable[[str, str], str]) -> Tensors:
    matrices = {"lora_A": "down", "lora_B": "up"}
    parts = {key: key.removesuffix(".weight").rpartition(".") for key in tensors}
    return {name(base, matrices[matrix]): tensors[key] for key, (base, _, matrix) in parts.items()}


def converted_to_kohya(tensors: Tensors) -> Tensors:
    """As the loader's help page advises."""
    from diffusers.utils import convert_state_dict_to_kohya

    return convert_state_dict_to_kohya(tensors)


def diffusers_names(tensors: Tensors) -> Tensors:
    """What diffusers' training scripts save."""
    from diffusers.utils import convert_state_dict_to_diffusers

    return convert_state_dict_to_diffusers(tensors)


def transformers_5_names(tensors: Tensors) -> Tensors:
    """There CLIP's modules are no longer under "text_model"."""
    return {key.replace("text_encoder.text_model.", "text_encoder."): tensor for key, tensor in tensors.items()}


def draw_with(server: Server, client: ComfyClient, tensors: Tensors) -> tuple[list[torch.Tensor], set[str]]:
    """Pictures with the LoRA on nothing, CLIP alone, MODEL alone and both; and the keys that were not loaded."""
    path = server.folder / "models" / "loras" / f"{uuid4().hex}.safetensors"  # the host keeps a loaded file by its name
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    log_before = len(server.log)
    graph = Graph()
    loader = load(graph)
    nodes = []
    for model, clip in itertools.product((0.0, 1.0), repeat=2):
        changed = graph("LoraLoader", model=loader[0], clip=loader[1], lora_name=path.name, strength_model=model,
                        strength_clip=clip)
        nodes.append(native(graph, loader, model=changed[0], clip=changed[1]))
    shown = run(client, graph)
    path.unlink()
    unread = set(re.findall(r"lora key not loaded: (\S+)", server.log[log_before:]))
    return [shown[node.name].sample.composed for node in nodes], unread


@pytest.mark.parametrize("names", [kohya_names, processor_names, converted_to_kohya])
def test_lora_loads_and_shows(
    server: Server, client: ComfyClient, names: Callable[[Tensors], Tensors]
) -> None:
    """Four different pictures, and no key left over."""
    pictures, unread = draw_with(server, client, names(lora()))
    assert unread == set()
    for one, other in itertools.combinations(pictures, 2):
        assert psnr_of(one, other) < 50


@pytest.mark.parametrize(
    ("names", "read"),
    [(dict, "text_encoder."), (diffusers_names, "text_encoder."), (transformers_5_names, "nothing")],
    ids=["PEFT", "diffusers", "transformers 5"],
)
def test_lora_names_that_the_host_does_not_read(
    server: Server, client: ComfyClient, names: Callable[[Tensors], Tensors], read: str
) -> None:
    """For no model of this kind, SD15's included; the loader's help page says so. A host that does is welcome here."""
    tensors = names(lora())
    (none, clip, model, _), unread = draw_with(server, client, tensors)
    assert unread == {key for key in tensors if not key.startswith(read)}
    assert torch.equal(model, none)
    assert torch.equal(clip, none) == (read == "nothing")


def test_noise_mask_keeps_the_rest(client: ComfyClient, scene: dict[str, str], tmp_path: Path) -> None:
    """Only the left half is drawn anew; the right, a few cells from the border, is as without sampling.

    Not bit for bit, since the decoder's attention and GroupNorm see the whole latent; measured 33 dB, the left 11 dB.
    """
    half = torch.zeros(1, 3, 128, 160)
    half[..., :80] = 1
    mask_file = client.upload(save_picture(tmp_path / "left-half.png", half))
    graph = Graph()
    loader = load(graph)
    latent = encode(graph, loader, scene)
    masked = graph("SetLatentNoiseMask", samples=latent,
                   mask=graph("LoadImageMask", image=mask_file, channel="red"))
    before = decode(graph, loader, latent)
    after = decode(graph, loader, ksampler(graph, loader, masked, steps=4))
    shown = run(client, graph)
    kept, drawn = ((shown[node.name].sample.composed) for node in (before, after))
    assert psnr_of(kept[..., 112:], drawn[..., 112:]) > 30
    assert psnr_of(kept[..., :80], drawn[..., :80]) < 25


def test_a_prompt_weight_changes_the_picture(client: ComfyClient) -> None:
    graph = Graph()
    loader = load(graph)
    prompts = ["a fox in the snow", "a (fox:1.5) in the snow", "a (fox:1.0) in the snow"]
    nodes = [native(graph, loader, prompt=text) for text in prompts]
    shown = run(client, graph)
    plain, weighed, neutral = (shown[node.name].sample.composed for node in nodes)
    assert not torch.equal(plain, weighed)
    assert torch.equal(plain, neutral)


def previews(client: ComfyClient, graph: Graph) -> list[torch.Tensor]:
    """The live previews of a run: binary messages of kind 1 (3 is a line of text), a format and a picture."""
    prompt_id = client.queue(graph.nodes)
    found = []
    while True:
        message = client._socket.recv()
        if isinstance(message, bytes):
            if message[:4] == b"\0\0\0\1":
                found.append(read_picture(message[8:]))
        elif json.loads(message)["type"] == "execution_success":
            client.history(prompt_id)
            return found


@pytest.mark.parametrize("build", [generate, native], ids=["Generate", "KSampler"])
def test_each_step_sends_a_preview(
    server: Server, client: ComfyClient, build: Callable[..., Node]
) -> None:
    """Factors of 0 and a bias of (0.5, -0.5, 0): by hand every preview is (0.75, 0.25, 0.5), up to JPEG's rounding."""
    model = load_checkpoint(bundled_model_path())
    model.card["latent_rgb"] = {"factors": [[0.0] * 3] * model.autoencoder.config.latent_channels,
                                "bias": [0.5, -0.5, 0.0]}
    path = server.folder / "models" / "text2layer" / "previews.safetensors"
    save_checkpoint(path, model)
    graph = Graph()
    build(graph, graph("Text2LayerModelLoader", model=path.name), steps=5, width=96, height=64)
    found = previews(client, graph)
    path.unlink()
    assert len(found) == 5
    expected = torch.tensor([0.75, 0.25, 0.5]).view(1, 3, 1, 1)
    assert all((picture - expected).abs().max() <= 4 / 255 for picture in found)


def test_the_bundled_preview_is_like_composed(client: ComfyClient) -> None:
    """At the latent's size the last preview must be nearer to the picture than the picture's own mean colour is."""
    assert "latent_rgb" in read_header(bundled_model_path()).card, "python -m train.latent_rgb --model FILE adds it"
    graph = Graph()
    node = generate(graph, load(graph), steps=20, width=128, height=128, seed=11)
    found = previews(client, graph)
    composed = show(client, graph, node).sample.composed
    shown, true = (functional.adaptive_avg_pool2d(picture, 16) for picture in (found[-1], composed))
    mean_colour = true.mean(dim=(2, 3), keepdim=True).expand_as(true)
    assert psnr_of(shown, true) > psnr_of(mean_colour, true) + MIN_PREVIEW_GAIN


def choices(server: Server, name: str) -> list[str]:
    kind, options = get_json(server, "/object_info/KSampler")["KSampler"]["input"]["required"][name]
    return options["options"] if kind == "COMBO" else kind


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sampler_name", "scheduler"])
def test_every_sampler_and_scheduler_runs(server: Server, client: ComfyClient, name: str) -> None:
    """Values that are not finite would be refused by the layers' own check."""
    graph = Graph()
    loader = load(graph)
    defaults: dict[str, Any] = {"sampler_name": "euler", "scheduler": "normal"}
    nodes: dict[str, Node] = {
        choice: native(graph, loader, **{**defaults, name: choice}, steps=3, width=32, height=32)
        for choice in choices(server, name)
    }
    shown = run(client, graph)
    assert [choice for choice, node in nodes.items() if len(shown[node.name].pictures) != 4] == []


def test_stock_empty_latent_serves(client: ComfyClient) -> None:
    """EmptyLatentImage has four channels; KSampler widens it to the model's while it is empty."""
    graph = Graph()
    loader = load(graph)
    stock = graph("EmptyLatentImage", width=64, height=48, batch_size=1)
    node = decode(graph, loader, ksampler(graph, loader, stock))
    sample = show(client, graph, node).sample
    assert tuple(sample.composed.shape[:1:-1]) == (64, 48)
