"""The parent model's configuration, read from a Hugging Face ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from puzzle_search.errors import InputError
from puzzle_search.files import read_text
from puzzle_search.resources import resource

# Attention biases by model type: (q, k and v; o). None: the config's `attention_bias` decides both.
_BIASES: dict[str, tuple[bool, bool] | None] = {
    "llama": None,
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": None,
}
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


@dataclass(frozen=True, kw_only=True)
class ParentConfig:
    """Shape of a Llama-like decoder.

    ``raw`` is the config as read, kept verbatim so that rope settings, token ids and whatever
    else a child must repeat are never rewritten.
    """

    name: str
    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rms_norm_eps: float
    max_position_embeddings: int
    sliding_window: int | None
    raw: Mapping[str, Any] = field(repr=False, compare=False, hash=False)

    @property
    def attention(self) -> str:
        """The parent's own attention variant."""
        return f"gqa_{self.num_kv_heads}"

    @property
    def ffn(self) -> str:
        """The parent's own FFN variant."""
        return f"mlp_{self.intermediate_size}"

    @property
    def max_context(self) -> int:
        """Tokens that can attend to each other: positions, or the sliding window."""
        return min(
            self.max_position_embeddings, self.sliding_window or self.max_position_embeddings
        )

    @property
    def rope_settings(self) -> dict[str, Any]:
        """The rope keys of the config, verbatim."""
        return {key: self.raw[key] for key in _ROPE_KEYS if key in self.raw}

    def __reduce__(self) -> tuple[partial[ParentConfig], tuple[()]]:
        """Configurations cross process boundaries as they were read."""
        return partial(type(self).from_dict, dict(self.raw), name=self.name), ()

    @classmethod
    def find(cls, model: str) -> ParentConfig:
        """Read the config of a file, of a checkpoint folder, or of a shipped example by its name.

        Raises:
            InputError: there is none, or as `from_file`.
        """
        shipped = resource("examples", model.lower())
        if Path(model).exists() or not (shipped / "config.json").exists():
            return cls.from_file(model)
        return cls.from_file(shipped)

    @classmethod
    def from_file(cls, path: str | Path, *, name: str | None = None) -> ParentConfig:
        """Read a ``config.json``, or the one in a checkpoint folder.

        Raises:
            InputError: the file is missing, is not JSON, or is not a Llama-like model.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        text = read_text(file, remedy="name a config.json or a checkpoint folder")
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON: {error}", remedy="download it again") from error
        if not isinstance(raw, dict):
            raise InputError(f"{file} is not a JSON object", remedy="download it again")
        return cls.from_dict(raw, name=name or file.resolve().parent.name, where=str(file))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, name: str, where: str = "config") -> ParentConfig:
        """Take the fields of a Hugging Face config.

        Raises:
            InputError: a field is missing, has a wrong type, or asks for what is not supported.
        """
        fields = _Fields(raw, where)
        model_type = fields.text("model_type")
        if model_type not in _BIASES:
            raise InputError(
                f"{where}: model_type {model_type!r} is not supported",
                remedy=f"use one of {', '.join(_BIASES)}",
            )
        if fields.optional_text("hidden_act", "silu") != "silu":
            raise InputError(
                f"{where}: hidden_act {raw['hidden_act']!r} is not supported",
                remedy="only SwiGLU models (hidden_act: silu) can be searched",
            )
        heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
        biases = _BIASES[model_type]
        own_bias = fields.flag("attention_bias", False)
        # What a config leaves out, only Llama's class derives from the other fields.
        llama = model_type == "llama"
        kv_heads = fields.size("num_key_value_heads", heads if llama else None)
        if heads % kv_heads:
            raise InputError(
                f"{where}: num_key_value_heads {kv_heads} does not divide the {heads} query heads",
                remedy="correct num_key_value_heads",
            )
        divides = model_type != "qwen3" and hidden % heads == 0
        return cls(
            name=name,
            model_type=model_type,
            hidden_size=hidden,
            num_layers=fields.size("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=fields.size("head_dim", hidden // heads if divides else None),
            intermediate_size=fields.size("intermediate_size"),
            vocab_size=fields.size("vocab_size"),
            tie_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=biases[0] if biases else own_bias,
            output_bias=biases[1] if biases else own_bias,
            mlp_bias=llama and fields.flag("mlp_bias", False),
            qk_norm=model_type == "qwen3",
            rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
            max_position_embeddings=fields.size("max_position_embeddings"),
            sliding_window=_sliding_window(raw, fields, model_type, where),
            raw=MappingProxyType(dict(raw)),
        )


def _sliding_window(
    raw: Mapping[str, Any], fields: _Fields, model_type: str, where: str
) -> int | None:
    """The window of every layer, by the rules and defaults of the model's own configuration."""
    if model_type == "mistral":
        absent = "sliding_window" in raw and raw["sliding_window"] is None
        return None if absent else fields.size("sliding_window", 4096)
    if model_type != "llama" and fields.flag("use_sliding_window", False):
        raise InputError(
            f"{where}: use_sliding_window gives the layers different windows: not supported",
            remedy="set use_sliding_window to false, where full attention is wanted",
        )
    return None


class _Fields:
    """Typed access to a JSON object, with errors that name the file and the field."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._raw = raw
        self._where = where

    def _wrong(self, key: str, wanted: str) -> InputError:
        value = self._raw.get(key)
        return InputError(
            f"{self._where}: {key} must be {wanted}, not {value!r}", remedy=f"correct {key}"
        )

    def size(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(key, "a positive whole number")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self._raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise self._wrong(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._raw.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._raw.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def optional_text(self, key: str, default: str) -> str:
        return self.text(key) if key in self._raw else default
