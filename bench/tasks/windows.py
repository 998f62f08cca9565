"""Questions answered by a span of their context (SQuAD v1.1, v2.0): windows, answers from logits, exact match and F1.

Rajpurkar et al., EMNLP 2016 and ACL 2018: the official definition of both metrics. Windows and answers as is standard
for encoders (Devlin et al. 2019; transformers' run_qa): contexts are cut into overlapping windows, and an answer is the
best pair of one of the `best` starts and one of the `best` ends of a window that lies in the context and is not too long.
"""

import importlib.metadata
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import config
from bench.errors import UserError
from bench.records.verdict import LOSE_TAILS
from bench.tasks.data import Split

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
OUTSIDE = -1  # offset of a token that is not of the context
MOST_OF_QUESTION = 64  # tokens of a question that are read (Devlin et al. 2019)
SPECIAL = 4  # tokens that a pair may be given beside its own
CHUNK = 256  # windows whose pairs are looked at together
FIRST_SENTENCE = re.compile(r"(?<=[.!?]) ")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Windows:
    """The windows of a split's questions, tokenised at once. `question[w]` is the row that window w belongs to,
    `offsets[w]` [tokens, 2] the characters of the context that each token covers. `cut`: the windows whose question was too long; a long
    context is none of them, since it has several windows.

    Raises:
        UserError: this version of tokenizers would lose the ends of long contexts.
    """

    def __init__(self, tokenizer: Any, inputs: Sequence[str], max_length: int, plan: config.Windows, split: Split) -> None:
        version = importlib.metadata.version("tokenizers")
        if version in LOSE_TAILS:
            raise UserError(f"tokenizers {version} loses the ends of long contexts; install 0.23.3 or newer")
        questions, self.contexts = split.texts
        most = min(MOST_OF_QUESTION, max_length // 3)
        questions, longest, shortened = _shortened([question.lstrip() for question in questions], tokenizer, most)
        coded = tokenizer(
            questions,
            self.contexts,
            truncation="only_second",
            max_length=max_length,
            stride=min(plan.stride, (max_length - longest - SPECIAL) // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=False,
        )
        self.plan, self.split = plan, split
        self.question = np.asarray(coded["overflow_to_sample_mapping"], dtype=np.intp)
        self.cut = {w for w, row in enumerate(self.question) if row in shortened}
        self._inputs = [{name: coded[name][w] for name in inputs} for w in range(len(self.question))]
        self.offsets = [self._of_context(coded, w) for w in range(len(self.question))]

    @staticmethod
    def _of_context(coded: Any, window: int) -> NDArray[np.int64]:
        offsets = np.asarray(coded["offset_mapping"][window], dtype=np.int64)
        belongs = np.array([part == 1 for part in coded.sequence_ids(window)])
        offsets[~belongs] = OUTSIDE
        return offsets

    def __len__(self) -> int:
        return len(self.question)

    def encode(self, rows: Sequence[int] | Rows) -> list[dict[str, list[int]]]:
        """The token ids (and masks) of some windows."""
        return [self._inputs[row] for row in rows]

    def labels(self, rows: Sequence[int] | Rows) -> NDArray[np.int64]:
        """Tokens [n, 2] of the first answer's start and end; the first token twice where the window does not hold it."""
        return np.array([self._span(int(row)) for row in rows], dtype=np.int64).reshape(len(rows), 2)

    def _span(self, window: int) -> tuple[int, int]:
        texts, starts = self.split.answers[self.question[window]]
        if not texts:
            return 0, 0
        first, last = starts[0], starts[0] + len(texts[0])
        offsets = self.offsets[window]
        inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
        if not len(inside) or offsets[inside[0], 0] > first or offsets[inside[-1], 1] < last:
            return 0, 0
        start = inside[np.flatnonzero(offsets[inside, 0] <= first)[-1]]
        end = inside[np.flatnonzero(offsets[inside, 1] >= last)[0]]
        return int(start), int(end)


def _shortened(questions: list[str], tokenizer: Any, most: int) -> tuple[list[str], int, set[int]]:
    """Questions cut after so many tokens, so that every window has room for its context; the longest one's tokens; which were cut."""
    coded = tokenizer(questions, add_special_tokens=False, truncation=True, max_length=most, return_offsets_mapping=True)
    lengths = [len(offsets) for offsets in coded["offset_mapping"]]
    cut = [q[: offsets[-1][1]] if len(offsets) == most else q for q, offsets in zip(questions, coded["offset_mapping"], strict=True)]
    return cut, max(lengths), {row for row, one in enumerate(coded.encodings or ()) if one.overflowing}


@dataclass(frozen=True)
class Answers:
    """One answer per question, in row order of the split, and its exact match and F1 in percent."""

    texts: list[str]
    em: Floats
    f1: Floats


def read_answers(windows: Windows, logits: NDArray[np.float32]) -> Answers:
    """Answers from the logits [windows, T, 2] of starts and ends."""
    return _scored(_texts(windows, logits), windows.split, windows.plan.unanswerable)


def trivial(split: Split, unanswerable: bool) -> Answers:
    """What an answer that does not look at the question scores: no answer where there may be none, else the context's first sentence."""
    texts = ["" if unanswerable else FIRST_SENTENCE.split(context, maxsplit=1)[0] for context in split.texts[1]]
    return _scored(texts, split, unanswerable)


def _scored(texts: list[str], split: Split, unanswerable: bool) -> Answers:
    golds = [answers for answers, _ in split.answers]
    pairs = [(exact(text, gold, unanswerable), f1(text, gold, unanswerable)) for text, gold in zip(texts, golds, strict=True)]
    scores = 100 * np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return Answers(texts, scores[:, 0], scores[:, 1])


def _texts(windows: Windows, logits: NDArray[np.float32]) -> list[str]:
    score, start, end = _best_pairs(windows, logits)
    null = logits[:, 0].sum(1)  # the first token as start and as end: there is no answer
    result = []
    first = np.searchsorted(windows.question, np.arange(len(windows.contexts) + 1))
    for row, context in enumerate(windows.contexts):
        own = slice(first[row], first[row + 1])
        best = first[row] + int(np.argmax(score[own]))
        if not np.isfinite(score[best]) or (windows.plan.unanswerable and null[own].min() > score[best]):
            result.append("")
        else:
            offsets = windows.offsets[best]
            result.append(context[offsets[start[best], 0] : offsets[end[best], 1]])
    return result


def _best_pairs(windows: Windows, logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], Rows, Rows]:
    """Per window the score of its best pair (minus infinity where none is allowed), its start and its end."""
    count, length = logits.shape[:2]
    best = min(windows.plan.best, length)
    allowed = np.zeros((count, length), dtype=bool)
    for w, offsets in enumerate(windows.offsets):
        allowed[w, : len(offsets)] = offsets[:, 0] != OUTSIDE
    score, start, end = np.empty(count, np.float32), np.empty(count, np.intp), np.empty(count, np.intp)
    for begin in range(0, count, CHUNK):
        part = slice(begin, begin + CHUNK)
        rows = np.arange(len(logits[part]))[:, None]
        tops = np.argsort(-logits[part], axis=1, kind="stable")[:, :best]
        starts, ends = tops[..., 0], tops[..., 1]
        pairs = logits[part, :, 0][rows, starts][:, :, None] + logits[part, :, 1][rows, ends][:, None]
        span = ends[:, None] - starts[:, :, None]
        good = allowed[part][rows, starts][:, :, None] & allowed[part][rows, ends][:, None]
        good &= (span >= 0) & (span < windows.plan.longest_answer)
        flat = np.where(good, pairs, -np.inf).reshape(len(rows), -1)
        chosen = flat.argmax(1)
        score[part] = flat[rows[:, 0], chosen]
        start[part], end[part] = starts[rows[:, 0], chosen // best], ends[rows[:, 0], chosen % best]
    return score, start, end


def normal(text: str) -> list[str]:
    """The words that count: lower case, no punctuation, no articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(NO_PUNCTUATION)).split()


def exact(text: str, golds: Sequence[str], unanswerable: bool = False) -> float:
    """1 where the answer is one of the gold answers, normalised; of v2.0 (`unanswerable`), without any, where it is empty."""
    return float(normal(text) in _golds(golds, unanswerable))


def f1(text: str, golds: Sequence[str], unanswerable: bool = False) -> float:
    """The best harmonic mean of precision and recall of words over the gold answers; two empty answers are equal in v2.0 alone."""
    found = normal(text)
    return max(_word_f1(found, gold, unanswerable) for gold in _golds(golds, unanswerable))


def _golds(golds: Sequence[str], unanswerable: bool) -> list[list[str]]:
    """Words of the gold answers; v2.0 leaves out what has none, and no answer is then the answer."""
    words = [normal(gold) for gold in golds]
    return [one for one in words if one] or [[]] if unanswerable else words


def _word_f1(found: list[str], gold: list[str], unanswerable: bool) -> float:
    if unanswerable and not (found and gold):
        return float(found == gold)
    same = sum((Counter(found) & Counter(gold)).values())
    return 2 * same / (len(found) + len(gold)) if same else 0.0
