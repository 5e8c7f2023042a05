"""Which modules of a checkpoint a quantisation covers, and the types of a decoder's parts.

A quantisation names groups of modules and the modules that it leaves out: by their name, a part of
it (`self_attn`), a glob (`model.layers.0.self_attn*`) or a regular expression (`re:.*attn.*`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import translate
from typing import NamedTuple

from perfmodel.errors import ConfigError, shown
from perfmodel.specs.dtypes import Scales
from perfmodel.specs.model import ModelSpec

LINEAR = "Linear"  # the target that stands for all linear layers
MOST = 0.9  # least share of a part that has one type, which is then taken for all of it
_WRAPPERS = re.compile(r"^(?:(?:model|language_model)\.)+")
_ESCAPED = re.compile(r"\\.")  # \., \d and so on in a regular expression
_REPEATED = re.compile(r"[*+}][^()]*\)[*+{]")  # a repeated group with a repetition inside
_PREFIXES = ("model.", "language_model.model.", "model.language_model.")

# Parts of the names of modules, of which a nearly equal one is a misspelling.
_WORDS = (
    "layers self_attn linear_attn mlp feed_forward block_sparse_moe experts expert shared_expert "
    "shared_experts shared_expert_gate lm_head embed_tokens gate gate_proj up_proj gate_up_proj "
    "down_proj q_proj k_proj v_proj o_proj qkv_proj out_proj in_proj q_a_proj q_b_proj kv_b_proj "
    "kv_a_proj kv_a_proj_with_mqa fused_qkv_a_proj in_proj_qkvz in_proj_qkv in_proj_ba router "
    "in_proj_a in_proj_b in_proj_z kv_proj qk_proj proj attn self_attention vision_model "
    "vision_tower linear_fc1 linear_fc2 shared_mlp"
)


class Names:
    """Names and patterns of modules."""

    def __init__(self, entries: Iterable[str], where: str) -> None:
        self.plain: set[str] = set()
        starts, patterns = [], []
        for entry in entries:
            if entry.startswith("re:"):
                patterns.append(_pattern(entry.removeprefix("re:"), where))
            elif not set(entry) & set("*?["):
                self.plain.add(_WRAPPERS.sub("", entry))
            elif set(entry[:-1]) & set("*?["):
                patterns += [re.compile(translate(entry + end)) for end in ("", ".*")]
            else:
                starts.append(_WRAPPERS.sub("", entry[:-1]))
        self.starts, self.patterns = tuple(starts), patterns

    def has(self, module: str) -> bool:
        """Whether a module of the decoder, such as `layers.0.mlp.up_proj`, is one of them."""
        if module.startswith(self.starts):
            return True
        words = module.split(".")
        if any(
            ".".join(words[first:last]) in self.plain
            for first in range(len(words))
            for last in range(first + 1, len(words) + 1)
        ):
            return True
        names = [prefix + module for prefix in _PREFIXES] if self.patterns else []
        return any(pattern.match(name) for pattern in self.patterns for name in (*names, module))


def _pattern(text: str, where: str) -> re.Pattern[str]:
    """The compiled pattern; one that may take exponential time is refused."""
    if _REPEATED.search(text):
        raise ConfigError(f"{where}: {shown('re:' + text)} repeats a repetition; simplify it")
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: {shown('re:' + text)} is not a regular expression") from error


class Stored(NamedTuple):
    """Storage types of a checkpoint; "" where they are not quantised.

    `weights` are those of the projections to queries, keys and values, `experts` the routed
    experts ("bf16" if they are not quantised but `weights` are). `parts` are the other dense layers
    that differ from `weights`, by the names of `specs.dtypes.PARTS`.
    """

    weights: str = ""
    experts: str = ""
    kv: str = ""
    parts: tuple[tuple[str, str], ...] = ()


class _Module(NamedTuple):
    """Modules of the same kind in `layers` layers: their names and their elements per layer."""

    names: tuple[str, ...]
    layers: int
    elements: int


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint is quantised; `groups` are pairs of targets and their type.

    `covers_head` is whether the LM head is quantised unless it is left out. `scales` are bytes per
    weight of scales and zero points, by the types whose own bytes do not include them.
    """

    where: str
    groups: tuple[tuple[tuple[str, ...], str], ...] = ()
    left_out: tuple[str, ...] = ()
    kv: str = ""
    covers_head: bool = False
    scales: Scales = ()

    def stored(self, spec: ModelSpec) -> Stored:
        """The types of the parts of a model.

        Raises `ConfigError` if no type has at least `MOST` of a part.
        """
        if not self.groups:
            return Stored(kv=self.kv)
        self._check_left_out(spec)
        type_of = self._types()
        types = {
            part: self._type_of_part(spec, part, modules, type_of)
            for part, modules in _modules(spec).items()
        }
        for targets, dtype in self.groups:
            if LINEAR not in targets and dtype not in types.values():
                raise ConfigError(
                    f"{self.where}: targets={shown(targets[0])} is not supported; use {LINEAR}, or "
                    f"names or patterns of the modules of whole parts, such as re:.*experts.*"
                )
        experts = types.pop("experts", self.usual)
        weights = types.pop("attention")
        if weights and not experts:  # "" would be the type of the others
            experts = "bf16"
        covers_head = self.covers_head and not spec.tied_embeddings and type_of("lm_head")
        head = {"head": type_of("lm_head")} if covers_head else {}
        others = {part: dtype or "bf16" for part, dtype in types.items() if dtype != weights}
        return Stored(weights, experts, self.kv, tuple((others | head).items()))

    def _check_left_out(self, spec: ModelSpec) -> None:
        """Refuse a module of a layer that the model does not have, or nearly a known name.

        Other names may be those of towers, routers and norms, which are never quantised here.
        """
        last = spec.layers + max(spec.mtp_layers, 1)  # checkpoints keep MTP after the last layer
        for entry in self.left_out:
            if entry.startswith("re:") or set(entry) & set("*?["):
                text = _ESCAPED.sub(" ", entry.removeprefix("re:"))
                parts = (word.strip("_") for word in re.findall(r"\w+", text))
                near = _meant(part for part in parts if part not in _WORDS)  # or a beginning of one
                if near and not self._leaves_out(spec, entry):
                    raise self._left_out_error(entry, f"matches no module; did you mean {near}?")
                continue
            words, reason = _WRAPPERS.sub("", entry).split("."), ""
            number = words[1][:9] if words[0] == "layers" and len(words) > 1 else ""
            if number.isdecimal() and int(number) >= last:
                reason = f"{spec.name} has {spec.layers} layers; remove it"
            if near := _meant(words):
                reason = f"matches no module; did you mean {near}?"
            if reason:
                raise self._left_out_error(entry, reason)

    def _left_out_error(self, entry: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.where}: {shown(entry)} is left out, but {reason}")

    def _leaves_out(self, spec: ModelSpec, entry: str) -> bool:
        """Whether a pattern matches the name of a module of the model."""
        names = Names((entry,), self.where)
        modules = [name for part in _modules(spec).values() for one in part for name in one.names]
        layers = (f"layers.{i}.{name}" for i in range(spec.layers) for name in modules)
        return names.has("lm_head") or any(map(names.has, layers))

    @property
    def types(self) -> tuple[str, ...]:
        """The distinct types of all groups."""
        return tuple(dict.fromkeys(dtype for _, dtype in self.groups))

    @property
    def usual(self) -> str:
        """The type of linear layers that no group names."""
        return next((dtype for targets, dtype in self.groups if LINEAR in targets), "")

    def _types(self) -> Callable[[str], str]:
        """The type of each module by its name; names take precedence over `LINEAR`."""
        named = ((Names((t for t in ts if t != LINEAR), self.where), d) for ts, d in self.groups)
        groups, left_out, usual = list(named), Names(self.left_out, self.where), self.usual

        def type_of(name: str) -> str:
            if left_out.has(name):
                return ""
            return next((dtype for names, dtype in groups if names.has(name)), usual)

        return type_of

    def _type_of_part(
        self, spec: ModelSpec, part: str, modules: Iterable[_Module], type_of: Callable[[str], str]
    ) -> str:
        usual = self.usual
        elements: Counter[str] = Counter()
        for module in modules:
            rest = module.layers
            found = Counter(
                dtype
                for layer in range(spec.layers)
                if (dtype := _other_type(module.names, layer, usual, type_of)) is not None
            )
            for dtype, layers in found.items():
                elements[dtype] += min(layers, rest) * module.elements
                rest -= min(layers, rest)
            elements[usual] += rest * module.elements
        dtype, most = elements.most_common(1)[0]
        if (share := most / elements.total()) < MOST:
            raise ConfigError(
                f"{self.where}: {share:.0%} of the weights of {part} are in {dtype or 'bf16'}, the "
                f"others are not; use a checkpoint with one type in all layers of a kind"
            )
        return dtype


def _meant(words: Iterable[str]) -> str:
    """A known word that one of the words nearly is, or is with its letters in another order."""
    known = _WORDS.split()
    anagrams = {"".join(sorted(word)): word for word in known}
    for word in set(words).difference(known):
        if swapped := anagrams.get("".join(sorted(word))):
            return swapped
        if near := get_close_matches(word, known, n=1, cutoff=0.9):
            return near[0]
    return ""


def _other_type(
    names: tuple[str, ...], layer: int, usual: str, type_of: Callable[[str], str]
) -> str | None:
    """The type of a layer's module if it is not the usual one, by any of its names."""
    types = (type_of(f"layers.{layer}.{name}") for name in names)
    return next((dtype for dtype in types if dtype != usual), None)


def _modules(spec: ModelSpec) -> dict[str, list[_Module]]:
    """The modules of each part that a model has, but for the LM head."""
    parts = {
        "attention": _attention_inputs(spec),
        "attention output": [_Module(("self_attn.o_proj",), spec.cached_layers, 1)],
    }
    if spec.linear is not None:
        inputs, outputs = spec.linear.input_width, spec.linear.value_width
        parts["linear attention"] = [
            _Module(
                ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_qkv"), spec.linear.layers, inputs
            ),
            _Module(("linear_attn.out_proj",), spec.linear.layers, outputs),
        ]
    if spec.dense_layers:
        parts["mlp"] = _gated_mlp(spec.dense_layers, "mlp", "feed_forward")
    if (experts := spec.experts) is not None:
        if experts.shared_width:
            names = ("shared_experts", "shared_expert", "shared_mlp")
            places = [f"mlp.{name}" for name in names] + ["feed_forward.shared_expert"]
            parts["shared experts"] = _gated_mlp(experts.layers, *places)
        names = ("mlp.experts.0", "block_sparse_moe.experts.0", "feed_forward.experts.0")
        parts["experts"] = _gated_mlp(experts.layers, *names)
    return parts


def _attention_inputs(spec: ModelSpec) -> list[_Module]:
    def module(elements: int, *names: str) -> _Module:
        return _Module(tuple(f"self_attn.{name}" for name in names), spec.cached_layers, elements)

    if (latent := spec.latent) is None:
        queries, keys = spec.query_heads * spec.head_dim, spec.kv_heads * spec.head_dim
        return [
            module(queries, "q_proj", "qkv_proj"),
            module(keys, "k_proj", "qkv_proj"),
            module(keys, "v_proj", "qkv_proj"),
        ]
    heads, rank = spec.query_heads, latent.q_rank
    up = latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
    queries = (rank or spec.hidden) * heads * latent.query_dim
    down = [module(rank * spec.hidden, "q_a_proj", "fused_qkv_a_proj")] if rank else []
    return [
        *down,
        module(queries, "q_b_proj" if rank else "q_proj"),
        module(latent.width * spec.hidden, "kv_a_proj_with_mqa", "fused_qkv_a_proj"),
        module(up, "kv_b_proj"),
    ]


def _gated_mlp(layers: int, *places: str) -> list[_Module]:
    """The projections of a gated MLP of equal sizes, by their names in Llama, Phi and Mixtral."""
    kinds = (
        ("gate_proj", "gate_up_proj", "w1"),
        ("up_proj", "gate_up_proj", "w3"),
        ("down_proj", "w2"),
    )
    return [
        _Module(tuple(f"{place}.{name}" for place in places for name in names), layers, 1)
        for names in kinds
    ]
