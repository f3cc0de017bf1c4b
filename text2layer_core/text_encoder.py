"""Text conditioning: CLIP's text encoder at any size and its tokenizer (paper, section on CaT2I-AE-SD)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Self

    from tokenizers import Tokenizer

START_TOKEN = "<|startoftext|>"  # noqa: S105
END_TOKEN = "<|endoftext|>"  # noqa: S105
WORD_END = "</w>"
MIN_VOCABULARY = 2 * 256 + 2
"""Every byte, inside a word and at its end, and the two marks: the least that can spell any prompt."""
WORD_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Size of the text encoder; everything else is CLIP's (quick GELU, causal attention, final layer norm).

    Attributes:
        vocab_size: Rows of the token embedding, at least the tokenizer's vocabulary.
        hidden_size: Width of the output, a multiple of ``num_heads``.
        intermediate_size: Width inside each layer's MLP.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        max_length: Tokens that every prompt is cut or padded to, start and end included.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_length: int = 77

    def __post_init__(self) -> None:
        """Checks every number.

        Raises:
            ValueError: A number is below its least value, or the width not divisible by the heads.
        """
        least = {"vocab_size": MIN_VOCABULARY, "max_length": 2}
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "max_length"):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(f"{name} must be at least {least.get(name, 1)}, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads={self.num_heads}, got {self.hidden_size}")


def clip_text_config(config: TextEncoderConfig, *, start_id: int, end_id: int) -> dict[str, Any]:
    """Gives the configuration as transformers' ``CLIPTextConfig`` and ComfyUI's ``SDClipModel`` write it in JSON."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "projection_dim": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "bos_token_id": start_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
    }


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-pair tokenizer in CLIP's form (Radford et al. 2021, section 2.4).

    Lower-cased; words split as CLIP splits them; byte-level, with ``</w>`` at a word's end. The vocabulary is ordered
    as CLIP's: 256 bytes, 256 bytes at a word's end, the merges, then the start and the end mark. So any text can be
    spelled, whatever the captions held, and no prompt meets an unknown token.

    Args:
        captions: The training captions.
        vocab_size: The size asked for, at least 514. Captions with too few different words give a smaller vocabulary.

    Returns:
        The tokenizer. It adds the two marks itself, and decodes back to the lower-cased text with single spaces
        between words.

    Raises:
        ValueError: ``vocab_size`` is below 514.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCABULARY:
        raise ValueError(f"vocab_size must be at least {MIN_VOCABULARY}, got {vocab_size}")
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    _set_clip_splitting(learner)
    alphabet = _byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=WORD_END,
        show_progress=False,
        special_tokens=[],
    )
    learner.train_from_iterator(captions, trainer)
    learnt = _merges(learner)
    merges = list(islice(learnt, vocab_size - MIN_VOCABULARY))
    words = [*alphabet, *(letter + WORD_END for letter in alphabet), *(left + right for left, right in merges)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, START_TOKEN, END_TOKEN]))}
    return _clip_tokenizer(vocabulary, merges)


class TextEncoder(nn.Module):
    """CLIP's text encoder with its tokenizer: prompts to (N, max_length, hidden_size).

    The output is the last layer's after the final norm. Attention is causal and masks nothing else: the end tokens that
    pad a prompt are read like any other, as Stable Diffusion and ComfyUI do it. The weights' keys are those of a CLIP
    text encoder's file, ``text_model.embeddings...`` (transformers' ``CLIPTextModel``).

    Attributes:
        config: The size.
        tokenizer: The tokenizer.
        tokenizer_json: The same as JSON, for the checkpoint.
        start_id: The token that starts every prompt.
        end_id: The token that ends and pads it.
    """

    def __init__(self, config: TextEncoderConfig, tokenizer_json: str) -> None:
        """Builds the encoder with fresh weights.

        Args:
            config: The size.
            tokenizer_json: A tokenizer in CLIP's form, as ``Tokenizer.to_str`` writes it.

        Raises:
            ValueError: The JSON is no tokenizer, has no start or end token, or has more tokens than ``vocab_size``.
        """
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        self.config = config
        self.set_tokenizer(tokenizer_json)
        model = CLIPTextModel(CLIPTextConfig(**clip_text_config(config, start_id=self.start_id, end_id=self.end_id)))
        # Newer transformers flattened CLIPTextModel; the keys stay those of the files.
        self.text_model: nn.Module = getattr(model, "text_model", model)

    def set_tokenizer(self, tokenizer_json: str) -> None:
        """Takes a tokenizer over; the weights, which belong to it, are loaded apart.

        Raises:
            ValueError: The JSON is no tokenizer, has no start or end token, or has more tokens than ``vocab_size``.
        """
        tokenizer = load_tokenizer(tokenizer_json)
        self.start_id = _token_id(tokenizer, START_TOKEN)
        self.end_id = _token_id(tokenizer, END_TOKEN)
        size = tokenizer.get_vocab_size()
        if size > self.config.vocab_size:
            raise ValueError(f"the tokenizer must have at most vocab_size={self.config.vocab_size} tokens, got {size}")
        self.tokenizer, self.tokenizer_json = tokenizer, tokenizer_json

    @classmethod
    def from_clip(cls, folder: str | Path) -> Self:
        """Loads CLIP's own weights, frozen, as the paper uses them (CLIP ViT-L/14).

        Args:
            folder: A transformers folder that holds model and tokenizer, or a diffusers folder with ``text_encoder``
                and ``tokenizer`` in it. Nothing is downloaded.

        Returns:
            The encoder in evaluation mode, with no parameter that trains.

        Raises:
            ValueError: The folder holds no CLIP text model, or one whose activation is not CLIP's quick GELU.
        """
        from safetensors import SafetensorError
        from transformers import CLIPTextModel, CLIPTokenizer

        from .checkpoint import one_line

        root = Path(folder)
        model_folder = root / "text_encoder" if (root / "text_encoder").is_dir() else root
        tokenizer_folder = root / "tokenizer" if (root / "tokenizer").is_dir() else root
        if not (model_folder / "config.json").is_file():
            raise ValueError(f"folder must hold a CLIP text model with its config.json, got {root}")
        try:
            source = CLIPTextModel.from_pretrained(model_folder, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"folder must hold a CLIP text model with its tokenizer, got {root}: "
                             f"{one_line(error)}") from error
        clip = source.config
        if clip.hidden_act != "quick_gelu":
            raise ValueError(f"the text model's hidden_act must be quick_gelu, got {clip.hidden_act}")
        config = TextEncoderConfig(
            vocab_size=clip.vocab_size,
            hidden_size=clip.hidden_size,
            intermediate_size=clip.intermediate_size,
            num_layers=clip.num_hidden_layers,
            num_heads=clip.num_attention_heads,
            max_length=clip.max_position_embeddings,
        )
        encoder = cls(config, tokenizer.backend_tokenizer.to_str())
        encoder.text_model.load_state_dict(getattr(source, "text_model", source).state_dict())
        return encoder.requires_grad_(False).eval()

    def tokenize(self, prompts: str | Sequence[str]) -> Tensor:
        """Turns prompts into tokens: start, the prompt, end, padded with end tokens.

        A prompt that is too long is cut; ``truncated`` names what was lost.

        Args:
            prompts: One prompt or several; the empty string is the unconditional prompt.

        Returns:
            (N, max_length) int64 on the CPU.

        Raises:
            ValueError: There is no prompt, or something that is not a string.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise ValueError("prompts must hold at least one prompt, got none")
        for text in texts:
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"prompts must be strings, got {type(text).__name__}")
        length = self.config.max_length
        rows = [self.tokenizer.encode(text, add_special_tokens=False).ids[: length - 2] for text in texts]
        padded = [[self.start_id, *row, *[self.end_id] * (length - 1 - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.long)

    def truncated(self, prompt: str) -> str:
        """Gives the end of the prompt that ``tokenize`` cuts off, as it was written; empty if all of it fits."""
        kept = self.config.max_length - 2
        offsets = self.tokenizer.encode(prompt, add_special_tokens=False).offsets
        return prompt[offsets[kept][0] :].strip() if len(offsets) > kept else ""

    def forward(self, ids: Tensor) -> Tensor:
        """Encodes tokens.

        Args:
            ids: (N, max_length) int64, on the encoder's device.

        Returns:
            (N, max_length, hidden_size).

        Raises:
            ValueError: Shape or dtype is wrong.
        """
        if ids.dtype != torch.long or ids.ndim != 2 or ids.shape[1] != self.config.max_length:
            raise ValueError(
                f"ids must be int64 of shape (N, {self.config.max_length}), got {ids.dtype} {tuple(ids.shape)}"
            )
        return self.text_model(input_ids=ids).last_hidden_state

    def encode(self, prompts: str | Sequence[str]) -> Tensor:
        """Encodes prompts: ``tokenize`` and ``forward``; (N, max_length, hidden_size) on the encoder's device."""
        return self(self.tokenize(prompts).to(next(self.parameters()).device))


def _byte_alphabet() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with, in CLIP's order: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The learnt merges, most frequent first. Newer tokenizers write pairs, older ones a string with a space."""
    merges: list[str | list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in pairs]


def _set_clip_splitting(tokenizer: Tokenizer) -> None:
    """Sets CLIP's lower-casing and word splitting."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _clip_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Builds CLIP's tokenizer from its vocabulary and merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END, unk_token=END_TOKEN))
    _set_clip_splitting(tokenizer)
    tokenizer.add_special_tokens(
        [AddedToken(mark, normalized=False, special=True) for mark in (START_TOKEN, END_TOKEN)]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (END_TOKEN, vocabulary[END_TOKEN]), (START_TOKEN, vocabulary[START_TOKEN]), False, False
    )
    space = "\u0120"  # how byte-level BPE writes a space
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_END, space), decoders.ByteLevel(), decoders.Replace(Regex(" $"), "")]
    )
    return tokenizer


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Reads the JSON; a stored padding or truncation is dropped, since ``TextEncoder.tokenize`` does both."""
    from tokenizers import Tokenizer

    try:
        tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"tokenizer_json must be a tokenizer's JSON, got {tokenizer_json[:40]!r}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    index: int | None = tokenizer.token_to_id(token)
    if index is None:
        raise ValueError(f"the tokenizer must hold the token {token}, got a vocabulary without it")
    return index
