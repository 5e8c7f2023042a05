"""`calibrate acceptance`: its flags, and the measurement that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from app.cli.options import option
from app.cli.output import progress

if TYPE_CHECKING:
    import torch

    from calibration.acceptance import Job, LoadedModel, Task, Text
    from calibration.records import DraftView

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """The flags of `calibrate acceptance`."""

    model: Annotated[
        Path,
        option("DIR", "Folder with config.json, tokenizer and safetensors."),
    ]
    text: Annotated[list[Path], option("FILE", "Text file; may be repeated.")]
    output: Annotated[
        Path,
        option("FILE", "Records (JSON lines); an existing file is continued."),
    ]
    draft_policy: Annotated[str, option("P,P", "One or more of full, streamingllm and snapkv.")] = (
        "streamingllm,snapkv"
    )
    kv_budget: Annotated[
        str, option("TOKENS", "List or range; budgets above the prompt are skipped.")
    ] = "64:4096:x4"
    prompt_tokens: Annotated[
        str,
        option(
            "TOKENS",
            "List or range of prompt lengths. Formerly --prefix-tokens.",
            "--prompt-tokens",
            "--prefix-tokens",
        ),
    ] = "2048"
    draft_model: Annotated[
        Path | None, option("DIR", "Draft model. Default: the target itself.")
    ] = None
    windows: Annotated[int, option("N", "Windows per text and prompt length.", min=1)] = 16
    gamma: Annotated[int, option("N", "Draft tokens per round.", min=1)] = 16
    scored_tokens: Annotated[
        int, option("N", "Scored tokens per window; a multiple of --gamma.", min=1)
    ] = 128
    temperature: Annotated[float, option("T", "Sampling temperature of both models.")] = 1.0
    sink: Annotated[str, option("N,N", "StreamingLLM: number of sink tokens.")] = "16"
    snapkv_window: Annotated[
        str, option("N,N", "SnapKV: number of last prompt tokens whose attention is used.")
    ] = "32"
    snapkv_pool: Annotated[str, option("N,N", "SnapKV: odd pooling width.")] = "1"
    positions: Annotated[
        str,
        option("absolute|relative", "StreamingLLM: positions in the text or in the cache."),
    ] = "absolute"
    page_tokens: Annotated[int, option("N", "Tokens per page of the KV cache.", min=1)] = 16
    device: Annotated[str, option("cpu|cuda", "Device to run on.")] = "cpu"
    dtype: Annotated[
        str | None,
        option(
            "DTYPE", "Type of weights and KV cache. Default: float32 on a CPU, bfloat16 on a GPU."
        ),
    ] = None


def measure(options: MeasureOptions) -> None:
    """Measure the windows that are not in the output file yet.

    Raises `ConfigError` or `EngineError` if a model or text cannot be read, or they cannot be
    combined.
    """
    import torch

    from calibration.acceptance import Task, exact_float32, header, load_model, read_text, run_jobs
    from calibration.records import RecordFile
    from perfmodel import ConfigError
    from runtime import TextTokenizer

    views = _views(options)
    on_gpu = _check_device(options.device)
    task = Task(
        gamma=options.gamma,
        scored_tokens=options.scored_tokens,
        temperature=options.temperature,
        chunk_tokens=2048 if on_gpu else 512,
        read_bytes=8e9 if on_gpu else 1e9,
    )
    name = options.dtype or ("bfloat16" if on_gpu else "float32")
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name} is not supported; use one of {', '.join(DTYPES)}")
    dtype, device = getattr(torch, name), torch.device(options.device)
    exact_float32()
    target = load_model(options.model, dtype=dtype, device=device)
    vocab, tokenizer = target.decoder.config.vocab, TextTokenizer(options.model)
    texts = [read_text(file, tokenizer, vocab=vocab) for file in options.text]
    if len({text.name for text in texts}) < len(texts):
        raise ConfigError(
            "two texts have the same file name, which identifies them in records; rename one"
        )
    draft = None
    if options.draft_model is not None:
        draft = _load_draft(options.draft_model, options.model, target, dtype, device)
    jobs = _jobs(options, task, target, texts, views)
    with (
        RecordFile(options.output, header(target, draft, texts, task)) as file,
        progress("windows") as update,
    ):
        say = (lambda line: None) if update is None else (lambda line: update(label=line))
        run_jobs(target, draft, jobs, task, file, say=say)


def _views(options: MeasureOptions) -> tuple[DraftView, ...]:
    from calibration.acceptance import draft_views

    return draft_views(
        _words("draft-policy", options.draft_policy, ("full", "streamingllm", "snapkv")),
        _counts("kv-budget", options.kv_budget),
        sinks=_counts("sink", options.sink, least=0),
        snapkv_windows=_counts("snapkv-window", options.snapkv_window),
        snapkv_pools=_counts("snapkv-pool", options.snapkv_pool),
        positions=_words("positions", options.positions, ("absolute", "relative")),
        page_tokens=options.page_tokens,
    )


def _load_draft(
    folder: Path, model: Path, target: LoadedModel, dtype: torch.dtype, device: torch.device
) -> LoadedModel:
    """Load the draft model, which must have the target's vocabulary."""
    from calibration.acceptance import check_same_tokens, load_model
    from perfmodel import ConfigError

    check_same_tokens(model, folder)
    draft = load_model(folder, dtype=dtype, device=device)
    if draft.decoder.config.vocab != target.decoder.config.vocab:
        raise ConfigError(
            f"{folder} has a vocabulary of {draft.decoder.config.vocab:,} tokens, but {model} has "
            f"{target.decoder.config.vocab:,}; use a draft with the target's vocabulary"
        )
    return draft


def _jobs(
    options: MeasureOptions,
    task: Task,
    target: LoadedModel,
    texts: Sequence[Text],
    views: tuple[DraftView, ...],
) -> list[Job]:
    """One job per prompt length and text."""
    from calibration.acceptance import Job, windows_of
    from perfmodel import ConfigError

    jobs = []
    longest = target.decoder.config.max_context_tokens
    for prompt in _counts("prompt-tokens", options.prompt_tokens):
        if task.window_tokens(prompt) > longest:
            raise ConfigError(
                f"--prompt-tokens {prompt} plus {task.scored_tokens} scored tokens exceed the "
                f"context of {target.name}, {longest:,} tokens; use a shorter prompt"
            )
        for text in texts:
            windows = windows_of(text, context_tokens=prompt, count=options.windows, task=task)
            jobs.append(Job(text, prompt, windows, views))
    return jobs


def _words(name: str, text: str, known: Sequence[str]) -> list[str]:
    from perfmodel import ConfigError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or set(words) - set(known):
        raise ConfigError(f"--{name} {text!r} is not valid; use one or more of {', '.join(known)}")
    return words


def _counts(name: str, text: str, *, least: int = 1) -> list[int]:
    from app.cli.axes import parse_numbers
    from perfmodel import ConfigError

    counts = parse_numbers(f"--{name}", text)
    if min(counts) < least:
        raise ConfigError(f"--{name} {text!r} is not valid; use numbers of at least {least}")
    return counts


def _check_device(device: str) -> bool:
    """Whether the device is a GPU; checks that it is available."""
    import torch

    from perfmodel import ConfigError

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device} is not supported; use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda is not available: torch finds no GPU; use --device cpu")
    return device == "cuda"
