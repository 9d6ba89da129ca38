"""Reads the vocabulary files of language families into tokenizers of the Rust library.

Understood: the files of a Hugging Face folder (`tokenizer.json`, or `vocab.txt`, `vocab.json` with
`merges.txt`, `spiece.model`) and those of a KerasHub preset. All are data: JSON, text or a
SentencePiece message; nothing is unpickled or run, and no file can name another one to open.
Refused: files of another kind than the family's, without its special tokens, damaged, or huge.

    rust, special = from_folder(Path("bert-base-uncased"), family("bert"))
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from kerastune_ft.backbones.tokenizer_families import ROLES, Family, Frame
from kerastune_ft.errors import WeightsError

__all__ = [
    "LARGEST_FILE",
    "assemble",
    "finish",
    "from_folder",
    "from_preset_folder",
    "from_text",
    "read_json",
    "read_text",
    "unigram",
]

LARGEST_FILE = 256 << 20
"""Bytes; the largest published `tokenizer.json` of these families has 3 MB."""


def from_folder(folder: Path, row: Family) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Reads a Hugging Face folder.

    `tokenizer.json` goes before the older files, as in transformers. What `tokenizer_config.json`
    says of case, accents, Chinese characters and the prefix space goes before `tokenizer.json`;
    what it leaves out is as the vocabulary's file or the family has it.

    Returns:
        The tokenizer, and its special tokens by role.

    Raises:
        WeightsError: If there is no vocabulary, or it does not belong to the family.
    """
    config = _config(folder)
    special = {**row.special, **_named(config)}
    path = folder / "tokenizer.json"
    if path.is_file():
        rust = _from_tokenizer_json(path, row)
        _override(rust, config)
    elif row.kind == "wordpiece":
        path = _one_of(folder, row, "vocab.txt")
        rust = assemble(row, _build(path, models.WordPiece, **_lines(path, special)), config)
    elif row.kind == "bpe":
        path = _one_of(folder, row, "vocab.json")
        rust = _byte_pairs(path, _one_of(folder, row, "merges.txt"), row, config)
    else:
        path = _one_of(folder, row, "spiece.model", "spm.model", "sentencepiece.bpe.model")
        extra = config.get("extra_ids", 100) if row.model_type == "t5" else 0
        rust = _sentence_piece(path, row, config, int(extra))
    _add_configured(rust, config, folder)
    special = finish(rust, row, special, path)
    return rust, special


def from_preset_folder(folder: Path, row: Family) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Reads a KerasHub preset's `tokenizer.json` and `assets/tokenizer`.

    Uncased networks were trained with accents stripped, as their authors' tokenizer does with
    lower case; KerasHub's presets of them say `strip_accents: false`, which would make unknown
    tokens of accented words, and is not followed.

    Raises:
        WeightsError: If a file is missing, or the tokenizer is another family's.
    """
    path = folder / "tokenizer.json"
    facts = read_json(path)
    name, config = facts.get("class_name"), facts.get("config")
    if name != row.hub_class or not isinstance(config, dict):
        raise WeightsError(
            f"{path}: holds {name or 'no tokenizer of KerasHub'}; "
            f"{row.model_type} wants {row.hub_class or 'a Hugging Face folder'}."
        )
    assets = folder / "assets" / "tokenizer"
    if row.kind == "wordpiece":
        path = _one_of(assets, row, "vocabulary.txt")
        model = _build(path, models.WordPiece, **_lines(path, row.special))
        wishes = {
            "do_lower_case": bool(config.get("lowercase")),
            "strip_accents": bool(config.get("strip_accents") or config.get("lowercase")),
            "tokenize_chinese_chars": bool(config.get("split_on_cjk", True)),
        }
        rust = assemble(row, model, wishes)
    elif row.kind == "bpe":
        path = _one_of(assets, row, "vocabulary.json")
        rust = _byte_pairs(path, _one_of(assets, row, "merges.txt"), row, config)
    else:
        path = _one_of(assets, row, "vocabulary.spm")
        rust = _sentence_piece(path, row, {}, 0)
    return rust, finish(rust, row, row.special, path)


def finish(
    rust: tokenizers.Tokenizer, row: Family, special: Mapping[str, str], path: Path
) -> dict[str, str]:
    """Makes special tokens special, frames texts as the family does, cuts and pads nothing.

    Returns:
        The special tokens that the vocabulary has, by role.

    Raises:
        WeightsError: If one is missing that the family cannot do without.
    """
    rust.no_truncation()
    rust.no_padding()
    if row.appends_mask and "mask" in special:
        rust.add_special_tokens([AddedToken(special["mask"], special=True, normalized=False)])
    known = {role: token for role, token in special.items() if rust.token_to_id(token) is not None}
    missing = [special.get(role, role) for role in row.required if role not in known]
    if missing:
        raise WeightsError(
            f"{path}: a tokenizer of {row.model_type} needs {', '.join(sorted(set(missing)))} in "
            "its vocabulary, and this one has not; give the folder the weights came in."
        )
    added = {token.content for token in rust.get_added_tokens_decoder().values()}
    extra = [token for token in row.extra if rust.token_to_id(token) is not None]
    for token in [*known.values(), *extra]:
        if token not in added:
            takes = row.mask_takes_space and token == known.get("mask")
            new = AddedToken(token, special=True, normalized=False, lstrip=takes)
            rust.add_special_tokens([new])
    framed = _build(path, rust.encode, "a").ids if rust.post_processor is not None else None
    roles = sorted({role for role, _ in row.pair} - {"A", "B"})
    ids = {role: _id(rust, known[role]) for role in roles}
    rust.post_processor = processors.TemplateProcessing(
        single=_template(row.single, known),
        pair=_template(row.pair, known),
        special_tokens=sorted({(known[role], ids[role]) for role in roles}),
    )
    ours = _build(path, rust.encode, "a").ids
    if framed is not None and framed != ours:
        raise WeightsError(
            f"{path}: turns 'a' into the tokens {framed}, a {row.model_type} into {ours}; "
            "it was made for another family."
        )
    return known


def _template(frame: Frame, known: Mapping[str, str]) -> str:
    return " ".join(f"{known.get(role, '$' + role)}:{segment}" for role, segment in frame)


def _id(rust: tokenizers.Tokenizer, token: str) -> int:
    number = rust.token_to_id(token)
    assert number is not None
    return number


def assemble(row: Family, model: Any, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Puts the family's normaliser, splitter and decoder around a WordPiece or BPE model."""
    rust = tokenizers.Tokenizer(model)
    if row.kind == "wordpiece":
        rust.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rust.decoder = decoders.WordPiece(prefix="##")
    else:
        space = bool(config.get("add_prefix_space", False))
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
        rust.decoder = decoders.ByteLevel()
    return rust


def unigram(
    row: Family,
    pieces: list[tuple[str, float]],
    unknown: int,
    config: Mapping[str, Any],
    *,
    charsmap: bytes = b"",
    byte_fallback: bool = False,
) -> tokenizers.Tokenizer:
    """Builds a Unigram tokenizer as transformers converts the family's SentencePiece model.

    DeBERTa follows SentencePiece itself (and transformers 4): transformers 5 leaves out the
    model's own normalisation.
    """
    rust = tokenizers.Tokenizer(
        models.Unigram(vocab=pieces, unk_id=unknown, byte_fallback=byte_fallback)
    )
    steps: list[Any] = []
    lower = config.get("do_lower_case", row.model_type == "albert")
    if row.model_type in ("xlnet", "albert"):
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not config.get("keep_accents", False):
            steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if lower and row.model_type != "t5":
        steps.append(normalizers.Lowercase())
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    split: list[Any]
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    if row.model_type == "deberta-v2":
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        split = [pre_tokenizers.Punctuation("isolated")] if config.get("split_by_punct") else []
    else:
        split = [pre_tokenizers.WhitespaceSplit()]
    if steps:
        rust.normalizer = normalizers.Sequence(steps)
    rust.pre_tokenizer = pre_tokenizers.Sequence([*split, metaspace])
    decoder: Any = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    if byte_fallback:
        decoder = decoders.Sequence([decoders.ByteFallback(), decoder])
    rust.decoder = decoder
    return rust


def _sentence_piece(
    path: Path, row: Family, config: Mapping[str, Any], extra_ids: int
) -> tokenizers.Tokenizer:
    """Reads a SentencePiece model.

    Control symbols become special tokens. Of the user-defined ones only those written like one
    do: XLNet and ALBERT define `.` and `(` so, and an added token would tear words apart.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    data = _bytes(path)
    try:
        proto.ParseFromString(data)
    except Exception as error:
        raise WeightsError(f"{path}: no SentencePiece model ({error}); fetch it again.") from error
    if proto.trainer_spec.model_type != 1 or not proto.pieces:
        raise WeightsError(
            f"{path}: no SentencePiece model of the kind unigram, which {row.model_type} needs."
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if row.model_type in ("xlnet", "albert"):
        # Google's code splits "9," again; a low score does nearly the same, as in the published
        # tokenizer.json of both families.
        pieces = [(p, s - 100 if re.search(r"\d,$", p) else s) for p, s in pieces]
    pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(extra_ids))]
    rust: tokenizers.Tokenizer = _build(
        path,
        unigram,
        row,
        pieces,
        proto.trainer_spec.unk_id,
        config,
        charsmap=proto.normalizer_spec.precompiled_charsmap,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )
    written = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]")
    special = [
        piece.piece
        for piece in proto.pieces
        if piece.type == 3 or (piece.type == 4 and written.fullmatch(piece.piece))
    ]
    special += [f"<extra_id_{number}>" for number in range(extra_ids)]
    mask = config.get("mask_token", row.special.get("mask"))
    rust.add_special_tokens(
        [
            AddedToken(
                token,
                special=True,
                normalized=False,
                lstrip=row.mask_takes_space and token == mask,
            )
            for token in special
        ]
    )
    return rust


def _byte_pairs(
    vocabulary: Path, merges: Path, row: Family, config: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    entries = read_json(vocabulary)
    if not all(isinstance(number, int) and number >= 0 for number in entries.values()):
        raise WeightsError(f"{vocabulary}: expected a number from 0 for every token.")
    lines = read_text(merges).split("\n")
    pairs = [tuple(x.split(" ")) for x in lines if x.strip() and not x.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong:
        raise WeightsError(f"{merges}: expected two tokens a line, got '{' '.join(wrong)[:80]}'.")
    model = _build(merges, models.BPE, vocab=entries, merges=pairs)
    return assemble(row, model, config)


def _lines(path: Path, special: Mapping[str, str]) -> dict[str, Any]:
    lines = read_text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = {line.rstrip(): number for number, line in enumerate(lines)}
    return {"vocab": vocabulary, "unk_token": special["unk"]}


def _from_tokenizer_json(path: Path, row: Family) -> tokenizers.Tokenizer:
    facts = read_json(path)
    model = facts.get("model")
    if not isinstance(model, dict):
        also = " (a KerasHub preset?)" if "class_name" in facts else ""
        raise WeightsError(f"{path}: no file of the tokenizers library{also}.")
    # Files of before 2021 do not say.
    old = "BPE" if "merges" in model else "Unigram"
    old = old if isinstance(model.get("vocab"), list) or "merges" in model else "WordPiece"
    kind = str(model.get("type") or old).lower()
    if kind != row.kind:
        raise WeightsError(
            f"{path}: a tokenizer of the kind {kind}; {row.model_type} needs {row.kind}. "
            "Give the folder the weights came in."
        )
    return from_text(read_text(path), path)


def from_text(text: str, path: Path) -> tokenizers.Tokenizer:
    """Makes a tokenizer of the library's JSON.

    Raises:
        WeightsError: If it is damaged; `path` is named.
    """
    rust: tokenizers.Tokenizer = _build(path, tokenizers.Tokenizer.from_str, text)
    return rust


def _build(path: Path, make: Any, *arguments: Any, **named: Any) -> Any:
    """Calls the Rust library, whose failures on damaged files have no class of their own."""
    try:
        return make(*arguments, **named)
    except BaseException as error:
        # A panic of the Rust library is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise WeightsError(
                f"{path}: cannot be read as a vocabulary ({str(error)[:200]}); fetch it again."
            ) from error
        raise


def _override(rust: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Lets `tokenizer_config.json` go before `tokenizer.json` where transformers does."""
    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    if isinstance(rust.normalizer, normalizers.BertNormalizer):
        for key, name in names.items():
            if key in config:
                setattr(rust.normalizer, name, config[key])
    if "add_prefix_space" in config and isinstance(rust.pre_tokenizer, pre_tokenizers.ByteLevel):
        rust.pre_tokenizer.add_prefix_space = bool(config["add_prefix_space"])


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder; give the folder of a model.")
    path, old = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(path) if path.is_file() else {}
    if "added_tokens_decoder" not in config and old.is_file():
        config |= read_json(old)
    return config


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a configuration names, by role."""
    found = {}
    for role in ROLES:
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            found[role] = token
    return found


def _add_configured(rust: tokenizers.Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Adds the tokens that were added to a vocabulary after its training."""
    entries = config.get("added_tokens_decoder") or {}
    wanted: dict[int, AddedToken] = {}
    path = folder / "tokenizer_config.json"
    try:
        for number, facts in entries.items():
            names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
            wanted[int(number)] = AddedToken(**{x: facts[x] for x in names if x in facts})
        if not entries and (folder / "added_tokens.json").is_file():
            path = folder / "added_tokens.json"
            special = set(_named(config).values())
            for text, number in read_json(path).items():
                known = text in special
                wanted[int(number)] = AddedToken(text, special=known, normalized=not known)
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: added tokens cannot be read ({error}).") from error
    present = rust.get_added_tokens_decoder()
    for number, token in sorted(wanted.items()):
        if number not in present:
            rust.add_tokens([token])
        if rust.token_to_id(token.content) != number:
            raise WeightsError(
                f"{path}: gives '{token.content}' the number {number}, the vocabulary "
                f"{rust.token_to_id(token.content)}; the files do not belong together."
            )


def _one_of(folder: Path, row: Family, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    files = sorted(path.name for path in there)[:12]
    raise WeightsError(
        f"{folder}: a tokenizer of {row.model_type} needs {' or '.join(names)} "
        f"or a tokenizer.json; there are {', '.join(files) or 'no files'}."
    )


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise WeightsError(
                f"{path}: {size:,} bytes are no vocabulary; at most {LARGEST_FILE:,} are read."
            )
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}).") from error


def read_text(path: Path) -> str:
    """Reads UTF-8 text, lines ending in LF.

    Raises:
        WeightsError: If the file is missing, huge, or no text.
    """
    try:
        return _bytes(path).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: no UTF-8 text ({error.reason}); fetch it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        WeightsError: If the file is missing, huge, damaged, or holds something else.
    """
    try:
        facts = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: no JSON ({error}); fetch it again.") from error
    if not isinstance(facts, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(facts).__name__}.")
    return facts
