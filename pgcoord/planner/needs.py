"""Find the prerequisites among pieces of work: stated by keys, or drawn as a graph."""

import re

from pgcoord.planner.items import Piece, prerequisites, without_markup
from pgcoord.planner.references import NUMBERED, graphs_in, key_of, keys_needed


def find_needs(work: list[Piece], text: str) -> tuple[list[Piece], list[str]]:
    """Return *work* with the needs that it states by keys, or in a graph, as numbers; and notes.

    If a piece states needs, or is marked as parallel, a piece that states none follows the order of
    the text: a parallel one beside its parallel neighbours, another after the piece before it.
    """
    keys = [each.key for each in work]
    named = [key for key in keys if key]
    if len(named) < 2 or len(set(named)) < len(named) or 2 * len(named) < len(work):
        return _drawn(work, text), []
    stated: list[str] = []
    notes = []
    for piece in work:
        keys_found, unknown = keys_needed(piece.text, keys)
        keys_found = [each for each in keys_found if each != piece.key]
        by_number = prerequisites(piece, piece.text)
        old = [i for i, each in enumerate(work) if each.number and each.number in (by_number or ())]
        numbers = sorted({keys.index(each) + 1 for each in keys_found} | {i + 1 for i in old})
        none = by_number is not None and not numbers and not unknown
        stated.append("none" if none else " ".join(map(str, numbers)))
        notes += [
            f"{piece.key or piece.lead:.60} comes after {each}, which is not among them: ignored"
            for each in unknown
        ]
    if any(stated) or any(each.is_parallel for each in work):
        stated = _in_order(work, stated)
    all_needs = [
        each._replace(
            number=i,
            sequence=0 if stated[i - 1] else -1,
            is_phase=True,
            then=0,
            needs=stated[i - 1],
        )
        for i, each in enumerate(work, 1)
    ]
    return _drawn(all_needs, text), notes


def _in_order(work: list[Piece], stated: list[str]) -> list[str]:
    """Return the needs of each piece: those that it states, else those by its place in the text."""
    needs = []
    level: list[int] = []
    below: list[int] = []
    beside = True
    for number, (piece, statement) in enumerate(zip(work, stated, strict=True), 1):
        if not (piece.is_parallel and beside and level):
            below, level = level, []
        level.append(number)
        beside = piece.is_parallel
        needs.append(statement or " ".join(map(str, below)) or "none")
    return needs


def _drawn(work: list[Piece], text: str) -> list[Piece]:
    """Return *work* with the needs that a graph of Mermaid in *text* draws, if it names all of it.

    What a piece states itself stays.
    """
    for graph in graphs_in(text):
        index_of = {node: _place_of(label, node, work) for node, label in graph.labels.items()}
        drawn = {index for index in index_of.values() if index is not None}
        if len(drawn) < max(2, len(work)):
            continue
        needs: dict[int, set[int]] = {index: set() for index in drawn}
        for source, end in graph.edges:
            first, second = index_of[source], index_of[end]
            if first is not None and second is not None and first != second:
                needs[second].add(first + 1)
        return [
            each
            if each.needs or prerequisites(each, each.text) is not None
            else each._replace(
                number=index + 1,
                then=0,
                is_phase=True,
                needs=" ".join(map(str, sorted(needs.get(index, ())))) or "none",
            )
            for index, each in enumerate(work)
        ]
    return work


def _place_of(label: str, node: str, work: list[Piece]) -> int | None:
    """Return the index of the piece of work that a node of a graph stands for."""
    match = NUMBERED.match(without_markup(label))
    title = match["title"] if match and match["title"] else label
    words = " ".join(without_markup(title).casefold().split())
    key = key_of(label)
    for index, each in enumerate(work):
        if key and each.key == key:
            return index
        if words and words == " ".join(without_markup(each.lead).casefold().split()):
            return index
    number = re.fullmatch(r"(?:phase|step|task|stage|p|s|t)?[ _-]?(\d{1,3})", label.lower())
    if match and match["named"] and match["named"].isdecimal() and not match["minor"]:
        number = re.fullmatch(r"(\d+)", match["named"])
    if not number:
        return None
    indexes = [index for index, each in enumerate(work) if each.number == int(number[1])]
    return indexes[0] if len(indexes) == 1 else None
