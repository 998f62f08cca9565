"""Sentence encoders as they are published."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from bench import made_up, pruning
from bench.budget import Budget
from bench.calibration import Calibration, grouped
from bench.config import Task
from bench.made_up import arch_of
from bench.masks import Masks
from bench.nn.packing import Batch
from bench.saved.checkpoint import load
from bench.tasks import KINDS
from bench.tasks.embedding import found_at
from methods.first_order import Taylor
from methods.kprune import KPrune

KIND = KINDS["embedding"]
FAMILIES = ("bert", "roberta", "distilbert", "mpnet")
WORDS = ["ant", "bee", "cat", "dog", "elk", "fox"]


def sample(pairs: int = 6, micro: int = 12) -> Calibration:
    batches = list[Batch]()
    for seed in range(2):
        one = made_up.batch([3, 9, 5, 4, 7, 6] * (pairs // 3), seed)
        batches.append(one | {"labels": torch.tensor([1, 1, 0, 0, 1, 1] * (pairs // 3))})
    tokens = sum(int(one["attention_mask"].sum()) for one in batches)
    return Calibration(batches, grouped(batches, micro), np.arange(4 * pairs), tokens, KIND, "", np.random.default_rng(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_give_the_normalised_mean_of_the_real_tokens(family):
    model, one = made_up.tiny(family, kind="embedding"), made_up.batch([3, 9, 5])
    whole = model(one)
    assert torch.allclose(model.forward(one), whole, atol=1e-6)
    assert torch.allclose(whole.norm(dim=1), torch.ones(3, dtype=whole.dtype))
    alone = model({name: tensor[:1, :3] for name, tensor in one.items() if name != "labels"})
    assert torch.allclose(alone[0], whole[0], atol=1e-6), "padding counts"


def test_the_contrastive_loss_is_that_of_the_pairs_in_a_batch():
    model, own = made_up.tiny(kind="embedding"), sample()
    supervised = KIND.supervised(model, own)
    one = supervised.batches[0]
    vectors = F.normalize(model(one), dim=1)
    losses = supervised.kind.loss(vectors, one["labels"])
    for j in range(len(vectors)):
        others = [i for i in range(len(vectors)) if i not in (j, j ^ 1)]
        scores = 20 * torch.stack([vectors[j] @ vectors[i] for i in (j ^ 1, *others)])
        wanted = -scores.log_softmax(0)[0] if own.batches[0]["labels"][j] else 0.0
        assert float(losses[j]) == pytest.approx(float(wanted), abs=1e-4)


def test_an_example_has_the_same_loss_in_any_micro_batch():
    model, own = made_up.tiny(kind="embedding"), sample()
    supervised = KIND.supervised(model, own)
    whole = sum(float(supervised.kind.loss(model(one), one["labels"]).sum()) for one in supervised.batches)
    parts = sum(float(supervised.kind.loss(model(one), one["labels"]).sum()) for one in grouped_parts(supervised))
    assert parts == pytest.approx(whole, rel=1e-6)


def grouped_parts(found: Calibration) -> list[Batch]:
    return [part for parts in grouped(found.batches, 12) for part in parts]


@pytest.mark.parametrize("method", [KPrune(), Taylor()])
def test_methods_with_and_without_labels_prune_an_encoder(method):
    model = made_up.tiny(dtype=torch.float32, kind="embedding")
    found = pruning.prune(method, model, sample(), Budget.of(model, "flops", 0.5, 6.0))
    assert 0 < found.masks.neurons.mean() < 1


def test_a_document_is_found_at_its_rank():
    queries = np.eye(3, dtype=np.float32)
    documents = np.array([[1, 0, 0], [0.9, 0.5, 0], [0, 0.9, 0.8]], np.float32)
    assert found_at(queries, documents).tolist() == [1, 2, 1]
    same = np.ones((4, 3), np.float32)
    assert found_at(same, same).tolist() == [4] * 4, "what is alike is not found"


def test_a_search_by_chance_scores_the_trivial_score():
    task = Task(["a", "b"], None, ["mrr@10", "recall@1"], "mrr@10", 9.0, 16, kind="embedding", options={"measure": "search"})
    split = type("Split", (), {"__len__": lambda self: 500})()
    stored = KIND.stored(task, SimpleNamespace(split=split))
    rng = np.random.default_rng(0)
    found = [KIND.score(task, rng.standard_normal((1000, 64)).astype(np.float32), None).metrics for _ in range(20)]
    for name in task.metrics:
        assert np.mean([one[name] for one in found]) == pytest.approx(stored[f"{name}_trivial"][0], abs=0.15)


def write_pairs(folder):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        texts = [[" ".join(rng.choice(WORDS, rng.integers(3, 9))) + f" {split} {i}" for i in range(40)] for _ in range(2)]
        table = {"sentence1": texts[0], "sentence2": texts[1], "label": rng.random(40) * 5}
        pq.write_table(pa.table(table), folder / f"{split}.parquet")


@pytest.fixture
def ran(bench, tmp_path):
    write_pairs(tmp_path / "data" / "stsb")
    words = [
        "task=stsb-embedding",
        "model=tiny-random",
        "ratio=0.5",
        "latency=none",
        "calibration.tokens=400",
        f"save={tmp_path / 'saved'}",
    ]
    done = bench("method=magnitude", *words, env={"BENCH_DATA": str(tmp_path / "data")})
    assert done.returncode == 0, done.stderr
    return tmp_path / "saved"


def test_a_saved_encoder_opens_in_sentence_transformers_by_a_plain_path(ran):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from transformers import AutoTokenizer

    from bench.saved.sentence import fast

    texts = ["ant bee", "cat dog elk fox", "x"]
    small = load(ran)
    tokenizer = AutoTokenizer.from_pretrained(ran, config=small.config)
    with torch.no_grad():
        wanted = small(**tokenizer(texts, padding=True, return_tensors="pt")).embedding.numpy()
    for opened in (sentence_transformers.SentenceTransformer(str(ran), device="cpu"), fast(str(ran))):
        assert np.abs(opened.encode(texts) - wanted).max() < 1e-5


def test_methods_that_train_are_skipped(bench, tmp_path):
    write_pairs(tmp_path / "data" / "stsb")
    words = ["task=stsb-embedding", "model=tiny-random", "method=smp", "ratio=0.5", "latency=none", "calibration.tokens=400"]
    done = bench(*words, env={"BENCH_DATA": str(tmp_path / "data")})
    assert done.returncode == 0, done.stderr
    assert "nothing is trained for it" in done.stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("task.options.measure=sim", "options.measure=sim"),
        ("+task.options.scale=3", "options.scale=3"),
        ("task.metrics=[spearman,mrr@10]", "metrics=mrr@10"),
        ("task.columns=[sentence1]", "columns="),
    ],
)
def test_a_wrong_task_is_one_sentence(bench, tmp_path, change, sentence):
    write_pairs(tmp_path / "data" / "stsb")
    done = bench("task=stsb-embedding", "model=tiny-random", change, env={"BENCH_DATA": str(tmp_path / "data")})
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_pair_with_a_missing_side_is_named(bench, tmp_path):
    write_pairs(tmp_path / "data" / "stsb")
    file = tmp_path / "data" / "stsb" / "train.parquet"
    table = pq.read_table(file)
    texts = table["sentence2"].to_pylist()
    texts[3] = None
    pq.write_table(table.set_column(1, "sentence2", [texts]), file)
    done = bench("task=stsb-embedding", "model=tiny-random", env={"BENCH_DATA": str(tmp_path / "data")})
    assert done.returncode == 1
    assert "column 'sentence2' is empty in row 3" in done.stderr


def test_masks_of_an_encoder_are_the_smaller_model():
    from bench.nn.shrink import mask_error, shrink

    for family in FAMILIES:
        model = made_up.tiny(family, kind="embedding")
        masks = Masks.ones(model.shape)
        masks.heads[0, 1:] = masks.neurons[1] = masks.neurons[2, ::2] = 0.0
        assert mask_error(model, masks, shrink(model, masks), sample().batches) < 1e-9
    assert arch_of("bert").embeddings.startswith("bert.")
