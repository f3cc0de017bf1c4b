"""Expected values: transformers' CLIPTokenizer and CLIPTextModel on the same vocabulary and weights."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from text2layer_core.text_encoder import TextEncoder, TextEncoderConfig, clip_text_config, train_tokenizer

CAPTIONS = ["A red Fox in the snow", "a fox's den on the beach", "12 red balls at the beach", "snow, red snow!"] * 3
CONFIG = TextEncoderConfig(
    vocab_size=600, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, max_length=12
)
PROMPTS = ["a red fox", "A RED   fox\n in the Snow!", "", "zebras & 3 cafés, 漢字", "it's they'll", "\t"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS, 600)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(CONFIG, tokenizer.to_str()).eval()


def clip_tokenizer(tokenizer: Tokenizer) -> CLIPTokenizer:
    """The tokenizer of transformers, from nothing but the vocabulary and the merges."""
    model = json.loads(tokenizer.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def test_the_vocabulary_is_ordered_as_clips(tokenizer: Tokenizer) -> None:
    # In CLIP's vocab.json: "!" is 0, "</w>" forms start at 256, merges at 512, and the two marks come last.
    vocabulary = tokenizer.get_vocab()
    size = len(vocabulary)
    assert sorted(vocabulary.values()) == list(range(size))
    assert 514 < size <= 600
    assert (vocabulary["!"], vocabulary["a"], vocabulary["!</w>"], vocabulary["a</w>"]) == (0, 64, 256, 320)
    assert vocabulary["red</w>"] >= 512
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (size - 2, size - 1)


@pytest.mark.parametrize("size", [514, 520])
def test_the_vocabulary_stops_at_the_size_asked_for(size: int) -> None:
    assert train_tokenizer(CAPTIONS, size).get_vocab_size() == size


def test_training_is_repeatable() -> None:
    assert train_tokenizer(CAPTIONS, 560).to_str() == train_tokenizer(iter(CAPTIONS), 560).to_str()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_equal_transformers(tokenizer: Tokenizer, prompt: str) -> None:
    assert tokenizer.encode(prompt).ids == clip_tokenizer(tokenizer)(prompt)["input_ids"]


def test_words_seen_often_are_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Red SNOW").tokens == ["<|startoftext|>", "red</w>", "snow</w>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("prompt", "decoded"),
    [
        ("A red Fox", "a red fox"),
        ("zebras over  9 Cafés, 漢字!", "zebras over 9 cafés , 漢字 !"),
        ("x" * 40, "x" * 40),
        ("", ""),
    ],
)
def test_decoding_gives_the_lower_cased_text(tokenizer: Tokenizer, prompt: str, decoded: str) -> None:
    assert tokenizer.decode(tokenizer.encode(prompt).ids) == decoded


def test_any_text_is_spelled_without_the_end_mark(tokenizer: Tokenizer) -> None:
    # The end mark is also the unknown token; met inside a prompt it would end it.
    every_byte = "".join(chr(code) for code in range(1, 0x250)) + "漢字 🦊"
    assert tokenizer.token_to_id("<|endoftext|>") not in tokenizer.encode(every_byte, add_special_tokens=False).ids


def test_a_vocabulary_too_small_to_spell_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^vocab_size must be at least 514, got 513$"):
        train_tokenizer(CAPTIONS, 513)


def test_prompts_are_started_ended_and_padded_with_the_end(encoder: TextEncoder) -> None:
    start, end = encoder.start_id, encoder.end_id
    words = encoder.tokenizer.encode("red snow", add_special_tokens=False).ids
    ids = encoder.tokenize(["red snow", ""])
    assert ids.tolist() == [[start, *words, *[end] * 9], [start, *[end] * 11]]
    assert ids.dtype == torch.int64


def test_one_prompt_is_a_batch_of_one(encoder: TextEncoder) -> None:
    assert torch.equal(encoder.tokenize("red snow"), encoder.tokenize(["red snow"]))


def test_padded_tokens_equal_transformers(encoder: TextEncoder) -> None:
    prompts = [*PROMPTS, "snow " * 30]
    reference = clip_tokenizer(encoder.tokenizer)(
        prompts, padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    assert torch.equal(encoder.tokenize(prompts), reference["input_ids"])


def test_what_is_cut_is_named_as_it_was_written(encoder: TextEncoder) -> None:
    # Ten tokens fit between start and end.
    fits = "red " * 9 + "snow"
    assert encoder.truncated(fits) == ""
    assert encoder.truncated(fits + "  At the  BEACH, café ") == "At the  BEACH, café"
    assert torch.equal(encoder.tokenize(fits), encoder.tokenize(fits + " at the beach"))


def test_a_cut_inside_a_word_names_its_end(encoder: TextEncoder) -> None:
    # Letters that were never seen together are a token each.
    assert encoder.truncated("qzqzqzqzqzqzq") == "qzq"


def test_output_equals_transformers(encoder: TextEncoder) -> None:
    reference = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=12,
            hidden_act="quick_gelu",
            bos_token_id=encoder.start_id,
            eos_token_id=encoder.end_id,
        )
    ).eval()
    weights = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    getattr(reference, "text_model", reference).load_state_dict(weights)
    with torch.no_grad():
        output = encoder.encode(PROMPTS)
        expected = reference(encoder.tokenize(PROMPTS)).last_hidden_state
    assert output.shape == (len(PROMPTS), 12, 32)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_output_equals_clips_equations(encoder: TextEncoder) -> None:
    # Written out from CLIP's model: pre-norm blocks, causal softmax attention, quick GELU, final layer norm.
    weights = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    ids = encoder.tokenize(PROMPTS)
    x = weights["embeddings.token_embedding.weight"][ids] + weights["embeddings.position_embedding.weight"]
    causal = torch.full((12, 12), -torch.inf).triu(1)
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        y = norm(f"{layer}.layer_norm1", x)
        q, k, v = (linear(f"{layer}.self_attn.{n}_proj", y).unflatten(-1, (4, 8)).transpose(1, 2) for n in "qkv")
        attended = ((q @ k.mT) / 8**0.5 + causal).softmax(-1) @ v
        x = x + linear(f"{layer}.self_attn.out_proj", attended.transpose(1, 2).flatten(2))
        y = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))
        x = x + linear(f"{layer}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids), norm("final_layer_norm", x), rtol=1e-4, atol=1e-5)


def test_a_token_sees_only_what_comes_before_it(encoder: TextEncoder) -> None:
    ids = encoder.tokenize("red red red red")
    changed = ids.clone()
    changed[0, 3] = encoder.tokenizer.token_to_id("snow</w>")
    with torch.no_grad():
        before, after = encoder(ids)[0], encoder(changed)[0]
    torch.testing.assert_close(before[:3], after[:3], rtol=0, atol=1e-6)
    assert all(not torch.allclose(before[k], after[k], atol=1e-4) for k in range(3, 12))


def test_a_prompt_does_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    with torch.no_grad():
        together = encoder.encode(["a fox", "red snow at the beach"])
        torch.testing.assert_close(together[1:], encoder.encode("red snow at the beach"), rtol=0, atol=1e-6)


def test_keys_are_those_of_clips_files(encoder: TextEncoder) -> None:
    keys = encoder.state_dict().keys()
    assert {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.encoder.layers.1.mlp.fc2.bias",
        "text_model.final_layer_norm.weight",
    } < keys
    assert len(keys) == 2 + 2 * 16 + 2


def test_a_checkpoints_parts_rebuild_it(encoder: TextEncoder) -> None:
    again = TextEncoder(encoder.config, encoder.tokenizer_json)
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again.encode(PROMPTS), encoder.encode(PROMPTS))


def test_it_trains_copies_and_keeps_its_dtype(encoder: TextEncoder) -> None:
    copied = copy.deepcopy(encoder).to(torch.bfloat16)
    output = copied.encode("a fox")
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_it_builds_without_memory(tokenizer: Tokenizer) -> None:
    with torch.device("meta"):
        encoder = TextEncoder(CONFIG, tokenizer.to_str())
    assert all(parameter.is_meta for parameter in encoder.parameters())


def test_a_stored_padding_is_ignored(tokenizer: Tokenizer) -> None:
    padded = Tokenizer.from_str(tokenizer.to_str())
    padded.enable_padding(length=20)
    padded.enable_truncation(3)
    plain, other = (TextEncoder(CONFIG, source.to_str()) for source in (tokenizer, padded))
    assert torch.equal(plain.tokenize(PROMPTS), other.tokenize(PROMPTS))
    assert other.truncated("red " * 11) == "red"


def save_clip(encoder: TextEncoder, folder: Path, *, parts: bool, hidden_act: str = "quick_gelu") -> CLIPTextModel:
    values = clip_text_config(encoder.config, start_id=encoder.start_id, end_id=encoder.end_id)
    model = CLIPTextModel(CLIPTextConfig(**{**values, "hidden_act": hidden_act})).eval()
    model.save_pretrained(folder / "text_encoder" if parts else folder)
    clip_tokenizer(encoder.tokenizer).save_pretrained(folder / "tokenizer" if parts else folder)
    return model


@pytest.mark.parametrize("parts", [True, False])
def test_from_clip_loads_a_frozen_copy(encoder: TextEncoder, tmp_path: Path, parts: bool) -> None:
    source = save_clip(encoder, tmp_path, parts=parts)
    clip = TextEncoder.from_clip(tmp_path)
    assert clip.config == CONFIG
    assert not clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert torch.equal(clip.tokenize(PROMPTS), encoder.tokenize(PROMPTS))
    with torch.no_grad():
        expected = source(encoder.tokenize(PROMPTS)).last_hidden_state
        torch.testing.assert_close(clip.encode(PROMPTS), expected, rtol=0, atol=0)


def test_from_clip_names_what_is_wrong(encoder: TextEncoder, tmp_path: Path) -> None:
    message = f"folder must hold a CLIP text model with its config.json, got {tmp_path}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TextEncoder.from_clip(tmp_path)
    save_clip(encoder, tmp_path, parts=True, hidden_act="gelu")
    with pytest.raises(ValueError, match=r"^the text model's hidden_act must be quick_gelu, got gelu$"):
        TextEncoder.from_clip(tmp_path)
    for weights in tmp_path.rglob("model.safetensors"):
        weights.write_text("version https://git-lfs.github.com/spec/v1\nsize 12345\n")
    with pytest.raises(ValueError, match=r"^folder must hold a CLIP text model with its tokenizer, got .*: [^\n]*$"):
        TextEncoder.from_clip(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 513}, "vocab_size must be at least 514, got 513"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"max_length": 1}, "max_length must be at least 2, got 1"),
        ({"num_heads": 3}, "hidden_size must be a multiple of num_heads=3, got 32"),
    ],
)
def test_wrong_configurations_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(CONFIG, **values)


def test_a_wrong_tokenizer_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer_json must be a tokenizer's JSON, got '\{\}'$"):
        TextEncoder(CONFIG, "{}")
    size = tokenizer.get_vocab_size()
    with pytest.raises(ValueError, match=rf"^the tokenizer must have at most vocab_size=514 tokens, got {size}$"):
        TextEncoder(dataclasses.replace(CONFIG, vocab_size=514), tokenizer.to_str())
    unmarked = tokenizer.to_str().replace("<|startoftext|>", "<|other|>")
    message = "the tokenizer must hold the token <|startoftext|>, got a vocabulary without it"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TextEncoder(CONFIG, unmarked)


def test_wrong_prompts_are_named(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match=r"^prompts must hold at least one prompt, got none$"):
        encoder.tokenize([])
    prompts: Any = ["a fox", None]
    with pytest.raises(ValueError, match=r"^prompts must be strings, got NoneType$"):
        encoder.tokenize(prompts)


@pytest.mark.parametrize(
    ("ids", "came"),
    [
        (torch.zeros(1, 5, dtype=torch.int64), "torch.int64 (1, 5)"),
        (torch.zeros(12, dtype=torch.int64), "torch.int64 (12,)"),
        (torch.zeros(1, 12), "torch.float32 (1, 12)"),
    ],
)
def test_wrong_ids_are_named(encoder: TextEncoder, ids: torch.Tensor, came: str) -> None:
    message = f"ids must be int64 of shape (N, 12), got {came}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        encoder(ids)
