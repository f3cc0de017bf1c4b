"""The latent UNet: Stable Diffusion's, over the one latent that holds all layers (paper, section on CaT2I-AE-SD)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

NORM_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Size of the cross-attention UNet; everything else is Stable Diffusion v1's.

    Attributes:
        in_channels: Channels of the latent, in and out.
        block_out_channels: Width of each level from the finest on, multiples of 32 (GroupNorm), of ``num_heads`` and
            of the first (ComfyUI's UNet counts in it). Each level but the last halves the size.
        layers_per_block: Residual blocks in each level.
        attention_levels: For each level, whether it holds self- and cross-attention. The middle block always does.
        num_heads: Attention heads, the same number in every level.
        cross_attention_dim: Width of the text encoder's output.
    """

    in_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention_levels: tuple[bool, ...]
    num_heads: int
    cross_attention_dim: int

    def __post_init__(self) -> None:
        """Checks every number.

        Raises:
            ValueError: A number is below 1, the levels differ in count, or a width is not divisible.
        """
        for name in ("in_channels", "layers_per_block", "num_heads", "cross_attention_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.block_out_channels:
            raise ValueError("block_out_channels must name at least one level, got ()")
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels must have {len(self.block_out_channels)} entries to match block_out_channels, "
                f"got {len(self.attention_levels)}"
            )
        for channels in self.block_out_channels:
            if channels < 1 or channels % NORM_GROUPS or channels % self.num_heads:
                raise ValueError(
                    f"block_out_channels must be multiples of {NORM_GROUPS} and of num_heads={self.num_heads}, "
                    f"got {channels}"
                )
            if channels % self.block_out_channels[0]:
                raise ValueError(
                    f"block_out_channels must be multiples of the first, got {channels} after "
                    f"{self.block_out_channels[0]}"
                )


UNET_PRESETS: dict[str, UNetConfig] = {
    "sd": UNetConfig(
        in_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_levels=(True, True, True, False),
        num_heads=8,
        cross_attention_dim=768,
    ),
}
"""``sd``: Stable Diffusion v1's UNet (859,520,964 parameters), the paper's."""


def build_unet(config: UNetConfig) -> "UNet2DConditionModel":
    """Builds the UNet with fresh weights.

    It maps latents (N, C, h, w), timesteps and text (N, L, cross_attention_dim) to a prediction (N, C, h, w). Its keys
    are diffusers', so that any tool that reads Stable Diffusion's diffusers folders reads these weights.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention_levels)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention_levels))
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.num_heads,  # diffusers' name for the number of heads in SD v1's configuration
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=NORM_GROUPS,
    )
