"""`specroof export`: the user's ids, what a version runs, and recommended plans it can run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from app.cli.main import run
from perfmodel.catalog import model_config

WORK = ["--gpu", "h200", "--batch", "4", "--prompt-tokens", "4096"]
DRAFT = ["--draft", "llama-3.2-1b", "--draft-policy", "full", "--gamma", "2", "--acceptance", "0.8"]


def exported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    assert run(["export", "--to", "vllm", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["export", "--to", "vllm", *arguments]) == 2
    return capsys.readouterr().err


def test_the_users_hub_id_and_folder_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my-draft"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config("llama-3.2-1b")))
    target = ["--target", "meta-llama/Llama-3.1-8B-Instruct", *WORK, *DRAFT[2:]]
    for draft in (folder, folder / "config.json"):
        text, _ = exported([*target, "--draft", str(draft)], capsys)
        words = shlex.split(next(line for line in text.splitlines() if line[0] != "#"))
        assert words[2] == "meta-llama/Llama-3.1-8B-Instruct"
        config = json.loads(words[words.index("--speculative-config") + 1])
        assert config["model"] == str(folder)


def test_a_config_file_alone_and_another_vocabulary_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = model_config("llama-3.2-1b")
    file = tmp_path / "small.json"
    file.write_text(json.dumps(config))
    why = refused([*WORK, *DRAFT[2:], "--draft", str(file)], capsys)
    assert "small.json only describes the draft, and an engine loads weights" in why
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 128_000}))
    why = refused([*WORK, *DRAFT[2:], "--draft", str(folder)], capsys)
    assert "must have its target's vocabulary, and other has 128,000 tokens" in why


def test_the_longest_request_and_the_checkpoint_of_a_head(
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = [*WORK, "--draft", "eagle3", "--gamma", "3"]
    assert "--draft-checkpoint" in refused(head, capsys)
    head += ["--draft-checkpoint", "me/head", "--max-model-len", "9000"]
    text, _ = exported(head, capsys)
    assert "--max-model-len 9000" in text and '"model": "me/head"' in text
    assert "longest request" in refused([*head[:-1], "4000"], capsys)


PAYS = ["--scenario", "default", "--tp", "8", "--prefill", "disaggregated"]


def test_a_recommended_plan_that_the_engine_cannot_run_is_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, note = exported(["--recommended", *PAYS], capsys)
    assert text.startswith("# vLLM 0.26, ") and "vllm serve" in text
    assert note.startswith("vLLM 0.26 cannot run the best plan, ")
    assert "Exported instead: " in note


def test_a_head_that_is_not_known_is_replaced_by_that_of_the_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With vLLM's overheads, EAGLE-3 is the best plan, and MTP's gain is clear, too."""
    plan = ["--target", "qwen3.5-27b", "--gpu", "h200", "--tp", "4", "--batch", "72"]
    plan += ["--prompt-tokens", "1000", "--output-tokens", "500", "--engine", "vllm"]
    plan += ["--draft", "mtp,eagle3"]
    text, note = exported(["--recommended", *plan], capsys)
    assert '"method": "mtp"' in text and "EAGLE-3 draft is not known" in note
    assert "Exported instead: MTP" in note
    known = ["--recommended", *plan, "--draft-checkpoint", "me/head"]
    text, note = exported(known, capsys)
    assert '"method": "eagle3"' in text and note == ""
    other = ["--recommended", "--target", "llama-3.1-8b", "--gpu", "h200", *plan[8:-1], "eagle3"]
    assert "--draft-checkpoint, such as" in refused(other, capsys)


def test_requests_that_the_target_does_not_support_are_named_beside_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = ["--target", "qwen3-32b", "--engine", "vllm", "--tp", "4", "--draft", "eagle3"]
    longer = [*plan, "--batch", "4", "--prompt-tokens", "60000"]
    limit = "60,256 tokens exceed the 40,960 that qwen3-32b supports"
    assert run(["recommend", *longer]) == 0
    assert limit in " ".join(capsys.readouterr().out.splitlines()[1:3])
    assert limit in refused(["--recommended", *longer], capsys)
    assert run(["recommend", *longer[:-3], "64", *longer[-2:]]) == 3
    assert limit in capsys.readouterr().err
    assert run(["recommend", *longer[:-1], "8000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length_limit"] == ""


def test_runs_on_exports_the_plan_that_recommend_chooses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = [*PAYS, "--prompt-tokens", "4000"]
    assert run(["recommend", *short, "--runs-on", "vllm", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]["scenario"]
    exports = ["--recommended", *short, "--runs-on", "vllm", "--draft-checkpoint", "me/head"]
    text, note = exported(exports, capsys)
    assert note == "" and f'"method": "{best["draft"]}"' in text
    text, _ = exported(["--recommended", *short, "--runs-on", "vllm-0.23", *exports[-2:]], capsys)
    assert text.startswith("# vLLM 0.23, ") and "engine vllm-0.23" in text
    for engine, mend in (("sglang", "--runs-on vllm"), ("vllm-0.23", "--engine vllm-0.23")):
        given = ["--recommended", *PAYS, "--engine", "specroof", "--runs-on", engine]
        why = refused(given, capsys)
        assert f"--runs-on {engine} is not what --to vllm is written for" in why and mend in why
    assert "--recommended" in refused([*PAYS, "--runs-on", "vllm"], capsys)


def test_the_replica_of_a_fleet_is_exported_so_that_the_engine_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--target", "llama-3.1-8b", "--engine", "vllm", "--gpu", "h200", "--tp", "1"]
    flags += ["--prompt-tokens", "4000", "--output-tokens", "500", "--draft", "ngram"]
    flags += ["--acceptance", "0.3", "--rate", "20"]
    assert run(["recommend", *flags, "--json"]) == 0
    fleet = json.loads(capsys.readouterr().out)["fleet"]
    assert run(["export", *flags, "--recommended", "--to", "vllm"]) == 0
    text, err = capsys.readouterr()
    sequences = int(re.findall(r"--max-num-seqs (\d+)", text)[0])
    assert 0.9 * fleet["replica"]["concurrency"] < sequences <= fleet["replica"]["concurrency"]
    assert re.search(rf"20 requests/s need {fleet['replicas']} of this", err)
    assert run(["export", *flags, "--to", "vllm"]) == 2
    assert "--rate only changes --recommended" in capsys.readouterr().err
    assert run(["export", *flags[:-1], "0", "--recommended", "--to", "vllm"]) == 2
    assert "rate=0.0 must be a positive number" in capsys.readouterr().err
