"""Asks the signatures of a version: of its graph, in this process, or of a server that has it.

    asked = of_graph(folder, contract)              # or of_server(url, folder, contract)
    said = asked.default([b"...", b"..."])          # answer of each, and what is wrong with it
    for name, ask in asked.others(): ask([b"..."])  # classify, arrays, tokens

They raise `ExportError` where the graph, or the server, does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kerastune_ft.errors import ExportError, ServingError
from kerastune_ft.exports import contract as contracts
from kerastune_ft.exports.contract import Contract
from kerastune_ft.exports.contradictions import contradictions, text_of

Raw: TypeAlias = bytes | tuple[str, ...]
Answer: TypeAlias = NDArray[np.float64] | str
"""Probabilities or numbers, or a text."""

Answers: TypeAlias = Callable[[Sequence[Raw]], Sequence[Answer]]

_DEFAULT, _ARRAYS, _CLASSIFY, _TOKENS = "serving_default", "arrays", "classify", "tokens"
_FEW = 4
"""So many arrays are sent to a server, one by one: as JSON they are ten times as large as files."""


@dataclass(frozen=True)
class Said:
    """What a signature says of an example.

    Args:
        answer: That training gave as well.
        wrong: How what is said beside it contradicts it; "" if it does not.
    """

    answer: Answer
    wrong: str = ""


@dataclass(frozen=True)
class Other:
    """A signature beside the default one, which answers alike.

    Args:
        name: Of it.
        ask: Asks it.
        batch: Examples at once; None for any number.
        most: Examples in all; None for any number.
    """

    name: str
    ask: Callable[[Sequence[Raw]], Sequence[Said]]
    batch: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class Asked:
    """A version that can be asked.

    Args:
        folder: Of the version.
        contract: Of the version.
        call: From a signature's name and inputs to its outputs.
        inputs: Names of what each signature takes.
        remote: Whether it is a server's.
    """

    folder: Path
    contract: Contract
    call: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
    inputs: Mapping[str, frozenset[str]]
    remote: bool = False

    def answers(self) -> Answers:
        """Returns what asks the default signature for its answers alone."""
        wanted = wanted_of(self.folder, self.contract)
        return lambda raw: self._told(self.call(_DEFAULT, wanted(raw)), len(raw))

    def default(self) -> Callable[[Sequence[Raw]], Sequence[Said]]:
        """Returns what asks the default signature for all that it says."""
        return self._whole(_DEFAULT, wanted_of(self.folder, self.contract))

    def others(self) -> list[Other]:
        """Returns the other signatures that say what the default one does.

        Tags of numbers of tokens are of tokens, not of words: nothing in training compares to them.
        """
        from kerastune_ft.exports import expected

        contract, extra = self.contract, contracts.extra(self.folder)
        found = []
        if _CLASSIFY in self.inputs:
            found.append(Other(_CLASSIFY, self._classify))
        if _ARRAYS in self.inputs and contract.inputs == ("image_bytes",):
            ask = self._whole(_ARRAYS, expected.arrays_of_bundle(extra))
            found.append(Other(_ARRAYS, ask, *((1, _FEW) if self.remote else ())))
        outside = contract.inputs != contract.text_inputs
        if _TOKENS in self.inputs and not outside and contract.task != "token_classification":
            found.append(Other(_TOKENS, self._whole(_TOKENS, expected.tokens_of_bundle(extra))))
        return found

    def _whole(
        self, signature: str, wanted: Callable[[Sequence[Raw]], dict[str, Any]]
    ) -> Callable[[Sequence[Raw]], Sequence[Said]]:
        def ask(raw: Sequence[Raw]) -> Sequence[Said]:
            named = self.inputs.get(signature)
            if named is None:
                raise ExportError(f"it has no signature '{signature}'")
            given = {name: value for name, value in wanted(raw).items() if name in named}
            said = self.call(signature, given)
            answers = self._told(said, len(raw))
            wrong = contradictions(self.contract, said, len(raw))
            return [Said(*pair) for pair in zip(answers, wrong, strict=True)]

        return ask

    def _told(self, said: Mapping[str, Any], count: int) -> Sequence[Answer]:
        """Returns the answers in the outputs of a signature."""
        told: Sequence[Answer]
        words = [name for name in ("written", "tags") if name in said]
        numbers = [name for name in ("probabilities", "values") if name in said]
        if words:
            told = [text_of(value) for value in said[words[0]]]
        elif "written_ids" in said:
            from kerastune_ft.exports import expected

            told = expected.texts_of_bundle(contracts.extra(self.folder), said["written_ids"])
        elif numbers:
            told = list(np.asarray(said[numbers[0]], np.float64))
        else:
            raise ExportError(f"it returns {', '.join(sorted(said)) or 'nothing'}, and no answer")
        if len(told) != count:
            raise ExportError(f"it answers {len(told)} times to {count} examples")
        return told

    def _classify(self, raw: Sequence[Raw]) -> Sequence[Said]:
        sent = np.empty(len(raw), object)
        sent[:] = [_example(one, self.contract) for one in raw]
        said = self.call(_CLASSIFY, {"inputs": sent})
        names = self.contract.classes
        if not {"classes", "scores"} <= said.keys() or np.shape(said["classes"]) != (
            len(raw),
            len(names),
        ):
            raise ExportError("it has not a score of every class of the run")
        found = []
        for classes, scores in zip(said["classes"], said["scores"], strict=True):
            given = dict(zip(map(text_of, classes), map(float, scores), strict=True))
            other = sorted(set(given) - set(names))
            wrong = f"{other[0]!r} is no class of the run" if other else ""
            shares = np.array([given.get(name, np.nan) for name in names], np.float64)
            found.append(Said(shares, wrong))
        return found


def of_graph(folder: Path, contract: Contract) -> Asked:
    """Loads the graph of a version.

    Raises:
        ExportError: If it cannot be loaded.
    """
    import tensorflow as tf

    if contract.modality == "text":
        import tensorflow_text  # noqa: F401 - its operations

    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ExportError(f"'{folder}' cannot be loaded: {error}; export again.") from error
    signatures = dict(loaded.signatures)

    def call(signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            said = signatures[signature](
                **{key: tf.constant(value) for key, value in inputs.items()}
            )
        except tf.errors.OpError as error:
            raise ExportError(error.message) from error
        return {key: value.numpy() for key, value in said.items()}

    call.loaded = loaded  # type: ignore[attr-defined]  # owns the variables
    inputs = {
        name: frozenset(signature.structured_input_signature[1])
        for name, signature in signatures.items()
    }
    return Asked(folder, contract, call, inputs)


def of_server(url: str, folder: Path, contract: Contract) -> Asked:
    """Finds the same version on a server.

    Raises:
        ServingError: If there is no such server, or it has no such version.
    """
    from kerastune_ft.serving import client

    name, version = contract.name, contract.version
    signatures = client.metadata(url, name, version)

    def call(signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return client.predict(url, name, signature, inputs, version)
        except ServingError as error:
            raise ExportError(str(error)) from error

    inputs = {key: frozenset(found["inputs"]) for key, found in signatures.items()}
    return Asked(folder, contract, call, inputs, remote=True)


def wanted_of(folder: Path, contract: Contract) -> Callable[[Sequence[Raw]], dict[str, Any]]:
    """Returns what makes of examples the inputs of `serving_default`, or of a file."""
    from kerastune_ft.exports import expected

    if contract.inputs == ("image_bytes",):
        return lambda raw: {"image_bytes": np.asarray(raw, object)}
    if contract.inputs == ("images",):
        return expected.arrays_of_bundle(contracts.extra(folder))
    if contract.inputs == contract.text_inputs:
        return lambda raw: {
            name: np.asarray([row[at] for row in raw], object)
            for at, name in enumerate(contract.inputs)
        }
    return expected.tokens_of_bundle(contracts.extra(folder))


def _example(raw: Raw, contract: Contract) -> bytes:
    """Returns a `tf.Example` of a picture or of texts."""
    import tensorflow as tf

    from kerastune_ft.exports.graphs import PICTURE_FEATURE

    if isinstance(raw, bytes):
        given = {PICTURE_FEATURE: raw}
    else:
        texts = zip(contract.text_inputs, raw, strict=True)
        given = {name: text.encode("utf-8", "surrogatepass") for name, text in texts}
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in given.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(example.SerializeToString())
