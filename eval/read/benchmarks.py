"""The benchmarks: what a row asks, and what an answer scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...blocks.errors import BifronsError, OptionError
from ...vl2.grounding import FULL, parse_grounding
from ...vl2.prompts import REF, REF_END
from ..row_files import Pictures, read_rows, text_in, texts_in
from ..suites.suite import Item
from .metrics import Corners, anls, chosen_letter, iou, mme_verdict, pope_verdict, relaxed_match

SHORT = "{question}\nAnswer the question using a single word or phrase."
MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
_CIRCLE = 1_000_000


class Example(NamedTuple):
    """A question about a picture, and what is right. cluster: examples with the same are drawn together.

    box: the right box, and options: (letter, text) each, where the benchmark has them.
    """

    image: Path
    question: str
    answers: tuple[str, ...]
    group: str = ""
    cluster: str = ""
    box: Corners | None = None
    options: tuple[tuple[str, str], ...] = ()


class Scored(NamedTuple):
    """An example with its answer and items; group, cluster and answers as in `Example`."""

    group: str
    cluster: str
    answers: tuple[str, ...]
    text: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Benchmark:
    """read: examples from the user's path and the folder of pictures. score: an answer's items, the first of
    which are averaged to the overall score. metrics: further figures, from all examples."""

    name: str
    title: str
    formats: str
    formula: str
    prompt: str
    max_tokens: int
    read: Callable[[Path, Pictures], Iterator[Example]]
    score: Callable[[Example, str, tuple[int, int]], list[Item]]
    metrics: Callable[[Sequence[Scored]], dict[str, float]] = lambda scored: {}


def _boxes(path: Path, pictures: Pictures) -> Iterator[Example]:
    for where, row in read_rows(path):
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise BifronsError(f"{where}: 'bbox' is {box!r}; accepted: four numbers")
        x, y, a, b = map(float, box)
        # RefCOCO's own boxes, and those of its Parquet files, are x, y, width, height; Shikra's and Qwen-VL's
        # .jsonl files hold corners.
        corners = (x, y, a, b) if "sent" in row or "expression" in row else (x, y, x + a, y + b)
        names = ("sent", "expression", "answer", "question")
        for phrase in texts_in(row, where, *names):
            yield Example(pictures.of(row, where), phrase, (), box=corners)


def _score_box(example: Example, text: str, size: tuple[int, int]) -> list[Item]:
    found = [box.normalized for box in parse_grounding(text, size).boxes if box.normalized]
    assert example.box is not None
    value = 0.0
    if found:
        x0, y0, x1, y1 = (v / FULL * size[i % 2] for i, v in enumerate(found[0]))
        value = float(iou((x0, y0, x1, y1), example.box) >= 0.5)
    return [Item("accuracy at IoU 0.5", value)]


def _charts(path: Path, pictures: Pictures) -> Iterator[Example]:
    for where, row in read_rows(path):
        group = row.get("type") or row.get("human_or_machine")
        question, answers = text_in(row, where, "query", "question"), texts_in(row, where, "label", "answer")
        yield Example(pictures.of(row, where), question, answers, "" if group is None else str(group))


def _score_chart(example: Example, text: str, size: tuple[int, int]) -> list[Item]:
    value = float(any(relaxed_match(text.strip(), target) for target in example.answers))
    return [Item("relaxed accuracy", value), *([Item(example.group, value)] if example.group else [])]


def _documents(path: Path, pictures: Pictures) -> Iterator[Example]:
    for where, row in read_rows(path):
        answers = texts_in(row, where, "answers", "answer")
        yield Example(pictures.of(row, where), text_in(row, where, "question"), answers)


def _score_document(example: Example, text: str, size: tuple[int, int]) -> list[Item]:
    return [Item("ANLS", anls(text.strip(), example.answers))]


def _mme(path: Path, pictures: Pictures) -> Iterator[Example]:
    if path.is_dir() and not any(path.glob("*.parquet")):
        yield from _mme_folder(path)
        return
    for where, row in read_rows(path):
        picture, group = pictures.of(row, where), text_in(row, where, "category")
        cluster = f"{group}/{row.get('question_id') or picture}"
        yield Example(
            picture, text_in(row, where, "question"), (_yes_no(row, where, "answer"),), group, cluster
        )


def _mme_folder(path: Path) -> Iterator[Example]:
    """MME as it is released: a folder a category, with pictures and a .txt of two lines for each."""
    for text in sorted(path.glob("*/**/*.txt")):
        category = text.relative_to(path).parts[0]
        folder = path / category / "images" if (path / category / "images").is_dir() else text.parent
        picture = next((p for p in sorted(folder.glob(f"{text.stem}.*")) if p.suffix != ".txt"), None)
        if picture is None:
            raise BifronsError(f"{text} has no picture beside it or in {folder}")
        for line in text.read_text(encoding="utf-8").splitlines():
            question, tab, answer = line.rpartition("\t")
            if not tab or mme_verdict(answer) == "other":
                raise BifronsError(f"{text}: {line!r} is no question, tab and Yes or No")
            yield Example(picture, question, (mme_verdict(answer),), category, f"{category}/{text.stem}")


def _yes_no(row: Mapping[str, Any], where: str, *names: str) -> str:
    answer = text_in(row, where, *names).lower()
    if answer not in ("yes", "no"):
        raise BifronsError(f"{where}: the answer is {answer!r}; accepted: yes or no")
    return answer


def _score_mme(example: Example, text: str, size: tuple[int, int]) -> list[Item]:
    value = float(mme_verdict(text) == example.answers[0])
    return [Item("accuracy", value), Item(example.group, value)]


def _mme_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Per category 100 times accuracy and accuracy+ (both questions of a picture right), and their sums."""
    categories: dict[str, dict[str, list[float]]] = {}
    for one in scored:
        categories.setdefault(one.group, {}).setdefault(one.cluster, []).append(one.items[0].value)
    scores = {}
    for name, pictures in categories.items():
        values = [value for of_picture in pictures.values() for value in of_picture]
        both = [float(all(of_picture)) for of_picture in pictures.values()]
        scores[name] = 100 * (sum(values) / len(values) + sum(both) / len(both))
    perception = sum(score for name, score in scores.items() if name in MME_PERCEPTION)
    return {**scores, "perception": perception, "cognition": sum(scores.values()) - perception}


def _pope(path: Path, pictures: Pictures) -> Iterator[Example]:
    for where, row in read_rows(path):
        answer = _yes_no(row, where, "label", "answer")
        question = text_in(row, where, "text", "question")
        yield Example(pictures.of(row, where), question, (answer,), str(row.get("category") or ""))


def _score_pope(example: Example, text: str, size: tuple[int, int]) -> list[Item]:
    value = float(pope_verdict(text) == example.answers[0])
    return [Item("accuracy", value), *([Item(example.group, value)] if example.group else [])]


def _pope_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    pairs = [(pope_verdict(one.text), one.answers[0]) for one in scored]
    both = pairs.count(("yes", "yes"))
    said, true = (sum(pair[side] == "yes" for pair in pairs) for side in (0, 1))
    return {
        "precision": both / said if said else 0.0,
        "recall": both / true if true else 0.0,
        "f1": 2 * both / (said + true) if said + true else 0.0,
        "yes ratio": said / len(pairs),
    }


def _mmbench(path: Path, pictures: Pictures) -> Iterator[Example]:
    empty = (None, "", "nan")
    for where, row in read_rows(path):
        index = text_in(row, where, "index")
        options = tuple((letter, str(row[letter])) for letter in "ABCDEFGH" if row.get(letter) not in empty)
        answer = text_in(row, where, "answer")
        if answer not in {letter for letter, _ in options} or not index.isdecimal():
            raise BifronsError(
                f"{where}: the answer is {answer!r}, the index {index!r}; accepted: an option's letter, "
                "a whole number"
            )
        lines = [
            *([str(row["hint"])] if row.get("hint") not in empty else []),
            text_in(row, where, "question"),
        ]
        lines += [f"{letter}. {text}" for letter, text in options]
        yield Example(
            image=pictures.of(row, where),
            question="\n".join(lines),
            answers=(answer,),
            group=str(row.get("category") or ""),
            cluster=str(int(index) % _CIRCLE),
            options=options,
        )


def _score_choice(example: Example, text: str, size: tuple[int, int]) -> list[Item]:
    value = float(chosen_letter(text, example.options) == example.answers[0])
    return [Item("accuracy", value), *([Item(example.group, value)] if example.group else [])]


def _circular(scored: Sequence[Scored]) -> dict[str, float]:
    """CircularEval: a question is right if it is in each order of its options that the file holds."""
    questions: dict[str, list[float]] = {}
    for one in scored:
        questions.setdefault(one.cluster, []).append(one.items[0].value)
    return {"circular accuracy": sum(all(values) for values in questions.values()) / len(questions)}


_ALL = (
    Benchmark(
        "refcoco",
        "RefCOCO-style boxes",
        ".jsonl of {image, sent, bbox: corners}, or .parquet of {image, answer, bbox: x, y, width, height}",
        "a phrase is right if the first box found has an intersection over union of at least 0.5",
        f"{REF}{{question}}{REF_END}.",
        64,
        _boxes,
        _score_box,
    ),
    Benchmark(
        "chartqa",
        "ChartQA",
        ".json of {imgname, query, label}, or .parquet of {image, question, answer, type}",
        "relaxed accuracy: numbers within 5%, else equal texts (Masry et al. 2022)",
        SHORT,
        32,
        _charts,
        _score_chart,
    ),
    Benchmark(
        "docvqa",
        "DocVQA",
        ".json of {data: [{image, question, answers}]}, or .parquet of the same columns",
        "ANLS with the threshold 0.5 (Biten et al. 2019)",
        SHORT,
        64,
        _documents,
        _score_document,
    ),
    Benchmark(
        "mme",
        "MME",
        "its folder, or .tsv or .parquet of {image, question, answer, category, question_id}",
        "accuracy; per category 100 x (accuracy + accuracy of pictures with both questions right), summed "
        "over perception and cognition (Fu et al. 2023)",
        "{question}",
        16,
        _mme,
        _score_mme,
        _mme_metrics,
    ),
    Benchmark(
        "pope",
        "POPE",
        "its .json of a row {image, text, label} a line, or .parquet of {image, question, answer}",
        "accuracy, precision, recall and F1 of yes (Li et al. 2023)",
        SHORT,
        16,
        _pope,
        _score_pope,
        _pope_metrics,
    ),
    Benchmark(
        "mmbench",
        "MMBench",
        ".tsv of {index, image in base64, question, hint, A, B, C, D, answer, category}",
        "accuracy; circular accuracy counts a question that is right in each order of its options that the "
        "file holds; an answer that names no option is wrong, where the official script asks a model",
        "{question}\nAnswer with the option's letter from the given choices directly.",
        16,
        _mmbench,
        _score_choice,
        _circular,
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}


def benchmark_named(name: str) -> Benchmark:
    """A benchmark. Raises OptionError for an unknown name."""
    if name not in BENCHMARKS:
        raise OptionError(f"the benchmark is {name!r}; accepted: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
