"""The parent model's configuration, read from a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from puzzle_search.arch.experts import Experts, SwigluClamp
from puzzle_search.arch.families import FAMILIES, Family, Scales
from puzzle_search.arch.fields import LARGEST_SIZE, Fields
from puzzle_search.errors import InputError
from puzzle_search.files import read_json
from puzzle_search.resources import resource

# Rope types whose frequencies do not depend on the running length, and the numbers each needs.
_ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor",),
}
_LARGEST_ROPE_THETA = 1e15
_PLAIN = Scales()
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


@dataclass(frozen=True, kw_only=True)
class ParentConfig:
    """Shape of a Llama-like decoder.

    ``intermediate_size`` is that of the FFN, or of each of its ``experts``; ``unrotated`` are the
    layers without rotary positions; ``sliding_window`` is that of all layers, ``layer_windows``
    are those of each where they differ, None for full attention. ``raw`` is the config as read,
    kept verbatim so that rope settings, token ids and whatever else a child must repeat are never
    rewritten.
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
    scales: Scales = _PLAIN
    unrotated: frozenset[int] = frozenset()
    layer_windows: tuple[int | None, ...] = ()
    experts: Experts | None = None
    raw: Mapping[str, Any] = field(repr=False, compare=False, hash=False)

    @property
    def family(self) -> Family:
        """What its model type fixes."""
        return FAMILIES[self.model_type]

    @property
    def attention(self) -> str:
        """The parent's own attention variant, in layers without a window of their own."""
        return f"gqa_{self.num_kv_heads}"

    @property
    def ffn(self) -> str:
        """The parent's own FFN variant."""
        if self.experts is not None:
            return f"moe_{self.experts.count}"
        return f"mlp_{self.intermediate_size}"

    def own(self, subblock: str, layer: int) -> str:
        """The parent's own variant of the ``attention`` or ``ffn`` of a layer."""
        if subblock == "ffn":
            return self.ffn
        window = self.layer_windows[layer] if self.layer_windows else None
        return self.attention if window is None else f"{self.attention}_window_{window}"

    @property
    def attentions(self) -> list[str]:
        """The parent's own attention variants, each once."""
        return list(dict.fromkeys(self.own("attention", n) for n in range(self.num_layers)))

    @property
    def max_context(self) -> int:
        """Most tokens of a sequence; a window bounds what each attends to, not their number."""
        return self.max_position_embeddings

    @property
    def rope_settings(self) -> dict[str, Any]:
        """The rope keys of the config, verbatim."""
        return {key: self.raw[key] for key in _ROPE_KEYS if key in self.raw}

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The tokens that end a text: one in most configs, several in those of chat models."""
        return stop_tokens_of(self.raw, self.name)

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
        raw = read_json(
            file, remedy="name a config.json or a checkpoint folder, or download it again"
        )
        return cls.from_dict(raw, name=name or _model_name(file), where=str(file))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, name: str, where: str = "config") -> ParentConfig:
        """Take the fields of a Hugging Face config.

        Raises:
            InputError: a field is missing, has a wrong type, or asks for what is not supported.
        """
        fields = Fields(raw, where)
        model_type = fields.text("model_type")
        if model_type not in FAMILIES:
            raise InputError(
                f"{where}: model_type {model_type!r} is not supported",
                remedy=f"use one of {', '.join(FAMILIES)}",
            )
        family = FAMILIES[model_type]
        if fields.optional_text("hidden_act", "silu") != "silu":
            raise InputError(
                f"{where}: hidden_act {raw['hidden_act']!r} is not supported",
                remedy="only SwiGLU models (hidden_act: silu) can be searched",
            )
        heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
        own_bias = fields.flag("attention_bias", family.attention_bias)
        kv_heads = fields.size("num_key_value_heads", heads if family.defaults_kv_heads else None)
        if heads % kv_heads:
            raise InputError(
                f"{where}: num_key_value_heads {kv_heads} does not divide the {heads} query heads",
                remedy="correct num_key_value_heads",
            )
        divides = family.defaults_head_dim and hidden % heads == 0
        head_dim = fields.size("head_dim", hidden // heads if divides else None)
        if head_dim % 2:
            raise InputError(
                f"{where}: head_dim is {head_dim}; rotary embedding takes an even one",
                remedy="correct head_dim",
            )
        _check_rope(raw, where)
        if raw.get("use_cache") is not None:
            fields.flag("use_cache", True)
        stop_tokens_of(raw, where)
        layers = fields.size("num_hidden_layers")
        return cls(
            name=name,
            model_type=model_type,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=fields.size(family.width_key),
            vocab_size=fields.size("vocab_size"),
            tie_embeddings=fields.flag("tie_word_embeddings", family.tie_embeddings),
            qkv_bias=own_bias if family.qkv_bias is None else family.qkv_bias,
            output_bias=own_bias if family.output_bias is None else family.output_bias,
            mlp_bias=family.mlp_bias is None and fields.flag("mlp_bias", False),
            qk_norm=family.qk_norm is not None,
            rms_norm_eps=fields.positive("rms_norm_eps", family.rms_norm_eps),
            max_position_embeddings=fields.size("max_position_embeddings"),
            sliding_window=_sliding_window(raw, fields, family),
            layer_windows=_layer_windows(raw, fields, family, layers, where),
            scales=_scales(fields, head_dim) if family.multipliers else _PLAIN,
            unrotated=_unrotated(raw, layers, where) if family.skips_rope else frozenset(),
            experts=_experts(raw, fields, family, where) if family.has_experts else None,
            raw=MappingProxyType(dict(raw)),
        )


def _model_name(file: Path) -> str:
    """The folder's name, or the model's where the folder is a snapshot in Hugging Face's cache.

    Such a folder is ``models--<owner>--<name>/snapshots/<revision>``, its files links to blobs.
    """
    folder = file.parent.resolve()
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.rpartition("--")[2]
    return folder.name


def _check_rope(raw: Mapping[str, Any], where: str) -> None:
    """Refuse rope settings that the decoder cannot compute.

    Raises:
        InputError: another rope type, or settings that are missing or no positive numbers.
    """
    for key in ("rope_scaling", "rope_parameters"):
        if raw.get(key) is not None and not isinstance(raw[key], Mapping):
            raise InputError(f"{where}: {key} is not an object", remedy=f"correct {key}")
    settings = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in _ROPE_TYPES:
        raise InputError(
            f"{where}: rope type {rope_type!r} is not supported",
            remedy=f"use a model of rope type {', '.join(_ROPE_TYPES)}",
        )
    for given in (raw, settings):
        if given.get("partial_rotary_factor", 1) != 1:
            raise InputError(
                f"{where}: partial_rotary_factor {given['partial_rotary_factor']!r} rotates a part "
                "of each head: not supported",
                remedy="use a model that rotates whole heads",
            )
    thetas = [given["rope_theta"] for given in (raw, settings) if "rope_theta" in given]
    numbers = [("rope_theta", theta) for theta in thetas]
    numbers += [(key, settings.get(key)) for key in _ROPE_TYPES[rope_type]]
    for key, value in numbers:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < _LARGEST_ROPE_THETA:
            raise InputError(
                f"{where}: {key} of rope type {rope_type} must be a positive number, not {value!r}",
                remedy=f"correct {key}",
            )


def stop_tokens_of(raw: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """``eos_token_id`` of a ``config.json`` or ``generation_config.json``.

    Raises:
        InputError: it is neither a token, a list of tokens, nor left out.
    """
    given = raw.get("eos_token_id")
    tokens = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(token) is int and 0 <= token < LARGEST_SIZE for token in tokens):
        raise InputError(
            f"{where}: eos_token_id is {given!r:.80}, neither a token nor a list of tokens",
            remedy="correct eos_token_id",
        )
    return tuple(tokens)


def _sliding_window(raw: Mapping[str, Any], fields: Fields, family: Family) -> int | None:
    """The window of every layer, by the rules and defaults of the model's own configuration."""
    if family.window != "own":
        return None
    window = raw.get("sliding_window", family.default_window)
    return None if window is None else fields.size("sliding_window", window)


def _layer_windows(
    raw: Mapping[str, Any], fields: Fields, family: Family, layers: int, where: str
) -> tuple[int | None, ...]:
    """The window of each layer, where ``layer_types`` gives them to some.

    Raises:
        InputError: it does not tell every layer's type.
    """
    optional = family.window == "optional" and not fields.flag("use_sliding_window", False)
    if family.window in ("none", "own") or optional:
        return ()
    types = raw.get("layer_types")
    known = ("sliding_attention", "full_attention")
    if types is None and family.window == "layered":
        types = [known[layer % 2] for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        raise InputError(
            f"{where}: layer_types does not say {' or '.join(known)} for each of {layers} layers",
            remedy="write the config with transformers, which names every layer's",
        )
    if known[0] not in types:
        return ()
    window = fields.size("sliding_window")
    return tuple(window if kind == known[0] else None for kind in types)


def _scales(fields: Fields, head_dim: int) -> Scales:
    """Granite's four multipliers; attention is scaled by its own, not by the head's size."""
    return Scales(
        embedding=fields.positive("embedding_multiplier", 1.0),
        query=fields.positive("attention_multiplier", 1.0) * head_dim**0.5,
        residual=fields.positive("residual_multiplier", 1.0),
        logits=1 / fields.positive("logits_scaling", 1.0),
    )


def _unrotated(raw: Mapping[str, Any], layers: int, where: str) -> frozenset[int]:
    """Layers without rotary positions: zeros of ``no_rope_layers``, or every n-th.

    Raises:
        InputError: neither says it.
    """
    rotated, interval = raw.get("no_rope_layers"), raw.get("no_rope_layer_interval", 4)
    if rotated is None:
        if type(interval) is not int or interval < 1:
            raise InputError(
                f"{where}: no_rope_layer_interval must be a positive whole number, not "
                f"{interval!r}",
                remedy="correct no_rope_layer_interval",
            )
        return frozenset(range(interval - 1, layers, interval))
    flags = rotated if isinstance(rotated, list) else []
    if len(flags) < layers or not all(flag in (0, 1) for flag in flags):
        raise InputError(
            f"{where}: no_rope_layers must say 1 or 0 for each of the {layers} layers",
            remedy="correct no_rope_layers",
        )
    return frozenset(layer for layer in range(layers) if not flags[layer])


def _experts(raw: Mapping[str, Any], fields: Fields, family: Family, where: str) -> Experts:
    """The experts of a mixture-of-experts model, by the rules of its own configuration.

    Raises:
        InputError: a field is missing or wrong, or some layers have none.
    """
    if raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) != 1:
        raise InputError(
            f"{where}: mlp_only_layers or decoder_sparse_step gives some layers no experts: "
            "not supported",
            remedy="use a model of which every layer has experts",
        )
    # transformers writes either name, whatever the model.
    given = [key for key in ("num_local_experts", "num_experts") if raw.get(key) is not None]
    count = fields.size(given[0] if given else "num_local_experts")
    top_k = fields.size("num_experts_per_tok")
    if top_k > count:
        raise InputError(
            f"{where}: num_experts_per_tok {top_k} is more than the {count} experts",
            remedy="correct num_experts_per_tok",
        )
    return Experts(
        count=count,
        top_k=top_k,
        renormalised=family.renormalised or fields.flag("norm_topk_prob", False),
        bias=family.expert_bias,
        clamp=_clamp(fields) if family.clamped_swiglu else None,
    )


def _clamp(fields: Fields) -> SwigluClamp:
    return SwigluClamp(
        limit=fields.positive("swiglu_limit", 7.0), gain=fields.positive("swiglu_alpha", 1.702)
    )
