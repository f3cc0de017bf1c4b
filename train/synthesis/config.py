"""The config of `train.synthesize`: what changes the samples, and (in `engine`) what only changes how fast."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PILLOW_MEGAPIXELS = 178  # above it Pillow itself refuses a picture
SIDE_OF_SIZES = 512  # lengths in pixels are those of a picture with this shorter side, the paper's
LEAST_CPUS = 2  # of Ray: one plans, the other decodes, cuts and encodes
Device = str


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Captioned pictures.

    Attributes:
        kind: "folder" of pictures; "shards", WebDataset tars as img2dataset writes them (jpg, png or webp; txt; json);
            "layered", a folder or tars of samples that have mask and background already and are only scored.
        path: the folder, or a glob of tars.
        captions: of a folder: a CSV file with captions; None reads a .txt beside each picture.
        path_column: of the CSV: the picture's path, relative to the folder.
        caption_column: of the CSV.
        samples_per_shard: of a folder, which is cut in sorted order; a run goes on after the last finished shard.

    Raises:
        ValueError: a number out of range, or captions where there is no folder.
    """

    kind: Literal["folder", "shards", "layered"]
    path: str
    captions: str | None = None
    path_column: str = "path"
    caption_column: str = "caption"
    samples_per_shard: int = 1000

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _at_least("samples_per_shard", self.samples_per_shard, 1)
        if self.captions is not None and self.kind != "folder":
            raise ValueError(f"captions (a CSV) must go with kind folder, got kind {self.kind}")


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How pictures are decoded.

    Attributes:
        size: pixels of the shorter side after scaling.
        fit: "crop" to a square at the centre (the paper trains on squares), or "keep" the aspect ratio.
        most_megapixels: pictures with more are refused before they are decoded.
        least_side: pixels; pictures whose shorter side has fewer are refused.

    Raises:
        ValueError: a number out of range.
    """

    size: int = 512
    fit: Literal["crop", "keep"] = "crop"
    most_megapixels: float = 64.0
    least_side: int = 64

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _at_least("size", self.size, 16)
        _at_least("least_side", self.least_side, 1)
        if not 0 < self.most_megapixels <= PILLOW_MEGAPIXELS:
            raise ValueError(f"most_megapixels must lie above 0 and be at most {PILLOW_MEGAPIXELS}, "
                             f"Pillow's own limit, got {self.most_megapixels}")


@dataclass(frozen=True, kw_only=True)
class SaliencyConfig:
    """The model that finds the salient object.

    Attributes:
        backend: "grabcut" (OpenCV, no weights); "rembg" (an ONNX model of rembg's, from a file or folder);
            "transformers" (a folder of a semantic segmentation model, MaskFormer or Mask2Former); "wait", a stand-in
            for benchmarks that sleeps and marks the middle of the picture.
        path: of the weights.
        model: rembg's name of the model ("u2net", "isnet-general-use", "birefnet-general", ...).
        size: transformers: pixels a side that the model sees; None asks its image processor.
        labels: transformers, models with several classes: ids of those that count as things; empty takes all but 0,
            which is wrong for models of COCO's or ADE20K's classes (0 is a person or a wall).
        iterations: of GrabCut.
        seconds: that "wait" sleeps an image.
        device: of transformers and rembg.
        dtype: of transformers.

    Raises:
        ValueError: a number out of range, or a backend without its path.
    """

    backend: Literal["grabcut", "rembg", "transformers", "wait"] = "grabcut"
    path: str | None = None
    model: str = "u2net"
    size: int | None = None
    labels: tuple[int, ...] = ()
    iterations: int = 5
    seconds: float = 0.2
    device: Device = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        """Checks the numbers, and that weights have a path."""
        _at_least("iterations", self.iterations, 1)
        _at_least("seconds", self.seconds, 0)
        if self.size is not None:
            _at_least("size", self.size, 16)
        _needs_path(self.backend, self.path, ("rembg", "transformers"))


@dataclass(frozen=True, kw_only=True)
class InpainterConfig:
    """The model that fills the hole.

    Attributes:
        backend: "telea" (OpenCV, no weights); "diffusers" (a folder of any pipeline that AutoPipelineForInpainting
            knows, or of Flux Fill); "lama" (an ONNX file); "wait", a stand-in for benchmarks that sleeps and fills with
            the mean colour.
        path: of the weights.
        radius: pixels that Telea's method looks at around each pixel.
        steps: of the diffusion sampler.
        guidance_scale: of the diffusion sampler; with an empty prompt 1 is enough and takes half the time; Flux Fill,
            which has learnt it as an input, is made for 30.
        seed: of the noise; a sample's noise depends on it and the sample alone.
        size: diffusers: pixels of the crop's longer side when the model sees it; None leaves its size.
        seconds: that "wait" sleeps an image.
        device: of diffusers and lama.
        dtype: of diffusers.

    Raises:
        ValueError: a number out of range, or a backend without its path.
    """

    backend: Literal["telea", "diffusers", "lama", "wait"] = "telea"
    path: str | None = None
    radius: float = 5.0
    steps: int = 30
    guidance_scale: float = 1.0
    seed: int = 0
    size: int | None = None
    seconds: float = 0.2
    device: Device = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        """Checks the numbers, and that weights have a path."""
        _at_least("steps", self.steps, 1)
        _at_least("seed", self.seed, 0)
        _at_least("seconds", self.seconds, 0)
        _at_least("guidance_scale", self.guidance_scale, 0)
        if not 0 < self.radius <= 100:
            raise ValueError(f"radius must lie above 0 and be at most 100 pixels, got {self.radius}")
        if self.size is not None:
            _at_least("size", self.size, 16)
        _needs_path(self.backend, self.path, ("diffusers", "lama"))


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """How layers are cut; lengths in pixels of a picture of 512, scaled with the picture.

    Attributes:
        foreground: "copied", F = I where m > 0.1 as in the paper; "estimated" adds the true foreground colour as
            foreground.png, so that no halo of the old background shows.
        dilate: how far the hole reaches beyond the mask; a hole that leaves less than 1 % of the picture drops it.
        feather: width of the seam inside the hole; at most half of `dilate`.
        context: what the inpainter sees around the hole.
        jpeg_rim: widens the hole so that no block of the source's JPEG (16 pixels of its own) lies across its edge.
        shadow_reach: within it, what is darker than the ground but of its hue joins the hole; 0 leaves shadows.

    Raises:
        ValueError: a number out of range.
    """

    foreground: Literal["copied", "estimated"] = "copied"
    dilate: float = 16.0
    feather: float = 8.0
    context: int = 64
    jpeg_rim: bool = False
    shadow_reach: float = 0.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _at_least("dilate", self.dilate, 0)
        if not 0 <= self.feather <= self.dilate / 2:
            raise ValueError(f"feather must lie between 0 and half of dilate ({self.dilate / 2:g}), got {self.feather}")
        _at_least("context", self.context, 0)
        _at_least("shadow_reach", self.shadow_reach, 0)


@dataclass(frozen=True, kw_only=True)
class FiltersConfig:
    """What is kept.

    Attributes:
        mask: safetensors file of the mask classifier (paper, data step 4); None keeps every mask.
        inpainting: file of the inpainting classifier; None keeps every background.
        mask_threshold: the least score; None is the file's own threshold.
        inpainting_threshold: the least score; None is the file's own threshold.
        least_area: mean of the mask below which the object is too small.
        most_area: mean of the mask above which it covers everything.
        clip: folder of a CLIP model (transformers) for the score of picture and caption; not a filter.
        device: of classifiers and CLIP.

    Raises:
        ValueError: a number out of range.
    """

    mask: str | None = None
    inpainting: str | None = None
    mask_threshold: float | None = None
    inpainting_threshold: float | None = None
    least_area: float = 0.01
    most_area: float = 0.9
    clip: str | None = None
    device: Device = "cpu"

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name in ("mask_threshold", "inpainting_threshold", "least_area", "most_area"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if self.least_area > self.most_area:
            raise ValueError(f"least_area must be at most most_area ({self.most_area}), got {self.least_area}")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Workers of one model, each with a copy of it.

    Attributes:
        workers: how many.
        batch_size: pictures that a worker takes at a time; those of one size go through models of transformers and
            diffusers, classifiers and CLIP as one batch (with fit "crop" all pictures are of one size; the windows
            that an inpainter sees are not). ONNX models and OpenCV take one after the other.
        num_gpus: of each worker; 0.5 puts two on a GPU.
        num_cpus: that each worker holds; 0 leaves all to the decoders, right for a model on a GPU.

    Raises:
        ValueError: a number out of range.
    """

    workers: int = 1
    batch_size: int = 4
    num_gpus: float = 0.0
    num_cpus: float = 0.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _at_least("workers", self.workers, 1)
        _at_least("batch_size", self.batch_size, 1)
        _at_least("num_gpus", self.num_gpus, 0)
        _at_least("num_cpus", self.num_cpus, 0)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where it runs; nothing here changes a sample.

    Attributes:
        address: of a Ray cluster that this machine has joined ("auto", "host:6379") and whose machines all have input,
            output and weights at the same paths; None starts Ray on this machine for this run. Not "ray://": Ray Data
            does not run through Ray Client.
        num_cpus: of the local Ray, at least 2; None takes all cores.
        object_store_mb: memory of the local Ray for samples between stages.
        saliency: its workers.
        inpainting: its workers.
        compress_level: of PNG, 0 to 9.

    Raises:
        ValueError: a number out of range, or an address of Ray Client.
    """

    address: str | None = None
    num_cpus: int | None = None
    object_store_mb: int = 512
    saliency: PoolConfig = field(default_factory=PoolConfig)
    inpainting: PoolConfig = field(default_factory=PoolConfig)
    compress_level: int = 4

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.address is not None and self.address.startswith("ray://"):
            raise ValueError("address must be auto or HOST:PORT of a cluster that this machine has joined (ray start "
                             f"--address=HOST:PORT), Ray Client does not run Ray Data, got {self.address}")
        _at_least("object_store_mb", self.object_store_mb, 80)
        if self.num_cpus is not None:
            _at_least("num_cpus", self.num_cpus, LEAST_CPUS)
        if not 0 <= self.compress_level <= 9:
            raise ValueError(f"compress_level must lie between 0 and 9, got {self.compress_level}")


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """The whole config file.

    Attributes:
        output: folder of shards, manifest.json and report.html.
        input: captioned pictures.
        picture: how they are decoded.
        saliency: the model of the mask.
        inpainting: the model of the background.
        layers: how layers are cut.
        filters: what is kept.
        engine: where it runs.
        sheet: pictures that the report shows of each reason, and of what is kept.
    """

    output: str
    input: InputConfig
    picture: PictureConfig = field(default_factory=PictureConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    inpainting: InpainterConfig = field(default_factory=InpainterConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sheet: int = 16

    def __post_init__(self) -> None:
        """Checks the numbers."""
        _at_least("sheet", self.sheet, 0)

    def fixed(self) -> dict[str, Any]:
        """What makes the samples what they are, as JSON has it: all but the output folder and the engine."""
        return _plain({key: value for key, value in asdict(self).items() if key not in ("output", "engine")})


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ValueError(f"{name} must be at least {least} and finite, got {value}")


def _needs_path(backend: str, path: str | None, backends: tuple[str, ...]) -> None:
    if backend in backends and not path:
        raise ValueError(f"backend {backend} must have a path of its weights, got none")
