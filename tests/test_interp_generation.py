import json

import pytest
import torch
import xarray as xr
from tiny_models import tiny, tiny_tokenizer

import interp
from interp.decoding import trace_decoding
from interp.errors import InputError, StorageError, UnsupportedModelError
from interp.generation import generate, trace_generation
from interp.inputs import prepare
from interp.interventions import AblateHeads
from interp.kernels.definitions import (
    COLUMNS,
    ROWS,
    Edges,
    Entropy,
    MaxMass,
    Received,
    TopKeys,
)

FAMILIES = ["llama", "mistral", "gemma3", "gpt_oss", "gpt2", "llama4"]
PROMPT = [5, 9, 33, 7, 61, 12, 80, 9]


def a_model(family="llama"):
    return interp.load(tiny(family)[0], tokenizer=tiny_tokenizer())


def by_hand(model, n, **options):
    """The tokens that transformers itself makes."""
    ids = torch.tensor([PROMPT])
    out = model.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=[],
        **options,
    )
    return out[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_that_of_transformers(family, untouched):
    model = a_model(family)
    with untouched(model.module):
        ids = generate(model, prepare(model, PROMPT), 9, eos_token_id=[])

    assert ids == by_hand(model, 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generation_has_the_trace_of_its_tokens(family):
    model = a_model(family)
    ours = trace_generation(model, PROMPT, max_new_tokens=9, eos_token_id=[])
    ids = json.loads(ours.attrs["generated"])
    given = interp.trace(model, [*PROMPT, *ids])

    assert len(ids) == 9
    assert ours.attrs["prompt_tokens"] == len(PROMPT)
    xr.testing.assert_identical(ours["self"].to_dataset(), given["self"].to_dataset())


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_decoding_are_rows_of_the_whole_trace(family, untouched):
    """Also where a sliding cache has dropped keys; positions are absolute."""
    module = tiny(family)[0].double()
    module.config._experts_implementation = "eager"  # the other has no float64
    model = interp.load(module, tokenizer=tiny_tokenizer())
    span = [3, 4, 5]
    wanted = (*ROWS, TopKeys(3), Edges((("span", torch.tensor([span])),)))
    with untouched(module):
        steps = trace_decoding(model, PROMPT, wanted, max_new_tokens=9, eos_token_id=[])
    ids = json.loads(steps.attrs["generated"])
    assert ids == by_hand(model, 9)
    fed = [*PROMPT, *ids[:-1]]
    capture = interp.Capture((*ROWS, TopKeys(3)), edges=None, residual=False)
    whole = interp.trace(model, fed, capture=capture)["self"]
    places = steps["self"]["query"].values
    assert places.tolist() == list(range(len(PROMPT) - 1, len(fed)))

    for name in whole.data_vars:
        ours = torch.tensor(steps["self"][name].values)
        given = torch.tensor(whole[name].sel(query=places).values)
        # A trace keeps float32.
        torch.testing.assert_close(ours.to(given.dtype), given, equal_nan=True)
    if family == "llama4":
        return  # its eager maps have the keys of each chunk only
    mass = _weights(model, fed)[:, :, places][..., span].sum(-1)
    ours = torch.tensor(steps["self"]["edges"].values[..., 0])
    torch.testing.assert_close(ours.nan_to_num(0.0).float(), mass.float())


def _weights(model, ids):
    """Eager maps `[layer, head, query, key]`."""
    twin = type(model.module)(model.module.config).double()
    twin.load_state_dict(model.module.state_dict())
    twin.eval().set_attn_implementation("eager")
    with torch.no_grad():
        maps = twin(torch.tensor([ids]), output_attentions=True).attentions
    return torch.stack([each[0, :, :, : len(ids)] for each in maps])


def test_sampling_repeats_by_seed_and_leaves_the_callers_random_numbers_alone():
    model = a_model()
    inputs = prepare(model, PROMPT)
    options = {"do_sample": True, "temperature": 3.0, "eos_token_id": []}
    before = torch.get_rng_state()
    one, same, other = (
        generate(model, inputs, 12, seed=seed, **options) for seed in (0, 0, 1)
    )

    assert one == same != other
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_killed_generation_goes_on_as_it_would_have(tmp_path, sampled):
    model = a_model()
    options = {"eos_token_id": []}
    if sampled:
        options |= {"do_sample": True, "temperature": 2.0}
    whole = trace_generation(model, PROMPT, max_new_tokens=12, **options)

    class Killed(Exception):
        pass

    def tell(ids):
        if len(ids) == 5:
            raise Killed

    out = tmp_path / "g.zarr"
    with pytest.raises(Killed):
        trace_generation(
            model, PROMPT, max_new_tokens=12, out=out, tell=tell, **options
        )
    with (tmp_path / "g.zarr.tokens").open("a") as file:
        file.write("4")  # a line that was cut off
    told = []
    again = trace_generation(
        model,
        PROMPT,
        max_new_tokens=12,
        out=out,
        tell=lambda ids: told.append(len(ids)),
        **options,
    )

    assert told == list(range(6, 13)), "the first five were kept"
    assert again.attrs["generated"] == whole.attrs["generated"]
    xr.testing.assert_identical(
        again["self"].to_dataset().load(), whole["self"].to_dataset()
    )


def test_another_runs_tokens_are_refused(tmp_path):
    model, out = a_model(), tmp_path / "g.zarr"
    trace_generation(model, PROMPT, max_new_tokens=3, out=out)
    with pytest.raises(StorageError, match="another prompt"):
        trace_generation(model, PROMPT[1:], max_new_tokens=3, out=out)
    trace = trace_generation(model, PROMPT[1:], max_new_tokens=3, out=out, resume=False)
    assert trace.attrs["prompt_tokens"] == len(PROMPT) - 1


def test_a_text_can_be_stopped_and_what_is_there_is_traced():
    model = a_model()
    trace = trace_generation(
        model,
        PROMPT,
        max_new_tokens=50,
        stop=lambda ids: len(ids) == 4,
        eos_token_id=[],
    )
    assert trace.attrs["n_tokens"] == len(PROMPT) + 4


def test_interventions_act_on_both_the_text_and_its_trace():
    model = a_model()
    heads = interp.HeadSet.parse("L0.H1,L1.H0,L1.H2", model.anatomy)
    with AblateHeads(heads)(model):
        ablated = trace_generation(model, PROMPT, max_new_tokens=9, eos_token_id=[])
        steps = trace_decoding(
            model, PROMPT, [Entropy()], max_new_tokens=9, eos_token_id=[]
        )
        ids = json.loads(ablated.attrs["generated"])
        given = interp.trace(model, [*PROMPT, *ids])
    assert steps.attrs["generated"] == ablated.attrs["generated"]
    xr.testing.assert_identical(
        ablated["self"].to_dataset(), given["self"].to_dataset()
    )


@pytest.mark.parametrize("family", ["whisper", "t5", "bart"])
def test_an_encoder_decoder_writes_and_is_traced_at_all_its_sites(family):
    model = a_model(family)
    _, inputs = tiny(family)
    one = {name: value[:1] for name, value in inputs.items()}
    n = one["decoder_input_ids"].shape[1]
    trace = trace_generation(model, one, max_new_tokens=5, eos_token_id=[])
    ids = json.loads(trace.attrs["generated"])

    assert len(ids) == 5
    assert set(trace.children) >= {"self", "cross", "encoder"}
    assert trace["self"].sizes["query"] == n + 5


def test_what_cannot_be_is_refused():
    model = a_model()
    for call, cause in (
        (lambda: trace_generation(model, ["a b", "c d"]), "One prompt"),
        (lambda: trace_generation(model, PROMPT, max_new_tokens=0), "at least 1"),
        (lambda: trace_generation(model, PROMPT, max_new_tokens=900), "do not fit"),
        (lambda: trace_generation(model, PROMPT, max_new_tokens=3, heat=2), "heat"),
        (
            lambda: trace_generation(model, PROMPT, max_new_tokens=3, num_beams=2),
            "beams",
        ),
        (lambda: trace_decoding(model, [5], [Entropy()]), "at least two"),
        (lambda: trace_decoding(model, PROMPT, []), "nothing"),
        (lambda: trace_decoding(model, PROMPT, [Received()]), "received"),
        (lambda: trace_decoding(model, PROMPT, COLUMNS), "fai"),
    ):
        with pytest.raises(InputError, match=cause):
            call()
    with pytest.raises(UnsupportedModelError, match="head"):
        trace_generation(a_model("bert"), [5, 6, 7])
    with pytest.raises(UnsupportedModelError, match="decoder-only"):
        trace_decoding(a_model("t5"), PROMPT, [MaxMass()])
