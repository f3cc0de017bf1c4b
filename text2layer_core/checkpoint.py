"""One-file checkpoints in safetensors (the paper fixes no format and publishes no weights: this layout is a choice)."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .atomic import write_tensors
from .autoencoder import AutoencoderConfig, CaT2IAutoencoder
from .schedule import ScheduleConfig
from .text_encoder import TextEncoder, TextEncoderConfig
from .unet import UNetConfig, build_unet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

FORMAT_VERSION = "1"
BUNDLED_MODEL = "text2layer-mini.safetensors"
CLIP_L = "openai/clip-vit-large-patch14"
METADATA_KEYS = ("text2layer.format", "text2layer.config", "text2layer.tokenizer", "text2layer.card")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that names the file and the reason."""


@dataclass
class Text2LayerModel:
    """All parts of a two-layer text-to-image model.

    Attributes:
        autoencoder: CaT2I-AE.
        unet: the latent UNet; None in the export of an autoencoder's training.
        text_encoder: None in the export of an autoencoder's training, and while an external encoder is not loaded.
        schedule: noise schedule and latent scale.
        card: the training card: data, steps, seed, metrics, "resolution", ...; anything that JSON can hold.
        external_text_encoder: name of a frozen CLIP encoder that the file leaves out ("openai/clip-vit-large-patch14"),
            None if the text encoder belongs to the model.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    autoencoder: CaT2IAutoencoder
    unet: UNet2DConditionModel | None
    text_encoder: TextEncoder | None
    schedule: ScheduleConfig
    card: dict[str, Any] = field(default_factory=dict[str, Any])
    external_text_encoder: str | None = None

    @property
    def guidance_scale(self) -> float:
        """The one in the card, chosen for this model; without one the paper's 7.5."""
        return float(self.card.get("guidance_scale", 7.5))

    def __post_init__(self) -> None:
        if self.unet is None:
            return
        config = unet_config(self.unet)
        channels = self.autoencoder.config.latent_channels
        if config.in_channels != channels:
            raise ValueError(
                f"unet in_channels must be the autoencoder's latent_channels {channels}, got {config.in_channels}"
            )
        if self.text_encoder is not None and self.text_encoder.config.hidden_size != config.cross_attention_dim:
            raise ValueError(
                f"unet cross_attention_dim must be the text encoder's hidden_size "
                f"{self.text_encoder.config.hidden_size}, got {config.cross_attention_dim}"
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """What a checkpoint says about itself in its metadata.

    Attributes:
        autoencoder: shape of CaT2I-AE.
        unet: shape of the UNet, None where the file has none.
        text_encoder: shape of the text encoder that the file holds, None where it holds none.
        schedule: noise schedule and latent scale.
        tokenizer_json: the text encoder's tokenizer, empty where the file holds none.
        external_text_encoder: see `Text2LayerModel`.
        card: see `Text2LayerModel`.
    """

    autoencoder: AutoencoderConfig
    unet: UNetConfig | None
    text_encoder: TextEncoderConfig | None
    schedule: ScheduleConfig
    tokenizer_json: str
    external_text_encoder: str | None
    card: dict[str, Any]

    @property
    def stride(self) -> int:
        """Pixels that width and height of a picture are padded to a multiple of."""
        levels = 1 if self.unet is None else len(self.unet.block_out_channels)
        return self.autoencoder.downscale * 2 ** (levels - 1)


class _Config(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_T = TypeVar("_T", bound=_Config)


def unet_config(unet: UNet2DConditionModel) -> UNetConfig:
    """The `UNetConfig` of a diffusers UNet (SD v1's family; diffusers calls its number of heads `attention_head_dim`).

    Raises:
        ValueError: if the heads differ between levels, which `UNetConfig` cannot say.
    """
    config = unet.config
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    per_level = set(heads) if isinstance(heads, list | tuple) else {heads}
    if len(per_level) != 1:
        raise ValueError(f"unet must have the same number of heads at every level, got {heads}")
    return UNetConfig(
        in_channels=config["in_channels"],
        block_out_channels=tuple(config["block_out_channels"]),
        layers_per_block=config["layers_per_block"],
        attention_levels=tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"]),
        num_heads=per_level.pop(),
        cross_attention_dim=config["cross_attention_dim"],
    )


def bundled_model_path() -> Path:
    """Where the bundled model is: `text2layer_core/models/` in an installed wheel, `models/` in a checkout.

    Raises:
        CheckpointError: if it is in neither place.
    """
    package = Path(__file__).resolve().parent
    candidates = [folder / "models" / BUNDLED_MODEL for folder in (package, package.parent)]
    for path in candidates:
        if path.is_file():
            return path
    raise CheckpointError(f"no bundled model: looked for {' and '.join(map(str, candidates))}")


def save_checkpoint(path: str | Path, model: Text2LayerModel, dtype: torch.dtype = torch.float16) -> None:
    """Writes the model as one safetensors file, to a temporary name first, so that no reader ever sees half a file.

    Args:
        path: the file; its folder is made if it is not there.
        model: parts on any device, any floating dtype.
        dtype: floating dtype on disk of tensors with two or more dimensions. One-dimensional ones (biases, norms and
            BatchNorm's running statistics) are written in float32, integers as they are.

    Raises:
        ValueError: if a value is not finite in the dtype on disk, or the card cannot be written as JSON.
        OSError: if the file cannot be written; a file that was there before stays as it was.
    """
    tensors = {key: _on_disk(key, tensor, dtype) for key, tensor in _state(model)}
    write_tensors(path, tensors, _metadata(model))


def load_checkpoint(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Text2LayerModel:
    """Reads a file of `save_checkpoint`, every part in eval mode.

    Args:
        path: the file.
        device: where the parts go.
        dtype: floating dtype of all parameters and floating buffers.

    Raises:
        CheckpointError: if there is no such file, or it is truncated, pickled, foreign, of an unknown format version,
            or if keys are missing, unexpected or wrongly shaped (all of them are named).
    """
    path = Path(path)
    check_is_safetensors(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            model = _build_model(path, _parse_header(path, handle.metadata() or {}))
            found = {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
            check_keys(str(path), {key: tuple(tensor.shape) for key, tensor in _state(model)}, found)
            for prefix, part in _parts(model):
                keys = [key for key in found if key.startswith(prefix)]
                tensors = {key.removeprefix(prefix): _cast(handle.get_tensor(key), device, dtype) for key in keys}
                part.load_state_dict(tensors, strict=True, assign=True)
                nn.Module.to(part, device=device, dtype=dtype).eval()  # diffusers' own `to` warns at every dtype
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error
    return model


def read_header(path: str | Path) -> CheckpointHeader:
    """What a checkpoint says about itself, without its tensors.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    path = Path(path)
    check_is_safetensors(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            metadata: Mapping[str, str] = handle.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error
    return _parse_header(path, metadata)


def check_keys(source: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes of tensors by name.

    Raises:
        CheckpointError: naming every missing, every unexpected and every wrongly shaped tensor of `source`.
    """
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    shapes = [
        f"{key} {found[key]} instead of {expected[key]}"
        for key in sorted(set(expected) & set(found))
        if expected[key] != found[key]
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
    problems = [f"{kind} ({len(keys)}): {', '.join(keys)}" for kind, keys in kinds if keys]
    if problems:
        raise CheckpointError(f"{source} does not fit its config; {'; '.join(problems)}")


def _parts(model: Text2LayerModel) -> Iterator[tuple[str, nn.Module]]:
    yield "autoencoder.", model.autoencoder
    if model.unet is not None:
        yield "unet.", model.unet
    if model.text_encoder is not None and model.external_text_encoder is None:
        yield "text_encoder.", model.text_encoder


def _state(model: Text2LayerModel) -> Iterator[tuple[str, Tensor]]:
    for prefix, part in _parts(model):
        for key, tensor in part.state_dict().items():
            yield prefix + key, tensor


def _on_disk(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    target = dtype if tensor.ndim > 1 else torch.float32
    saved = tensor.detach().to("cpu", target if tensor.is_floating_point() else tensor.dtype).contiguous()
    if not torch.isfinite(saved).all():
        raise ValueError(f"every value must be finite in {saved.dtype} on disk, got others in {key}")
    shared = saved.untyped_storage().nbytes() != saved.nbytes or saved.data_ptr() == tensor.data_ptr()
    return saved.clone() if shared else saved


def _metadata(model: Text2LayerModel) -> dict[str, str]:
    text_encoder: dict[str, Any] | None = None
    if model.external_text_encoder is not None:
        text_encoder = {"clip": model.external_text_encoder}
    elif model.text_encoder is not None:
        text_encoder = asdict(model.text_encoder.config)
    config = {
        "autoencoder": asdict(model.autoencoder.config),
        "unet": None if model.unet is None else asdict(unet_config(model.unet)),
        "text_encoder": text_encoder,
        "schedule": asdict(model.schedule),
    }
    owns_tokenizer = model.text_encoder is not None and model.external_text_encoder is None
    try:
        card = json.dumps(model.card, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"card must hold only what JSON can: {error}") from error
    values = (
        FORMAT_VERSION,
        json.dumps(config, sort_keys=True),
        model.text_encoder.tokenizer_json if owns_tokenizer and model.text_encoder else "",
        card,
    )
    return dict(zip(METADATA_KEYS, values, strict=True))


def check_is_safetensors(path: Path) -> None:
    """Look at the first bytes of a file.

    Raises:
        CheckpointError: if there is no such file, or it is a folder, empty, pickled or anything but safetensors.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"a model must be a .safetensors file, {path} is a folder")
        if not path.exists():
            raise CheckpointError(f"no such model: {path}")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"{path} is empty")
    if start[8:] == b"{":
        return
    if start.startswith(_PICKLE_STARTS):
        raise CheckpointError(f"{path} is a pickled file: only safetensors files are read, pickle can run code")
    if len(start) < 9:
        raise CheckpointError(f"{path} is truncated: it has {len(start)} bytes")
    raise CheckpointError(f"{path} is not a safetensors file")


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("text2layer.format")
    if version is None:
        raise CheckpointError(f"{path} is not a Text2Layer model: its metadata has no text2layer.format")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version!r}, this version reads {FORMAT_VERSION!r}")


def _parse_header(path: Path, metadata: Mapping[str, str]) -> CheckpointHeader:
    _check_version(path, metadata)
    config = _json(path, metadata, "text2layer.config")
    card = _json(path, metadata, "text2layer.card")
    try:
        text: dict[str, Any] | None = config["text_encoder"]
        external = text.get("clip") if text else None
        owns_text = text is not None and external is None
        return CheckpointHeader(
            autoencoder=parse_config(AutoencoderConfig, config["autoencoder"]),
            unet=None if config["unet"] is None else parse_config(UNetConfig, config["unet"]),
            text_encoder=parse_config(TextEncoderConfig, text) if text is not None and owns_text else None,
            schedule=parse_config(ScheduleConfig, config["schedule"]),
            tokenizer_json=metadata["text2layer.tokenizer"] if owns_text else "",
            external_text_encoder=external,
            card=card,
        )
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error} in its metadata") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged config: {one_line(error)}") from error


def _build_model(path: Path, header: CheckpointHeader) -> Text2LayerModel:
    """The model with the tensors of the large parts on the meta device: its shapes cost no memory."""
    try:
        text = header.text_encoder
        text_encoder = None if text is None else TextEncoder(text, header.tokenizer_json)
        with torch.device("meta"):
            autoencoder = CaT2IAutoencoder(header.autoencoder)
            unet = None if header.unet is None else build_unet(header.unet)
        external = header.external_text_encoder
        return Text2LayerModel(autoencoder, unet, text_encoder, header.schedule, header.card, external)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a damaged config: {one_line(error)}") from error


def _json(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    if key not in metadata:
        raise CheckpointError(f"{path} has no {key!r} in its metadata")
    try:
        value = json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} has a damaged {key}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} has a damaged {key}: not a JSON object")
    return value


def parse_config(kind: type[_T], values: dict[str, Any]) -> _T:
    """A config from its JSON: lists become tuples, fields that the file leaves out take their defaults.

    Raises:
        ValueError: if a field is unknown, or one without default is missing.
    """
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(values) - set(known))
    missing = sorted(
        name
        for name, item in known.items()
        if name not in values and item.default is MISSING and item.default_factory is MISSING
    )
    if unknown or missing:
        raise ValueError(f"{kind.__name__} has no fields {unknown} and needs {missing}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _cast(tensor: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


def one_line(error: BaseException) -> str:
    """The message of another library's error, without its line breaks."""
    return " ".join(str(error).split())
