"""Text2LayerGenerate: prompt to layers in one node, as KSampler between our loader and Decode Layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.v0_0_2 import io

from .latents import MAX_BATCH
from .schema import check_choice, check_finite, layer_sockets, schema, size_inputs

if TYPE_CHECKING:
    import comfy.model_patcher
    import comfy.sd

    from .host_vae import LayeredVAE

_MAX_SEED = 0xFFFFFFFFFFFFFFFF


class Text2LayerGenerate(io.ComfyNode):
    """Draws a prompt as layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        samplers, schedulers = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
        return schema(
            node_id="Text2LayerGenerate",
            display_name="Generate Layers",
            description="A prompt becomes foreground, background, mask and their composition, from one latent. The "
            "same as Empty Layered Latent, CLIP Text Encode, KSampler and Decode Layers together.",
            search_aliases=["layers", "text to layers", "transparent", "rgba", "alpha"],
            inputs=[
                io.Model.Input("model", tooltip="Of Load Text2Layer Model, with LoRAs if you like."),
                io.Clip.Input("clip", tooltip="Of Load Text2Layer Model."),
                io.Vae.Input("vae", tooltip="Of Load Text2Layer Model."),
                io.String.Input("prompt", default="a fox in the snow", multiline=True, dynamic_prompts=True,
                                tooltip="What to draw: thing, place, size, position; (word:1.2) weighs a word."),
                io.String.Input("negative", default="", multiline=True, tooltip="What to lead away from."),
                io.Int.Input("seed", default=0, min=0, max=_MAX_SEED, control_after_generate=True,
                             tooltip="The same seed and settings give the same picture."),
                io.Int.Input("steps", default=50, min=1, max=1000,
                             tooltip="Denoising steps: more are slower and sharper."),
                io.Float.Input("cfg", default=2.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="Guidance scale: how strongly the prompt leads; 1 turns it off."),
                io.Combo.Input("sampler", options=samplers, default="ddim", tooltip="ddim is the paper's."),
                io.Combo.Input("scheduler", options=schedulers, default="ddim_uniform",
                               tooltip="ddim_uniform is the paper's spacing."),
                *size_inputs(),
                io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH,
                             tooltip=f"Pictures to draw at once, 1 to {MAX_BATCH}."),
            ],
            outputs=layer_sockets(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, vae: LayeredVAE, prompt: str, negative: str,
        seed: int, steps: int, cfg: float, sampler: str, scheduler: str, width: int, height: int, batch_size: int,
    ) -> io.NodeOutput:
        """Samples and decodes."""
        from .decoding import decode
        from .host_unet import empty_latent
        from .host_vae import check_vae

        check_choice("sampler", sampler, comfy.samplers.KSampler.SAMPLERS)
        check_choice("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        check_finite("cfg", cfg)
        vae = check_vae(vae)
        if clip is None:
            raise ValueError("clip must be a text encoder, got none: this model was trained with CLIP-L, load that")
        latent = empty_latent(model, width, height, batch_size)
        if vae.latent_channels != latent["samples"].shape[1]:
            raise ValueError(f"vae must be of the same model as model, got {vae.latent_channels} latent channels "
                             f"where the model has {latent['samples'].shape[1]}")
        positive, unconditional = (_conditioning(clip, text) for text in (prompt, negative))
        latent["samples"] = comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent["samples"], seed), steps, cfg, sampler, scheduler, positive,
            unconditional, latent["samples"], callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        )
        return decode(latent, vae, cls)


def _conditioning(clip: comfy.sd.CLIP, text: str) -> list[Any]:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
