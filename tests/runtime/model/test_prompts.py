"""Prompts from text, books and JSON lines, and errors for invalid files."""

import json
from pathlib import Path

import pytest

from runtime.errors import InputError
from runtime.model.prompts import TextTokenizer, random_prompts, read_prompts

VOCAB = 100


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    """A tokenizer with one token per word; the digits of the word are its id."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    words.save(str(tmp_path / "model" / "tokenizer.json"))
    return TextTokenizer(tmp_path / "model")


def words(start: int, stop: int) -> str:
    return " ".join(f"w{i}" for i in range(start, stop))


def test_a_text_is_cut_into_prompts(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text(words(0, 25))
    prompts = read_prompts(file, batch=2, prompt_tokens=10, tokenizer=tokenizer, vocab=VOCAB)
    assert prompts == [list(range(10)), list(range(10, 20))]
    with pytest.raises(InputError, match=r"\b2\b.*\b10\b.*\b3\b"):
        read_prompts(file, batch=3, prompt_tokens=10, tokenizer=tokenizer, vocab=VOCAB)


def test_no_prompt_spans_two_files_of_a_folder(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    books = tmp_path / "pg19" / "test"
    books.mkdir(parents=True)
    (books / "100.txt").write_text(words(0, 15))
    (books / "200.txt").write_text(words(50, 60))
    (tmp_path / "pg19" / "metadata.csv").write_text("100,A Book,1900,url\n")
    prompts = read_prompts(
        tmp_path / "pg19", batch=2, prompt_tokens=10, tokenizer=tokenizer, vocab=VOCAB
    )
    assert prompts == [list(range(10)), list(range(50, 60))]


def test_json_lines_keep_their_lengths(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": words(1, 4)}, {"text": words(5, 50)}, {"tokens": [7, 8]}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    prompts = read_prompts(file, batch=3, prompt_tokens=5, tokenizer=tokenizer, vocab=VOCAB)
    assert prompts == [[1, 2, 3], [5, 6, 7, 8, 9], [7, 8]]


@pytest.mark.parametrize(
    "line",
    ["not json", "[" * 100_000, "[1]", '{"other": 1}', '{"tokens": 5}', '{"tokens": ["1", "2"]}',
     '{"tokens": [1.0]}', '{"tokens": [true]}', '{"messages": ["hello"]}', '{"messages": {}}',
     '{"messages": [{"role": "user", "content": "w1"}]}'],
)  # fmt: skip
def test_a_malformed_line_is_refused_with_its_number(
    line: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "w1"}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        read_prompts(file, batch=2, prompt_tokens=5, tokenizer=tokenizer, vocab=VOCAB)


@pytest.mark.parametrize("tokens", [[VOCAB], [3, -1], []])
def test_a_token_outside_the_vocabulary_is_refused(
    tokens: list[int], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"text": "w1"}) + "\n" + json.dumps({"tokens": tokens}))
    with pytest.raises(InputError, match="prompt 2 is empty or has a token outside"):
        read_prompts(file, batch=2, prompt_tokens=5, tokenizer=tokenizer, vocab=VOCAB)


TEMPLATE = "{% for m in messages %}w90 {{ m['content'] }} {% endfor %}w91"


def test_messages_go_through_the_chat_template(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    chat = TextTokenizer(tmp_path / "model")
    file = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    rows = [{"messages": turns}, {"prompt": "w4"}, {"tokens": [7, 8]}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    options = {"batch": 3, "tokenizer": chat, "vocab": VOCAB}
    plain = [[90, 1, 2, 90, 3, 91], [4], [7, 8]]
    assert read_prompts(file, prompt_tokens=6, **options) == plain
    templated = [plain[0], [90, 4, 91], [7, 8]]
    assert read_prompts(file, prompt_tokens=6, chat=True, **options) == templated
    with pytest.raises(InputError, match="line 1: the conversation has 6 tokens"):
        read_prompts(file, prompt_tokens=5, **options)
    with pytest.raises(InputError, match="which --chat needs"):
        read_prompts(tmp_path / "book.txt", prompt_tokens=5, chat=True, **options)


def test_missing_or_undecodable_text_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(
            tmp_path / "no.txt", batch=1, prompt_tokens=5, tokenizer=tokenizer, vocab=VOCAB
        )
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(
            tmp_path / "noise.txt", batch=1, prompt_tokens=5, tokenizer=tokenizer, vocab=VOCAB
        )


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", '{"model": 5}', "[" * 100_000])
def test_a_folder_without_a_readable_tokenizer_is_refused(
    content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="transformers cannot read a tokenizer") as caught:
        TextTokenizer(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_json_line_may_contain_unicode_line_separators(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"text": "w1\u2028w2\x85w3"}, {"text": "w4"}]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    prompts = read_prompts(file, batch=2, prompt_tokens=5, tokenizer=tokenizer, vocab=VOCAB)
    assert prompts == [[1, 2, 3], [4]]


def test_decoding_undoes_encoding(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("w4 w2")) == "w4 w2"


def test_random_prompts_depend_only_on_the_seed() -> None:
    first = random_prompts(batch=2, prompt_tokens=30, vocab=50, seed=1)
    assert first == random_prompts(batch=2, prompt_tokens=30, vocab=50, seed=1)
    assert first != random_prompts(batch=2, prompt_tokens=30, vocab=50, seed=2)
    assert {len(p) for p in first} == {30} and max(map(max, first)) < 50
