"""Saliency and inpainting backends on the real libraries, with tiny weights made here."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.synthesis.config import InpainterConfig, SaliencyConfig
from train.synthesis.inpainting import open_inpainter
from train.synthesis.saliency import open_saliency

pytest.importorskip("cv2")


def scene(height: int = 96, width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """A red disc on noisy green, and its mask."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = (((y - height / 2) ** 2 + (x - width / 2) ** 2) < (height / 4) ** 2).float()[None]
    generator = torch.Generator().manual_seed(0)
    image = torch.where(mask > 0, torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1),
                        torch.tensor([0.1, 0.6, 0.2]).view(3, 1, 1))
    return (image + 0.03 * torch.randn(3, height, width, generator=generator)).clamp(0, 1), mask


def find(config: SaliencyConfig, image: torch.Tensor) -> torch.Tensor:
    (mask,) = open_saliency(config)([image])
    return mask


def fill(config: InpainterConfig, image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    (filled,) = open_inpainter(config)([image], [hole])
    return filled


def test_grabcut_finds_a_disc_in_the_middle() -> None:
    image, mask = scene()
    before = image.clone()
    found = find(SaliencyConfig(), image)
    assert found.shape == mask.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    overlap = ((found > 0.5) & (mask > 0.5)).sum() / ((found > 0.5) | (mask > 0.5)).sum()
    assert overlap > 0.95
    assert torch.equal(find(SaliencyConfig(), image), found), "the same in every run"
    assert torch.equal(image, before)


def test_grabcut_of_a_picture_with_nothing_in_it() -> None:
    found = find(SaliencyConfig(), torch.full((3, 32, 32), 0.5))
    assert found.shape == (1, 32, 32)
    assert torch.isfinite(found).all()


def test_telea_continues_the_ground_and_leaves_the_rest() -> None:
    image, mask = scene()
    hole = torch.nn.functional.max_pool2d(mask, 5, 1, 2)
    filled = fill(InpainterConfig(), image, hole)
    assert torch.allclose(torch.where(hole > 0, 0, filled), torch.where(hole > 0, 0, image), atol=1 / 255)
    inside = filled[:, hole[0] > 0].mean(dim=1)
    assert torch.allclose(inside, torch.tensor([0.1, 0.6, 0.2]), atol=0.03), "no red is left"


def test_the_stand_ins_wait() -> None:
    import time

    image, _ = scene()
    began = time.perf_counter()
    mask = find(SaliencyConfig(backend="wait", seconds=0.05), image)
    filled = fill(InpainterConfig(backend="wait", seconds=0.05), image, mask)
    assert time.perf_counter() - began >= 0.1
    assert mask.mean() == 0.25, "half of each side"
    assert torch.equal(torch.where(mask > 0, 0, filled), torch.where(mask > 0, 0, image))


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; of random weights."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    torch.manual_seed(0)
    config = SegformerConfig(num_labels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16],
                             num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=16)
    folder = tmp_path_factory.mktemp("segformer")
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_a_transformers_model_of_classes(segformer: Path) -> None:
    """Against the model called by hand; a thing is any class but 0."""
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

    image, mask = scene()
    found = find(SaliencyConfig(backend="transformers", path=str(segformer)), image)
    assert found.shape == mask.shape
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    inputs = SegformerImageProcessorPil.from_pretrained(segformer)(images=pixels, return_tensors="pt")
    with torch.no_grad():
        logits = SegformerForSemanticSegmentation.from_pretrained(segformer).eval()(**inputs).logits
    ground = logits.softmax(dim=1)[:, :1]
    expected = 1 - torch.nn.functional.interpolate(ground, (96, 128), mode="bilinear")[0]
    assert torch.allclose(found, expected, atol=1e-5)
    classes = [find(SaliencyConfig(backend="transformers", path=str(segformer), labels=(label,)), image)
               for label in (1, 2)]
    assert torch.allclose(classes[0] + classes[1], found, atol=1e-5)
    with pytest.raises(ValueError, match="labels must be below the model's 3 classes, got 3"):
        find(SaliencyConfig(backend="transformers", path=str(segformer), labels=(3,)), image)


@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_a_transformers_model_of_queries(tmp_path: Path, kind: str) -> None:
    """Against its parts by hand: a class has the share that the queries give it."""
    import transformers as t

    torch.manual_seed(0)
    backbone = t.SwinConfig(image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=2,
                            out_features=["stage1", "stage2", "stage3", "stage4"])
    if kind == "maskformer":
        decoder = t.DetrConfig(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                               decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=5)
        model: Any = t.MaskFormerForInstanceSegmentation(t.MaskFormerConfig(
            fpn_feature_size=32, mask_feature_size=32, backbone_config=backbone, decoder_config=decoder, num_labels=3))
        processor: Any = t.MaskFormerImageProcessorPil(size={"height": 64, "width": 64})
    else:
        model = t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(
            backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, num_attention_heads=2,
            encoder_layers=1, decoder_layers=2, encoder_feedforward_dim=16, dim_feedforward=16, num_queries=5,
            num_labels=3))
        processor = t.Mask2FormerImageProcessorPil(size={"height": 64, "width": 64})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image, mask = scene()
    with pytest.raises(ValueError, match=f"labels must name the classes that are things, as {kind}'s begin with one"):
        open_saliency(SaliencyConfig(backend="transformers", path=str(tmp_path)))
    saliency = open_saliency(SaliencyConfig(backend="transformers", path=str(tmp_path), labels=(1, 2)))
    (found,) = saliency([image])
    assert found.shape == mask.shape
    inputs = processor(images=(image * 255).round().byte().permute(1, 2, 0).numpy(), return_tensors="pt")
    with torch.no_grad():
        outputs = model.eval()(pixel_values=inputs["pixel_values"])
    classes = outputs.class_queries_logits[0].softmax(-1)
    votes = sum(classes[query, :3].view(3, 1, 1) * outputs.masks_queries_logits[0, query].sigmoid()
                for query in range(5))
    share = (votes[1] + votes[2]) / votes.sum(dim=0).clamp_min(1)
    expected = torch.nn.functional.interpolate(share[None, None], (96, 128), mode="bilinear")[0]
    assert torch.allclose(found, expected, atol=1e-5)
    pair = saliency([image, image.flip(2)])
    assert torch.allclose(pair[0], found, atol=1e-4), "alone or in a batch"


def test_a_transformers_model_of_one_class(tmp_path: Path) -> None:
    """Its only channel is the object's."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

    torch.manual_seed(0)
    config = SegformerConfig(num_labels=1, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16],
                             num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=16)
    model = SegformerForSemanticSegmentation(config)
    model.decode_head.classifier.bias.data.fill_(2.0)
    model.save_pretrained(tmp_path)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    found = find(SaliencyConfig(backend="transformers", path=str(tmp_path)), scene()[0])
    assert found.mean() == pytest.approx(float(torch.tensor(2.0).sigmoid()), abs=0.05)


def test_pictures_of_several_sizes_come_back_in_their_order(segformer: Path) -> None:
    pictures = [scene(96, 128)[0], scene(64, 64)[0], scene(96, 128)[0].flip(2)]
    saliency = open_saliency(SaliencyConfig(backend="transformers", path=str(segformer)))
    found = saliency(pictures)
    assert [mask.shape for mask in found] == [(1, 96, 128), (1, 64, 64), (1, 96, 128)]
    for mask, picture in zip(found, pictures, strict=True):
        assert torch.allclose(mask, saliency([picture])[0], atol=1e-5)


def clip_parts(*, projection: bool = False) -> tuple[Any, Any]:
    """A tokenizer of four tokens and a text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    vocabulary = {letter: index for index, letter in enumerate(["<|startoftext|>", "<|endoftext|>", "a", "a</w>"])}
    config = CLIPTextConfig(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=2, projection_dim=8,
                            num_attention_heads=1, max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
                            pad_token_id=1)
    maker = CLIPTextModelWithProjection if projection else CLIPTextModel
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8), maker(config)


def latent_parts(**options: Any) -> tuple[Any, Any]:
    """An autoencoder and a UNet that takes latents, masked latents and mask."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel(sample_size=8, in_channels=9, out_channels=4, block_out_channels=(8, 16),
                                layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **options)
    coder = AutoencoderKL(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
                          down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return coder, unet


def stable_diffusion() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

    tokenizer, text = clip_parts()
    coder, unet = latent_parts(cross_attention_dim=8)
    return StableDiffusionInpaintPipeline(
        vae=coder, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def stable_diffusion_xl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline

    (tokenizer, text), (tokenizer_2, text_2) = clip_parts(), clip_parts(projection=True)
    coder, unet = latent_parts(cross_attention_dim=16, addition_embed_type="text_time", addition_time_embed_dim=4,
                               projection_class_embeddings_input_dim=8 + 6 * 4)
    return StableDiffusionXLInpaintPipeline(
        vae=coder, text_encoder=text, text_encoder_2=text_2, tokenizer=tokenizer, tokenizer_2=tokenizer_2, unet=unet,
        scheduler=EulerDiscreteScheduler())


def flux_fill() -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    tokenizer, text = clip_parts()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)]
    text_2 = T5EncoderModel(T5Config(vocab_size=104, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    coder = AutoencoderKL(block_out_channels=(4,), layers_per_block=1, latent_channels=2, norm_num_groups=1,
                          use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=1.5)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=20, out_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True)
    return FluxFillPipeline(
        vae=coder, text_encoder=text, tokenizer=tokenizer, text_encoder_2=text_2,
        tokenizer_2=T5Tokenizer(vocab=pieces), transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())


MAKERS = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "flux-fill": flux_fill}


def pipeline_folder(folder: Path, kind: str) -> Path:
    """Random weights in the real classes, a few channels wide."""
    torch.manual_seed(0)
    MAKERS[kind]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline_folder(tmp_path_factory.mktemp("pipeline"), "sd")


@pytest.mark.parametrize("kind", MAKERS)
def test_diffusers_pipelines_fill_a_batch(tmp_path: Path, kind: str) -> None:
    """From noise alone: where the hole is, nothing of the picture guides it; alone or in a batch it is the same."""
    folder = pipeline_folder(tmp_path, kind)
    inpainter: Any = open_inpainter(InpainterConfig(backend="diffusers", path=str(folder), steps=2))
    assert type(inpainter._pipeline) is type(MAKERS[kind]())
    (first, mask), (other, small) = scene(64, 64), scene(48, 64)
    pictures, holes = [first, other, first.flip(2)], [mask, small, mask]
    filled = inpainter(pictures, holes)
    for found, picture, hole in zip(filled, pictures, holes, strict=True):
        assert found.shape == picture.shape
        assert torch.isfinite(found).all()
        assert torch.allclose(found, inpainter([picture], [hole])[0], atol=2e-3)
    generators = [inpainter._noise(first)]
    inpainter._noise = lambda _: generators[0].manual_seed(0)
    masked = torch.where(mask > 0, 0.5, first)
    assert torch.allclose(inpainter([first], [mask])[0], inpainter([masked], [mask])[0], atol=1e-5)


def test_a_diffusers_pipeline(pipeline: Path) -> None:
    image, mask = scene(90, 70)
    config = InpainterConfig(backend="diffusers", path=str(pipeline), steps=2)
    inpainter = open_inpainter(config)
    (filled,) = inpainter([image], [mask])
    assert filled.shape == image.shape
    assert filled.min() >= 0
    assert filled.max() <= 1
    inpainter([image.flip(2)], [mask])
    assert torch.equal(inpainter([image], [mask])[0], filled), "noise belongs to the picture, not to the order"
    assert not torch.equal(fill(replace(config, seed=1), image, mask), filled)
    assert fill(replace(config, steps=1, size=64), image, mask).shape == image.shape


def onnx_model(path: Path, *, sides: tuple[object, object], factor: float) -> Path:
    """The picture where the mask is 0 and grey where it is 1, times `factor`: LaMa's inputs and output."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, *sides]),
              helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *sides])]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, *sides])
    numbers = {"one": 1.0, "grey": 0.5, "factor": factor}
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in numbers.items()]
    nodes = [helper.make_node("Sub", ["one", "mask"], ["outside"]),
             helper.make_node("Mul", ["image", "outside"], ["kept"]),
             helper.make_node("Mul", ["grey", "mask"], ["made"]),
             helper.make_node("Add", ["kept", "made"], ["sum"]),
             helper.make_node("Mul", ["sum", "factor"], ["output"])]
    graph = helper.make_graph(nodes, "lama", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("factor", [1.0, 255.0])
def test_lama_takes_any_size_and_either_range(tmp_path: Path, factor: float) -> None:
    image, mask = scene(96, 128)
    path = onnx_model(tmp_path / "lama.onnx", sides=("h", "w"), factor=factor)
    filled = fill(InpainterConfig(backend="lama", path=str(path)), image, mask)
    expected = torch.where(mask > 0, 0.5, image)
    assert torch.allclose(filled, expected, atol=1e-5)


def test_lama_of_a_fixed_size(tmp_path: Path) -> None:
    image, mask = scene(96, 128)
    path = onnx_model(tmp_path / "lama.onnx", sides=(64, 64), factor=1.0)
    filled = fill(InpainterConfig(backend="lama", path=str(path)), image, mask)
    assert filled.shape == image.shape
    assert filled[:, 48, 64].tolist() == pytest.approx([0.5] * 3, abs=1e-4)


@pytest.mark.parametrize(("model", "side"), [("u2net", 320), ("isnet-general-use", 1024), ("birefnet-general", 1024)])
def test_rembg_reads_a_local_onnx_file(tmp_path: Path, model: str, side: int) -> None:
    """A graph with the model's input and output that gives the red channel; rembg stretches what it gets to [0, 1]."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("rembg")
    from onnx import TensorProto, helper

    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, side, side])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1, 3, 1, 1], [1.0, 0.0, 0.0])
    node = helper.make_node("Conv", ["input", "w"], ["output"])
    graph = helper.make_graph([node], "red", [entry], [output], [weights])
    (tmp_path / "models" / model).mkdir(parents=True)
    file = tmp_path / "models" / model / f"{model}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    image, mask = scene()
    for path in (tmp_path, file):
        found = find(SaliencyConfig(backend="rembg", path=str(path), model=model), image)
        assert found.shape == mask.shape
        assert ((found > 0.5) == (mask > 0.5)).float().mean() > 0.99


@pytest.mark.parametrize("backend", ["rembg", "lama"])
def test_a_gpu_that_onnx_runtime_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """It would compute on the CPU without a word."""
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = onnx_model(tmp_path / "u2net.onnx", sides=(64, 64), factor=1.0)
    with pytest.raises(ValueError, match=r"^device cuda must be .*onnxruntime-gpu.*, got CPUExecutionProvider$"):
        if backend == "rembg":
            open_saliency(SaliencyConfig(backend="rembg", path=str(path), device="cuda"))
        else:
            open_inpainter(InpainterConfig(backend="lama", path=str(path), device="cuda"))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("backend", ["transformers", "diffusers"])
def test_a_pointer_of_git_lfs_is_no_weights(
    segformer: Path, pipeline: Path, tmp_path: Path, backend: str
) -> None:
    """What a clone without LFS leaves; safetensors' own error derives from Exception alone."""
    folder = shutil.copytree(segformer if backend == "transformers" else pipeline, tmp_path / "model")
    for file in folder.rglob("*.safetensors"):
        file.write_text(POINTER, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{folder} must be an? .* that {backend} knows, got [^\n]*$"):
        if backend == "transformers":
            open_saliency(SaliencyConfig(backend="transformers", path=str(folder)))
        else:
            open_inpainter(InpainterConfig(backend="diffusers", path=str(folder)))


@pytest.mark.parametrize(("backend", "package"), [
    ("grabcut", "cv2"), ("rembg", "rembg"), ("rembg", "onnxruntime"), ("telea", "cv2"), ("lama", "onnxruntime")])
def test_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"^{package} must be installed \(pip install -e \.\[synthesis\]\), found"):
        if backend in ("grabcut", "rembg"):
            open_saliency(SaliencyConfig(backend=backend, path="x"))  # type: ignore[arg-type]
        else:
            open_inpainter(InpainterConfig(backend=backend, path="x"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "message"), [
    ("rembg", r"saliency: path must be an ONNX file or a folder with u2net.onnx, found none at"),
    ("transformers", "saliency: path must be a folder of a transformers model, found no config.json in"),
])
def test_saliency_says_what_is_missing(tmp_path: Path, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_saliency(SaliencyConfig(backend=backend, path=str(tmp_path)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"backend {backend} must have a path of its weights, got none"):
        SaliencyConfig(backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "message"), [
    ("diffusers", r"inpainting: path must be a folder of a diffusers pipeline, found no model_index.json in"),
    ("lama", "inpainting: path must be an ONNX file of LaMa, found none at"),
])
def test_inpainting_says_what_is_missing(tmp_path: Path, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_inpainter(InpainterConfig(backend=backend, path=str(tmp_path)))  # type: ignore[arg-type]


def test_files_of_another_kind_end_in_one_line(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no model")
    for name in ("config.json", "model_index.json"):
        (tmp_path / name).write_text('{"model_type": "no such", "_class_name": "NoSuch"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"saliency: .*junk.onnx must be an ONNX model, got [^\n]+$"):
        open_saliency(SaliencyConfig(backend="rembg", path=str(junk)))
    with pytest.raises(ValueError, match=r"inpainting: .*junk.onnx must be an ONNX model, got [^\n]+$"):
        open_inpainter(InpainterConfig(backend="lama", path=str(junk)))
    with pytest.raises(ValueError, match=r"must be a segmentation model that transformers knows, got [^\n]+$"):
        open_saliency(SaliencyConfig(backend="transformers", path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"must be an inpainting pipeline that diffusers knows, got [^\n]+$"):
        open_inpainter(InpainterConfig(backend="diffusers", path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"model must be one of rembg's, .*u2net.*, got nothing"):
        open_saliency(SaliencyConfig(backend="rembg", path=str(junk), model="nothing"))


def test_pictures_are_not_changed(tmp_path: Path) -> None:
    image, mask = scene()
    before = image.clone(), mask.clone()
    fill(InpainterConfig(), image, mask)
    path = onnx_model(tmp_path / "lama.onnx", sides=("h", "w"), factor=1.0)
    fill(InpainterConfig(backend="lama", path=str(path)), image, mask)
    assert torch.equal(image, before[0])
    assert np.array_equal(mask.numpy(), before[1].numpy())
