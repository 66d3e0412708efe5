"""Influence of heads on texts: beside eager attention by hand, and laws."""

import sys

import numpy as np
import pytest
import torch
from command_line import words
from tiny_models import tiny, tiny_tokenizer
from tolerance import assert_as_precise
from torch.nn.functional import cross_entropy

import interp
from interp.capture import Capture
from interp.errors import InputError, StorageError, UnsupportedModelError
from interp.heads import HeadSet
from interp.interventions import losses
from interp.interventions.ablation import AblateHeads
from interp.kernels.definitions import Pattern
from interp.probes.influence import attention_influence
from interp.tasks.reading import shipped
from interp.tasks.texts import stretches

MASKED = "L0.H1,L0.H2,L1.H3"
TEXTS = {f"text {n}": words(n, seed=n) for n in (2, 5, 11, 30, 31, 70)}


def load(family="llama"):
    return interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def heads(model):
    return HeadSet.parse(MASKED, model.anatomy)


@pytest.fixture(scope="module")
def table(model, heads):
    return attention_influence(model, TEXTS, heads, controls=2, window=32)


class TestByHand:
    """Eager attention of transformers, its weights replaced where heads are masked."""

    @pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
    def test_uniform_are_the_keys_that_a_query_sees(self, family, monkeypatch):
        model = load(family)
        heads = HeadSet.parse(MASKED, model.anatomy)
        found = attention_influence(model, TEXTS, heads, window=32)
        eager = replaced(model.module, heads, monkeypatch)
        truth = replaced(tiny(family)[0].double(), heads, monkeypatch)
        true, honest = (
            [[losses_of(run, model, text) for text in TEXTS.values()] for run in runs]
            for runs in (truth, eager)
        )
        for row, name in enumerate(["nll", "nll_ref"]):
            ours = torch.from_numpy(found[name].values).float()
            arrays = (torch.stack(losses[row]) for losses in (true, honest))
            assert_as_precise(ours, *arrays, name=name)
        influence = [
            torch.stack(reference) / torch.stack(base) - 1
            for base, reference in (true, honest)
        ]
        ours = torch.from_numpy(found["influence"].values).float()
        assert_as_precise(ours, *influence, name="influence")
        assert float(abs(found["influence"]).max()) > 1e-3

    def test_an_interval_is_of_the_ratio_of_resampled_sums(self, model, heads):
        [text] = [TEXTS["text 70"]]
        found = attention_influence(model, {"a": text}, heads, window=32, seed=5)
        cut = tuple(stretches(model, "a", text, 32))
        [(_, nats)] = losses.token_losses(model, [cut], [AblateHeads(heads, "uniform")])
        base, reference = (
            np.array([part.sum() for part in np.array_split(row, 8)]) for row in nats
        )
        drawn = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=2000)
        ratios = drawn @ reference / (drawn @ base) - 1
        bounds = np.quantile(ratios, [0.025, 0.975])
        np.testing.assert_allclose(found["influence_interval"].values[0], bounds)
        assert found["influence"].item() == pytest.approx(
            reference.sum() / base.sum() - 1
        )


def replaced(module, heads, monkeypatch):
    """The model untouched, and with uniform rows, as functions from ids to logits."""
    if hasattr(module.config, "num_local_experts"):
        module.set_experts_implementation("eager")  # the other has no float64
    module.set_attn_implementation("eager")
    home = sys.modules[type(module).__module__]
    own = home.eager_attention_forward
    masked = heads.by_layer()

    def uniform(attention, query, key, value, mask, **options):
        output, weights = own(attention, query, key, value, mask, **options)
        seen = (mask == 0).to(weights).expand_as(weights)
        room = getattr(attention, "sinks", torch.full((weights.shape[1],), -torch.inf))
        rows = seen / (
            seen.sum(-1, keepdim=True) + room.to(weights).exp()[:, None, None]
        )
        value = value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
        for head in masked.get(attention.layer_idx, ()):
            output[:, :, head] = rows[:, head] @ value[:, head]
        return output, weights

    def run(ids, attend):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(home, "eager_attention_forward", attend)
            return module(ids, use_cache=False).logits

    return (lambda ids: run(ids, own)), (lambda ids: run(ids, uniform))


def losses_of(run, model, text):
    """Mean over all windows of a text."""
    parts = []
    for ids in map(torch.tensor, stretches(model, "text", text, 32)):
        logits = run(ids[None])[0, :-1]
        parts.append(cross_entropy(logits, ids[1:], reduction="none"))
    return torch.cat(parts).mean()


@pytest.mark.parametrize("side", ["left", "right"])
def test_masked_rows_are_causal_and_sum_to_1_beside_padding(side, model, heads):
    real = torch.ones(2, 9, dtype=torch.long)
    own = slice(3, 9) if side == "left" else slice(0, 6)
    real[1] = 0
    real[1, own] = 1
    ids = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    with AblateHeads(heads, "uniform")(model):
        inputs = {"input_ids": ids, "attention_mask": real}
        traced = interp.trace(model, inputs, capture=Capture((Pattern(),)))
    pattern = traced["self"]["pattern"]
    for sample, n in enumerate([9, 6]):  # a trace begins with each text's first token
        rows = pattern.isel(sample=sample, query=slice(n), key=slice(n))
        wanted = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
        for head in heads:
            got = rows.isel(layer=head.layer, head=head.head).fillna(0).values
            assert_as_precise(
                torch.from_numpy(got).float(),
                torch.from_numpy(wanted),
                torch.from_numpy(wanted).float(),
            )


class TestLaws:
    def test_every_number_has_its_unit_and_its_text(self, table, heads):
        assert table["text"].values.tolist() == list(TEXTS)
        assert {name: table[name].attrs["units"] for name in table} == {
            "nll": "nats",
            "nll_ref": "nats",
            "influence": "fraction",
            "influence_interval": "fraction",
            "tokens": "tokens",
            "control": "fraction",
            "control_interval": "fraction",
        }
        assert table.attrs["heads"] == str(heads)
        assert table.attrs["window"] == 32

    def test_influence_is_the_relative_rise(self, table):
        rise = (table["nll_ref"] - table["nll"]) / table["nll"]
        np.testing.assert_allclose(table["influence"], rise, atol=1e-12)

    def test_bounds_enclose_a_text_of_several_tokens(self, table):
        low, high = table["influence_interval"].values.T
        inside = (low <= table["influence"]) & (table["influence"] <= high)
        assert inside.values.tolist() == [False, *[True] * 5]
        assert np.isnan(low[0])
        assert np.isnan(high[0])

    def test_permuted_texts_give_permuted_numbers(self, table, model, heads):
        names = [*reversed(TEXTS)]
        texts = {name: TEXTS[name] for name in names}
        other = attention_influence(model, texts, heads, controls=2, window=32)
        assert other.identical(table.sel(text=names))

    def test_equal_texts_get_equal_numbers(self, model, heads):
        texts = TEXTS | {"again": TEXTS["text 30"]}
        found = attention_influence(model, texts, heads, window=32)
        one, two = (found.sel(text=t, drop=True) for t in ("again", "text 30"))
        assert one.identical(two)

    def test_a_text_is_as_in_any_other_company(self, table, model, heads):
        for name, text in TEXTS.items():
            alone = attention_influence(model, {name: text}, heads, window=32)
            ours, other = (each["nll_ref"].sel(text=name) for each in (alone, table))
            assert float(ours) == pytest.approx(float(other), rel=1e-5)

    def test_controls_are_other_heads_of_the_same_layers(self, table, model, heads):
        for number, draw in enumerate(table["draw"].values):
            drawn = HeadSet.parse(str(table["drawn"].values[number]), model.anatomy)
            assert drawn == heads.random_like(int(draw))
            assert not drawn & heads
            found = attention_influence(model, TEXTS, drawn, window=32)
            ours = table["control"].isel(draw=number).values
            np.testing.assert_allclose(ours, found["influence"].values, atol=1e-5)

    def test_nothing_before_the_first_masked_key_is_changed(self, model, heads):
        # The first token sees itself alone: all weight on one key is uniform.
        found = attention_influence(model, {"two": words(2)}, heads)
        assert found["tokens"].item() == 1
        assert found["influence"].item() == 0

    def test_no_more_tokens_than_asked(self, model, heads):
        long, short = words(50, seed=1), words(20, seed=1)
        found = attention_influence(
            model, {"long": long, "short": short}, heads, max_tokens=20
        )
        one, two = (found.sel(text=name, drop=True) for name in ("long", "short"))
        assert one.identical(two)

    def test_windows_are_read_on_their_own(self, model, heads):
        whole = attention_influence(model, {"a": TEXTS["text 70"]}, heads, window=8)
        cut = stretches(model, "a", TEXTS["text 70"], 8)
        assert whole["tokens"].item() == sum(len(each) - 1 for each in cut)
        sums = 0.0
        for each in cut:
            ids = torch.tensor([each])
            logits = model.module(ids).logits[0, :-1].detach()
            sums += float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
        assert whole["nll"].item() == pytest.approx(sums / whole["tokens"].item())


class TestFile:
    """What a run that was stopped left is gone on with."""

    def run(self, model, heads, path, **options):
        return attention_influence(
            model, TEXTS, heads, controls=2, window=32, out=path, **options
        )

    @pytest.mark.parametrize("cut", [1, 300, 2000])
    def test_a_run_that_was_killed_goes_on(self, cut, table, model, heads, tmp_path):
        path = tmp_path / "losses.jsonl"
        assert self.run(model, heads, path).identical(table)
        path.write_bytes(path.read_bytes()[:-cut])
        assert self.run(model, heads, path).identical(table)

    def test_a_finished_run_runs_nothing(
        self, table, model, heads, tmp_path, monkeypatch
    ):
        path = tmp_path / "losses.jsonl"
        self.run(model, heads, path)
        monkeypatch.setattr(losses, "_losses", None)
        assert self.run(model, heads, path).identical(table)

    def test_other_heads_are_another_run(self, model, heads, tmp_path):
        path = tmp_path / "losses.jsonl"
        self.run(model, heads, path)
        with pytest.raises(StorageError, match="masked"):
            self.run(model, heads - HeadSet.parse("L1.H3", model.anatomy), path)

    def test_progress_counts_tokens(self, model, heads, tmp_path):
        seen = []
        path = tmp_path / "losses.jsonl"
        tell = lambda done, total: seen.append((done, total))  # noqa: E731
        table = self.run(model, heads, path, progress=tell)
        total = int(table["tokens"].sum())
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (total, total)
        assert len(seen) == 1 + len(TEXTS)
        assert seen[0] == (0, total)


class TestRefusals:
    @pytest.mark.parametrize(
        ("texts", "options", "said"),
        [
            ({}, {}, "got 0 texts"),
            ({"a": "w5"}, {"max_tokens": 1}, "The text a has 1 tokens"),
            ({"a": "w5"}, {}, "The text a has 1 tokens"),
            (TEXTS, {"window": 3}, "window=3"),
            (TEXTS, {"controls": -1}, "controls=-1"),
        ],
    )
    def test_texts_and_options(self, texts, options, said, model, heads):
        with pytest.raises(InputError, match=said):
            attention_influence(model, texts, heads, **options)

    def test_a_layer_without_other_heads(self, model):
        heads = HeadSet.parse("L0.H0,L0.H1,L0.H2", model.anatomy)
        with pytest.raises(InputError, match="3 heads of layer 0"):
            attention_influence(model, TEXTS, heads, controls=1)

    def test_no_head(self, model):
        heads = HeadSet.of([], model.anatomy)
        with pytest.raises(InputError, match="empty"):
            attention_influence(model, TEXTS, heads)

    def test_a_model_without_tokenizer(self, heads):
        with pytest.raises(InputError, match="tokenizer"):
            attention_influence(interp.load(tiny("llama")[0]), TEXTS, heads)

    def test_a_model_that_predicts_no_next_token(self):
        model = load("bert")
        heads = HeadSet.of([(0, 0)], model.anatomy, "encoder")
        with pytest.raises(UnsupportedModelError, match="decoder-only"):
            attention_influence(model, TEXTS, heads)


@pytest.mark.real
@pytest.mark.slow
def test_copies_hang_on_retrieval_heads_and_a_new_text_less():
    # AttentionInfluence, table 6: with retrieval heads masked, tasks that copy are
    # lost. The strongest five by the retrieval score (arXiv:2404.15574).
    model = interp.load("smollm2-135m")
    heads = HeadSet.parse("L18.H6,L17.H3,L23.H2,L18.H7,L20.H6", model.anatomy)
    book = shipped().split()
    texts = {
        "copy": "\n\n".join([" ".join(book[200:250])] * 3),
        "book": " ".join(book[:180]),
    }
    found = attention_influence(model, texts, heads, controls=3)
    own, low = found["influence"], found["influence_interval"].sel(bound="low")
    # The mean would tell of one head: looking everywhere alike, L18.H8, which rests on
    # the first token, costs more than all five.
    others = found["control"].median("draw")
    assert (low.sel(text="copy") > 0.1).item()
    assert (own > others).all()
    assert (low > others).all()
    assert own.sel(text="copy") > 2 * own.sel(text="book")
    assert 0.02 < own.sel(text="book").item() < 0.3
