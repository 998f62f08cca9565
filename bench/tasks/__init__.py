"""The kinds of task. A new kind is a file beside these and its name here."""

from bench.tasks.classification import Classification
from bench.tasks.embedding import Embedding
from bench.tasks.kind import Kind
from bench.tasks.language import Language
from bench.tasks.regression import Regression
from bench.tasks.spans import Spans

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Classification(), Regression(), Spans(), Embedding(), Language())}
